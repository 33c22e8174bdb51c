"""Feature visualisation against Lucent and Horama, on EfficientNet-Lite0, all in one run.

Speed is CPU seconds of the whole process for one picture, as every one of them uses several threads.
Activations are of the whole picture, resized to the network's input, for everybody. Recognition is
measured by two sibling networks that no optimiser saw: the mean probability of the class over the best
three of 26 views of its picture.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import reliability
from benchmarks.row import Row
from benchmarks.visualise_runs import CLASSES, TEN
from sidecar.config import JobsConfig
from sidecar.jobs.assignment import child_environment

PEERS = Path(".peers")
"""What ``make bench`` installs without dependencies, see ``benchmarks/visualise-requirements.txt``."""

_LEAST_RATIO = 0.98
"""Of a peer's activation, below which a picture counts as lost."""


def run() -> list[Row]:
    """Make everybody's pictures, each in a process of its own, and compare them."""
    if not (PEERS / "lucent").is_dir():
        print("visualise: skipped, there are no .peers (run: make bench)", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(lambda what: _measured(what, Path(folder)))
    return [*rows, *reliability.run()]


def _rows(measured: Callable[[str], dict[str, list[float]]]) -> list[Row]:
    lucent, rows = measured("units_lucent"), []
    for maker, name in (("ours", ""), ("ours-whole", "_whole")):
        ours = measured(f"units_{maker}")
        print(f"activations, ours{name}: {_listed(ours)}\nactivations, Lucent: {_listed(lucent)}")
        rows.append(
            _row(
                f"fourier.cpu_s_per_unit{name}",
                ours,
                lucent,
                "torch-lucent, 128 px, 128 steps",
            )
        )
        rows.append(_wins(f"fourier.activation_wins{name}", ours, lucent))
    ours, lucent = measured("classes_ours"), measured("classes_lucent")
    for sibling in ("lite1", "lite2"):
        mine, theirs = (float(np.mean(one[sibling])) for one in (ours, lucent))
        unit = f"p of {len(CLASSES)} classes, best 3 of 26 views"
        peer = "torch-lucent, its defaults"
        rows.append(Row(f"fourier.transfer_{sibling}", mine, unit, peer, theirs, mine / theirs))
    ours, horama = measured("maco_ours"), measured("maco_horama")
    print(f"activations, ours: {_listed(ours)}\nactivations, Horama: {_listed(horama)}")
    rows.append(_row("maco.cpu_s_per_unit", ours, horama, "Horama maco, 128 steps"))
    mine, theirs = (float(np.mean(one["activation"])) for one in (ours, horama))
    rows.append(
        Row(
            "maco.activation",
            mine,
            "mean of 2 units",
            "Horama maco",
            theirs,
            mine / max(theirs, 0.1),
        )
    )
    return rows


def _row(name: str, ours: dict[str, list[float]], peer: dict[str, list[float]], who: str) -> Row:
    mine, theirs = (float(np.mean(one["cpu_seconds"])) for one in (ours, peer))
    return Row(name, mine, "CPU s a unit", who, theirs, theirs / mine)


def _wins(name: str, ours: dict[str, list[float]], peer: dict[str, list[float]]) -> Row:
    wins, kept = _compared(ours["activation"], peer["activation"])
    lost = len(TEN) - wins
    unit = f"of {len(TEN)} units, {kept} at .98 or more"
    return Row(name, wins, unit, "torch-lucent, whole picture", lost, wins / max(lost, 1))


def _compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[int, int]:
    """Return how many activations are above the peer's, and how many not lost to it."""
    pairs = list(zip(ours, theirs, strict=True))
    wins = sum(mine > other for mine, other in pairs)
    return wins, sum(mine >= _LEAST_RATIO * other for mine, other in pairs)


def _listed(found: dict[str, list[float]]) -> str:
    return " ".join(f"{value:.1f}" for value in found["activation"])


def _measured(what: str, folder: Path) -> dict[str, list[float]]:
    """Return the numbers of one run of ``visualise_runs``, made in its own process."""
    out = folder / f"{what}.json"
    # Waiting threads that spin would be counted as work, of whoever shares the machine least. The
    # allocator is as our worker sets it for ours, and as it comes for the others.
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}
    if "ours" in what:
        env = child_environment(JobsConfig(), env)
    command = [sys.executable, "-m", "benchmarks.visualise_runs", what, str(out)]
    subprocess.run(command, env=env, check=True)
    found: dict[str, list[float]] = json.loads(out.read_text("utf-8"))
    return found
