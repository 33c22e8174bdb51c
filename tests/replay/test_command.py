"""``sidecar replay`` on the recording of a real daemon, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.config import load_policy
from sidecar.replay import Policy, play
from sidecar.store import ReadCounts, Recordings, find_segments, read_recordings
from sidecar.testing import FakeClock, RunningDaemon, running_daemon, wait_until
from tests.ingest.conftest import LAYER, REVISION, GrpcClient
from tests.replay.conftest import Traffic

pytestmark = pytest.mark.service

WINDOW = 10.0
SPIKE = {"quantile": 0.99, "factor": 2.0, "clear_windows": 2, "unsampled_windows": 3}
SETTINGS: dict[str, Any] = {
    "models": [{"name": "tiny"}],
    "flags": [{"feature": f"tiny/conv/channel/{i}"} for i in (1, 2)],
    "spike": SPIKE,
    "statistics": {
        "window_seconds": WINDOW,
        "warmup_rows": 32,
        "baseline_min_requests": 600,
        "baseline_min_seconds": 50,
    },
}


@dataclass(frozen=True)
class Recorded:
    """What a daemon left behind.

    Attributes:
        folder: Its recordings.
        config: Its configuration.
        fired: When its features began to fire, and which, by its audit log.
        changes: All their changes of state.
    """

    folder: Path
    config: Path
    fired: list[tuple[float, str]]
    changes: list[tuple[float, str, str]]


def live(running: RunningDaemon, clock: FakeClock) -> None:
    """Send traffic through a daemon, window after window, with a spike in channel 1."""
    rng, client = np.random.default_rng(5), GrpcClient(running.grpc)
    client.hello()
    recorder = running.daemon.storage.recorder
    assert recorder is not None
    for number in range(36):
        values = rng.normal(size=(100, 4))
        if 20 <= number < 24:
            values[:40, 1] = 9.0
        client.read_until_settled(client.batch(values))
        clock.advance(WINDOW)
        wait_until(lambda: recorder.counts().recorded > number, what="a recorded window")  # noqa: B023
    client.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The recording of a daemon that saw a spike."""
    root, clock = tmp_path_factory.mktemp("recorded"), FakeClock()
    config = root / "sidecar.yaml"
    config.write_text(json.dumps(SETTINGS))
    with running_daemon(root, SETTINGS, clock=clock) as running:
        live(running, clock)
        events = running.daemon.operations.events(None, 1000)
        changes = [
            (e.at, e.what.removeprefix("feature_"), e.subject)
            for e in reversed(events)
            if e.what.removeprefix("feature_")
            in ("unknown", "normal", "pending", "firing", "resolved")
        ]
    fired = [(at, subject) for at, what, subject in changes if what == "firing"]
    return Recorded(root / "recordings", config, fired, changes)


