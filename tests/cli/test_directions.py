"""Portraits of directions from the command line and over HTTP, by a real daemon and its worker."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from sidecar.cli import main
from sidecar.features import Capture, LayerKey
from sidecar.testing import RunningDaemon, running_daemon
from sidecar.weights import module_digest
from tests.jobs import tiny_model

pytestmark = pytest.mark.e2e

FOLDER = Path(tiny_model.__file__).parent
NAMES = ["stripes", "dots", "edges"]


def write_vectors(path: Path) -> Path:
    """Write three directions of the tiny network's second convolution."""
    np.save(path, np.random.default_rng(4).normal(size=(3, 12)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dictionary lies."""
    found = tmp_path_factory.mktemp("directions")
    write_vectors(found / "concepts.npy")
    (found / "names.json").write_text(json.dumps(NAMES), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningDaemon]:
    """A daemon with a dictionary over a layer of which no direction was ever measured."""
    content = (folder / "concepts.npy").read_bytes()
    settings = {
        "models": [{"name": "tiny", "factory": "tiny_model:make", "input": {"size": 32}}],
        "dictionaries": [
            {
                "name": "concepts",
                "model": "tiny",
                "layer": "2",
                "file": folder / "concepts.npy",
                "labels": folder / "names.json",
                "digest": hashlib.sha256(content).hexdigest(),
            },
            {
                "name": "unnamed",
                "model": "tiny",
                "layer": "0",
                "file": write_vectors(folder / "unnamed.npy"),
            },
        ],
        "jobs": {
            "python_path": [FOLDER],
            "threads": 1,
            "device": "cpu",
            "recipe": {"steps": 12, "canvas": 32, "zoom_min": 0.8},
        },
    }
    with running_daemon(folder / "state", settings) as found:
        layer = LayerKey("tiny", module_digest(tiny_model.make()), "2")
        found.daemon.monitor.register(layer, 12, Capture(), 0.0)
        yield found


@pytest.fixture(autouse=True)
def _mended(folder: Path) -> Iterator[None]:
    """Put the dictionary back that a test has changed."""
    shutil.copy2(folder / "concepts.npy", folder / "kept.npy")
    yield
    shutil.copy2(folder / "kept.npy", folder / "concepts.npy")


def run(running: RunningDaemon, *arguments: str) -> Result:
    """Run one command against the daemon."""
    return CliRunner().invoke(main, [*arguments, "--address", running.grpc])


def made(running: RunningDaemon, feature: str, *more: str) -> dict[str, Any]:
    """Run a job to its end and return the manifest of its picture."""
    answer = run(running, "job", "run", feature, *more, "-o", "json")
    assert 0 == answer.exit_code, answer.output
    artifact = json.loads(answer.stdout)["artifacts"][0]
    found = json.loads(running.daemon.storage.artifacts.get(artifact["manifest_digest"]))
    return found | {"digests": artifact}


def test_a_direction_is_drawn_by_its_name_or_its_row(running: RunningDaemon, folder: Path) -> None:
    """Both are one request; the manifest has the dictionary and its digest, and is verified."""
    named, numbered = made(running, "tiny/2/direction/dots"), made(running, "tiny/2/direction/1")
    other = made(running, "tiny/2/direction/edges")

    digest = hashlib.sha256((folder / "concepts.npy").read_bytes()).hexdigest()
    assert [{"kind": "directions", "name": "concepts", "digest": digest}] == named["inputs"]
    assert ("direction", 1, "max") == (named["kind"], named["unit"], named["view"])
    assert named["digests"] == numbered["digests"]
    assert named["content_key"] == numbered["content_key"] != other["content_key"]
    assert named["activation"]["plain"] > named["activation"]["start"]
    checked = run(running, "artifact", "verify", named["digests"]["picture_digest"])
    assert 0 == checked.exit_code, checked.output


def test_a_direction_is_asked_for_over_http(running: RunningDaemon) -> None:
    """The console's API takes the same words, and the same request is answered from the store."""
    known = made(running, "tiny/2/direction/stripes")
    with httpx.Client(base_url=running.console_url) as client:
        posted = client.post("/api/v1/jobs", json={"features": ["tiny/2/direction/stripes"]})
        unknown = client.post("/api/v1/jobs", json={"features": ["tiny/2/direction/plaid"]})
        listed = client.get("/api/v1/jobs", params={"feature": "tiny/2/direction/stripes"})
    watched = run(running, "job", "watch", posted.json()["id"], "-o", "json")

    assert 202 == posted.status_code, posted.text
    assert (404, "SC403") == (unknown.status_code, unknown.json()["code"])
    assert "plaid" in unknown.text
    assert posted.json()["id"] == listed.json()["jobs"][0]["id"]
    assert known["digests"]["picture_digest"] in watched.stdout


def test_other_methods_take_directions_or_say_that_they_do_not(running: RunningDaemon) -> None:
    """A dream takes them, a search does not, and says which methods do."""
    dream = made(running, "tiny/2/direction/dots", *settings(method="deep_dream", canvas=40))

    refused = run(running, "job", "run", "tiny/2/direction/dots", *settings(method="search"))

    assert "directions" == dream["inputs"][0]["kind"]
    assert 1 == refused.exit_code
    assert "no directions that this method takes" in refused.output


def settings(**values: object) -> list[str]:
    """Return recipe values as arguments."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("tiny/2/direction/plaid", "has no direction 'plaid': use the row's number or one of"),
        ("tiny/2/direction/3", "names 3 directions: use 0 to 2"),
        ("tiny/4/direction/1", "no such layer"),
        ("tiny/4/direction/dots", "no dictionary over layer '4' of model 'tiny': name its file"),
        ("tiny/0/direction/dots", "its labels, none: name a file under dictionaries.labels"),
        ("other/2/direction/1", "no layer of model 'other'"),
        ("tiny@gone/2/direction/1", "at that revision"),
    ],
)
def test_a_direction_that_is_not_there_is_refused_in_words(
    running: RunningDaemon, feature: str, words: str
) -> None:
    """Before anything is queued, with what to do."""
    refused = run(running, "job", "run", feature)

    assert refused.exit_code in (2, 3)
    assert words in refused.output


def test_a_direction_is_reproduced_from_the_same_dictionary_alone(
    running: RunningDaemon, folder: Path
) -> None:
    """Bit for bit with it; with another one the answer says which file is wanted."""
    picture = made(running, "tiny/2/direction/dots")["digests"]["picture_digest"]

    same = run(running, "artifact", "reproduce", picture, "--strict")
    np.save(folder / "concepts.npy", np.ones((3, 12), np.float32))
    changed = run(running, "artifact", "reproduce", picture)

    assert 0 == same.exit_code, same.output
    assert 0 != changed.exit_code
    assert "dictionaries[].digest says" in changed.output


def test_another_file_than_was_promised_makes_no_picture(
    running: RunningDaemon, folder: Path
) -> None:
    """The configuration's digest is held against it when the job is claimed."""
    np.save(folder / "concepts.npy", np.ones((3, 12), np.float32))

    failed = run(running, "job", "run", "tiny/2/direction/dots", "--set", "seed=77")

    assert 1 == failed.exit_code
    assert "SC802" in failed.output
    assert "dictionary concepts" in failed.output


def _bytes(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def _huge() -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


CRAFTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "pickle": (lambda: _bytes(np.array([{}], object)), "allow_pickle"),
    "no numpy file": (lambda: b"\x80\x04.", "does not begin as"),
    "wrong width": (lambda: _bytes(np.ones((3, 11), np.float32)), "over 11 units"),
    "cube": (lambda: _bytes(np.ones((1, 3, 12), np.float32)), "shape (1, 3, 12)"),
    "nan": (lambda: _bytes(np.full((3, 8), np.nan)), "row 0 is NaN"),
    "nothing": (lambda: _bytes(np.zeros((3, 8))), "0 everywhere"),
    "cut short": (lambda: _bytes(np.ones((3, 8)))[:-5], "cannot be read"),
    "huge": (_huge, "claims more"),
    "few rows": (lambda: _bytes(np.ones((1, 8), np.float32)), "has 1 directions: use 0 to 0"),
}


@pytest.mark.parametrize("kind", list(CRAFTED))
def test_a_crafted_dictionary_fails_its_job_and_nothing_else(
    running: RunningDaemon, folder: Path, kind: str
) -> None:
    """One attempt, the reason in words; the next job of the same daemon is done."""
    write, words = CRAFTED[kind]
    (folder / "unnamed.npy").write_bytes(write())

    failed = run(running, "job", "run", "tiny/0/direction/1")

    assert 1 == failed.exit_code
    assert words in failed.output
    assert "attempt 2" not in failed.output
    assert made(running, "tiny/2/direction/dots")


def test_safetensors_hold_directions_too(running: RunningDaemon, folder: Path) -> None:
    """The same picture, from a file of another digest, so under another key."""
    before = made(running, "tiny/2/direction/dots")
    save_file({"directions": np.load(folder / "concepts.npy")}, folder / "c.safetensors")
    found = running.daemon.operations
    configured = found._dictionaries._configured["tiny", "2"]  # noqa: SLF001 - a second file, no second daemon
    swapped = configured.model_copy(update={"file": folder / "c.safetensors", "digest": ""})
    found._dictionaries._configured["tiny", "2"] = swapped  # noqa: SLF001 - as above
    try:
        after = made(running, "tiny/2/direction/dots")
    finally:
        found._dictionaries._configured["tiny", "2"] = configured  # noqa: SLF001 - as above

    assert before["content_key"] != after["content_key"]
    assert before["activation"] == after["activation"]