def replay(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def test_the_policy_in_force_fires_where_the_daemon_did(recorded: Recorded) -> None:
    """The same features, in the same windows, and no others."""
    found = replay(recorded.folder, "--policy", recorded.config, "--format", "json")

    answer = json.loads(found.stdout)
    assert 0 == found.exit_code
    assert 1 == len(recorded.fired)
    assert recorded.fired == [(one["start"], one["feature"]) for one in answer["alarms"]]
    assert [f"tiny@{REVISION}/conv/channel/1"] == [one["feature"] for one in answer["features"]]
    (layer,) = answer["recording"]["layers"]
    assert (str(LAYER), 2, 36, []) == (
        layer["layer"],
        layer["features"],
        layer["windows"],
        layer["gaps"],
    )
    assert answer["policy"]["pages_per_day"] == pytest.approx(8640 / 36)


def test_every_change_of_state_is_that_of_the_audit_log(recorded: Recorded) -> None:
    """A replay is no imitation: it is the detector over what the detector saw."""
    windows = read_recordings(find_segments([recorded.folder]), ReadCounts())
    policy = Policy.of("in force", load_policy(recorded.config))

    found = play(windows, policy)

    assert recorded.changes == [
        (one.transition.at, str(one.transition.after), str(one.feature)) for one in found.changes
    ]
    assert {"normal", "firing", "resolved"} <= {what for _, what, _ in recorded.changes}


def test_a_policy_is_compared_with_the_one_in_force(recorded: Recorded, tmp_path: Path) -> None:
    """What would be gone is named, in the table and as JSON."""
    deaf = tmp_path / "deaf.yaml"
    deaf.write_text("factor: 50.0\nquantile: 0.99\n")
    arguments = (recorded.folder, "--policy", deaf, "--config", recorded.config)

    table = replay(*arguments)
    answer = json.loads(replay(*arguments, "--format", "json").stdout)

    assert 0 == table.exit_code
    assert "0 new, 1 gone, 0 as before" in table.stdout
    assert f"  gone    tiny@{REVISION[:12]}/conv/channel/1" in table.stdout
    assert "requests beyond the baseline's 99 % quantile" in table.stdout
    assert [] == answer["alarms"]
    assert 1 == len(answer["compared"]["gone"])
    assert 1 == answer["compared"]["in_force"]["pages"]


def test_a_picture_is_written(recorded: Recorded, tmp_path: Path) -> None:
    """Where a feature fires it is drawn; a named one is drawn in any case."""
    plot = tmp_path / "out.svg"

    firing = replay(recorded.folder, "--policy", recorded.config, "--plot", plot)
    first = plot.read_text()
    key = f"tiny@{REVISION[:12]}/conv/channel/2"
    replay(recorded.folder, "--policy", recorded.config, "--plot", plot, "--feature", key)
    second = plot.read_text()
    unknown = "tiny/conv/channel/3"
    missing = replay(
        recorded.folder, "--policy", recorded.config, "--plot", plot, "--feature", unknown
    )

    assert 0 == firing.exit_code
    assert "conv/channel/1</text>" in first
    assert "conv/channel/2</text>" not in first
    assert "conv/channel/2</text>" in second
    assert "out.svg: " in firing.stderr
    assert 3 == missing.exit_code
    assert f"SC403 feature '{unknown}' was not flagged in this recording" in missing.stderr


def test_the_command_runs_as_a_process(recorded: Recorded) -> None:
    """As an operator runs it, beside the daemon's files."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "sidecar",
            "replay",
            str(recorded.folder),
            "--policy",
            str(recorded.config),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert 0 == found.returncode, found.stderr
    assert ": 1 page in 6 min\n" in found.stdout  # minutes say nothing of a day


def test_what_was_not_recorded_is_said(recorded: Recorded, tmp_path: Path) -> None:
    """A quantile, a feature, and the end of a file that was torn."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "spike: {quantile: 0.9}\n"
        "flags: [{feature: tiny/conv/channel/3}]\n"
        "models: [{name: tiny, weights: /nowhere}]\n"
    )
    torn = tmp_path / "torn"
    torn.mkdir()
    (first, *_) = sorted(recorded.folder.iterdir())
    (torn / first.name).write_bytes(first.read_bytes()[:-5])

    found = replay(torn, "--policy", policy)

    assert 0 == found.exit_code
    assert "quantile 0.9 was not recorded, 0.99 is the nearest" in found.stdout
    assert "tiny/conv/channel/3 is flagged by" in found.stdout
    assert "of 1 file 1 with a torn end, in all" in found.stdout


@pytest.mark.parametrize(
    ("text", "exit_code", "message"),
    [
        ("factor: 0.5\n", 2, "policy.yaml:1: spike.factor: "),
        ("spikes: {}\n", 2, "policy.yaml:1: spikes: unknown key"),
        ("spike:\n  facter: 3\n", 2, "policy.yaml:2: spike.facter: unknown key"),
        ("factor: 3\nmodels: []\n", 2, "policy.yaml:1: factor: unknown key"),
        ("- 3\n", 2, "holds list, need a mapping"),
    ],
)
def test_a_policy_that_is_wrong_is_refused(
    recorded: Recorded, tmp_path: Path, text: str, exit_code: int, message: str
) -> None:
    """With the file, the line, and what is wrong."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)

    found = replay(recorded.folder, "--policy", policy)

    assert message in found.stderr
    assert exit_code == found.exit_code


def test_what_is_no_recording_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    """By its name, and with what to name instead."""
    empty = replay(tmp_path, "--policy", recorded.config)
    missing = replay(tmp_path / "nothing", "--policy", recorded.config)
    other = replay(recorded.config, "--policy", recorded.config)

    assert (3, 3, 1) == (empty.exit_code, missing.exit_code, other.exit_code)
    assert "no recording in it" in empty.stderr
    assert "no such file or folder" in missing.stderr
    assert "no recording of a sidecar" in other.stderr


def test_a_gap_is_in_the_table(recorded: Recorded, tmp_path: Path) -> None:
    """A stretch in which the daemon was down is no calm stretch."""
    recordings = Recordings(tmp_path, limit_bytes=1 << 20, segment_bytes=1 << 20)
    rng = np.random.default_rng(1)
    for start in (0.0, 7200.0):
        for window in Traffic().windows(30, rng, start=start):
            recordings.append(window)

    found = replay(tmp_path, "--policy", recorded.config)

    assert "4 features, 60 windows from 1970-01-01 00:00:10 to 1970-01-01 02:05:00" in found.stdout
    assert "nothing recorded from 1970-01-01 00:05:00 to 1970-01-01 02:00:10" in found.stdout
