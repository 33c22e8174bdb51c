"""The real child with a real, tiny network: pictures, manifests, failures, and its own end."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import sidecar
from sidecar.config import DatasetConfig, InputConfig, JobsConfig, ModelConfig
from sidecar.features import FeatureKey
from sidecar.jobs import Datasets, Job, JobRequest, JobState, LiveContext, Runner
from sidecar.jobs.child import Child
from sidecar.jobs.provenance import PHASES
from sidecar.jobs.runner import WORKER_COMMAND
from sidecar.jobs.spec import JobSpec, ModelSpec, encode_spec
from sidecar.jobs.verification import verify
from sidecar.recipes import Comparison, Examples, Maximisation, Recipe, Target, content_key
from sidecar.visualise import TypicalRange
from sidecar.weights import module_digest
from tests.jobs import tiny_model
from tests.jobs.bench import Bench, lives, wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(sidecar.__file__).parents[1]
FOLDER = Path(__file__).parent
RECIPE = Maximisation(steps=24, canvas=32, noise=0.02, zoom_min=0.8)


@pytest.fixture(scope="module")
def digest() -> str:
    """Return the digest of the tiny network."""
    return module_digest(tiny_model.make())


def target(revision: str, unit: int, layer: str = "2", kind: str = "channel") -> Target:
    """Return a unit of the tiny network; layer 2 is its second convolution, 6 its logits."""
    return Target(FeatureKey.parse(f"tiny@{revision}/{layer}/{kind}/{unit}"))


class Desk:
    """A runner of real children over a bench."""

    def __init__(self, bench: Bench, **settings: object) -> None:
        self.bench = bench
        self.factory = "make"
        self.other = "silent"
        self.weights: Path | None = None
        self.live: dict[str, LiveContext] = {}
        self.photos = bench.root / "photos"
        self.photos.mkdir(exist_ok=True)
        self.runner = Runner(
            bench.queue,
            bench.artifacts,
            self.model,
            JobsConfig(python_path=[FOLDER], threads=1, device="cpu", **settings),
            bench.scratch,
            lambda _: self.live,
            datasets=Datasets([DatasetConfig(name="photos", folder=self.photos)]),
        )
        bench.runners.append(self.runner)
        self.runner.start()

    def model(self, name: str) -> ModelConfig | None:
        """Return the tiny network's configuration, or that of its changed twin."""
        if name == "absent":
            return None
        return ModelConfig(
            name=name,
            factory=f"tiny_model:{self.factory if name == 'tiny' else self.other}",
            weights=self.weights,
            input=InputConfig(size=32),
        )

    def submit(self, *targets: Target, recipe: Recipe = RECIPE) -> Job:
        """Ask for pictures."""
        return self.bench.queue.submit(JobRequest(targets, recipe, "console"), time.time())

    def run(self, *targets: Target, recipe: Recipe = RECIPE) -> Job:
        """Ask for pictures and return the job once it has ended."""
        return self.bench.ended(self.submit(*targets, recipe=recipe))

    def manifest(self, job: Job, index: int = 0) -> dict:  # type: ignore[type-arg]  # JSON
        """Return a finished job's manifest."""
        return json.loads(self.bench.artifacts.get(job.portraits[index].manifest_digest))


@pytest.fixture
def desk(bench: Bench) -> Desk:
    """Return a desk; the bench stops its runner."""
    return Desk(bench)


def context(maximum: float, **ranges: np.ndarray) -> LiveContext:
    """Return a live distribution that is uniform between 0 and a maximum."""
    levels = np.array([0.01, 0.25, 0.5, 0.75, 0.99])
    return LiveContext(
        levels, levels * maximum, 1000, 0.0, maximum, "baseline", 1.7e9, 1.7e9 + 60, **ranges
    )


def test_pictures_come_with_all_that_made_them(desk: Desk, digest: str, tmp_path: Path) -> None:
    """A channel and a logit in one job: PNG and manifest agree with each other and the request."""
    torch.save(tiny_model.make().state_dict(), tmp_path / "weights.pt")
    desk.weights = tmp_path / "weights.pt"
    targets = (target(digest, 3), target(digest, 1, "6", "logit"))
    desk.live[str(targets[0].feature)] = context(1e-3)
    desk.live[str(targets[1].feature)] = context(1e6)
    began = time.time()

    done = desk.run(*targets)

    assert (JobState.DONE, "") == (done.state, done.error)
    assert done.steps == done.step >= RECIPE.steps
    assert done.preview_version >= 2
    for index, wanted in enumerate(targets):
        portrait, facts = done.portraits[index], desk.manifest(done, index)
        png = desk.bench.artifacts.get(portrait.picture_digest)
        image = Image.open(io.BytesIO(png))
        key = content_key(wanted, RECIPE)
        assert (32, 32) == image.size
        assert key == portrait.content_key == facts["content_key"]
        assert key == image.text["sidecar.content_key"]  # type: ignore[attr-defined]  # PNG has it
        verdict = facts["reliability"]["verdict"]
        assert verdict == portrait.verdict == image.text["sidecar.verdict"]  # type: ignore[attr-defined]
        assert portrait.reasons.splitlines() == facts["reliability"]["reasons"]
        assert {f"{phase}_seconds" for phase in PHASES} == set(facts["timings"])
        assert facts["timings"]["reliability_seconds"] > 0
        expected = {
            "schema": 2,
            "feature": str(wanted.feature),
            "layer": wanted.feature.layer.layer,
            "kind": wanted.feature.layer.kind.value,
            "unit": wanted.feature.index,
            "view": wanted.feature.layer.view.value,
            "scope": "all",
            "position": None,
            "seed": 0,
            "typical_digest": "",
            "method": {"name": Maximisation.method, "version": Maximisation.version},
            "model": {
                "name": "tiny",
                "digest": digest,
                "digest_verified": True,
                "factory": "tiny_model:make",
            },
            "weights_file": {
                "name": "weights.pt",
                "sha256": hashlib.sha256(desk.weights.read_bytes()).hexdigest(),
            },
            "job": {"id": done.id, "attempt": 1, "origin": "console"},
            "inputs": [],
            "parents": {"alert": None, "evidence": None},
            "reproduces": None,
            "picture": {
                "sha256": portrait.picture_digest,
                "bytes": len(png),
                "width": 32,
                "height": 32,
                "media_type": "image/png",
            },
        }
        assert expected == {name: facts[name] for name in expected}
        assert (24, 0.02, 0.8, 1.1) == tuple(
            facts["recipe"][name] for name in ("steps", "noise", "zoom_min", "decay")
        )
        assert {
            "size": 32,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "height": 32,
            "width": 32,
            "range": [0, 1.0],
            "channels": "rgb",
            "layout": "nchw",
        } == facts["input"]
        assert 0 < facts["model_load_seconds"] < facts["duration_seconds"]
        versions = {
            "sidecar": sidecar.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            "pillow": metadata.version("pillow"),
            "safetensors": metadata.version("safetensors"),
        }
        assert versions == {name: facts["code"][name] for name in versions}
        assert ("cpu", 1, None) == tuple(
            facts["device"][name] for name in ("type", "threads", "cuda")
        )
        assert facts["device"]["name"]
        assert facts["device"]["flags"]["cudnn_benchmark"] is False
        assert {f"{phase}_seconds" for phase in PHASES} == set(facts["timings"])
        assert all(seconds > 0 for seconds in facts["timings"].values())
        assert sum(facts["timings"].values()) <= facts["duration_seconds"]
        found = verify(portrait.manifest_digest, desk.bench.artifacts.get)
        assert found.ok, found.findings
        assert facts["activation"]["plain"] > facts["activation"]["start"]
        assert list(range(1, 25)) == facts["history"]["step"]
        assert 24 == len(facts["history"]["activation"])
        assert began - 1 <= datetime.fromisoformat(facts["started"]).timestamp() <= time.time()
        assert 0 < facts["duration_seconds"] < 60
    above, within = (desk.manifest(done, index)["live"] for index in (0, 1))
    assert ("above the observed maximum", 100.0) == (above["position"], above["percentile"])
    assert above["ratio_to_max"] > 1
    assert 0 <= within["percentile"] < 1
    assert ("baseline", 1000) == (within["window"], within["count"])


def test_a_job_loads_its_model_once_whatever_its_targets(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets of two layers share what one call of the factory returned."""
    log = tmp_path / "loads"
    monkeypatch.setenv("SIDECAR_TEST_LOADS", str(log))
    desk = Desk(bench, sandbox="off")  # in which the factory could not write its log
    desk.factory = "make_noted"
    recipe = Maximisation(steps=8, canvas=32)

    done = desk.run(target("v1", 3), target("v1", 1, "6", "logit"), recipe=recipe)

    assert (JobState.DONE, "") == (done.state, done.error)
    assert "loaded\n" == log.read_text()


def test_the_same_request_makes_the_same_picture(desk: Desk, digest: str) -> None:
    """Made anew a picture has the same bytes; asked again in other company, only the rest is made."""
    first = desk.run(target(digest, 3))
    desk.bench.queue.forget([first.portraits[0].picture_digest])

    second = desk.run(target(digest, 3))
    third = desk.run(target(digest, 5), target(digest, 3))

    assert first.portraits[0].picture_digest == second.portraits[0].picture_digest
    assert (False, False, False) == (first.from_cache, second.from_cache, third.from_cache)
    assert second.portraits[0] == third.portraits[1]


def test_another_model_than_asked_for_is_refused(desk: Desk) -> None:
    """A revision that is a digest must be that of the weights; one attempt is enough to know."""
    failed = desk.run(target("0" * 64, 3))

    assert (JobState.FAILED, "SC802", 1) == (failed.state, failed.error_code, failed.attempts)


def test_a_named_revision_is_marked_unverified(desk: Desk) -> None:
    """A revision somebody chose cannot be checked, and the manifest says so."""
    facts = desk.manifest(desk.run(target("v3", 3)))

    assert not facts["model"]["digest_verified"]
    assert facts["live"] is None
    assert facts["weights_file"] is None


@pytest.mark.parametrize(
    ("factory", "unit", "layer", "code", "words"),
    [
        ("make", 3, "nowhere", "SC402", "nowhere"),
        ("silent", 3, "2", "SC803", "3"),
        ("explode", 3, "2", "SC801", "no GPU of this name"),
    ],
)
def test_what_is_wrong_is_said_after_one_attempt(
    desk: Desk, factory: str, unit: int, layer: str, code: str, words: str
) -> None:
    """Unknown layers, silent units and broken factories keep their own codes."""
    desk.factory = factory

    failed = desk.run(target("v1", unit, layer))

    assert (JobState.FAILED, code, 1) == (failed.state, failed.error_code, failed.attempts)
    assert words in failed.error


def test_a_crash_in_native_code_is_told_with_its_last_words(desk: Desk) -> None:
    """After as many attempts as granted: the signal, and what the library printed."""
    desk.factory = "vanish"

    failed = desk.run(target("v1", 3))

    assert ("SC806", 3) == (failed.error_code, failed.attempts)
    assert "SIGABRT" in failed.error
    assert "fatal: out of device memory" in failed.error


def test_examples_are_made_anew_when_the_dataset_has_changed(desk: Desk, digest: str) -> None:
    """The manifest names the images; the same ones are an answer from the store."""
    folder = desk.photos
    for number in range(4):
        Image.effect_noise((40, 36), 60 + number).convert("RGB").save(folder / f"{number}.png")
    recipe = Examples(dataset="photos", top=2, bands=0, tile=32)

    first = desk.run(target(digest, 3), recipe=recipe)
    again = desk.run(target(digest, 3), recipe=recipe)
    (folder / "0.png").unlink()
    other = desk.run(target(digest, 3), recipe=recipe)

    assert [JobState.DONE] * 3 == [job.state for job in (first, again, other)]
    assert [False, True, False] == [job.from_cache for job in (first, again, other)]
    found = desk.manifest(first)
    assert "dataset_examples" == found["method"]["name"]
    assert 4 == found["findings"]["dataset"]["images"]
    assert 3 == desk.manifest(other)["findings"]["dataset"]["images"]
    assert found["activation"]["plain"] == found["findings"]["examples"][0]["value"]
    assert found["reliability"] is None
    assert "nothing was computed" in found["findings"]["not_assessed"]


def test_another_model_is_handed_over_and_named_in_the_key(desk: Desk, digest: str) -> None:
    """Its changed layer is lost; a changed twin is another answer; verification agrees on the key."""
    for number in range(32):
        noise = Image.effect_noise((40, 36), 30 + number).convert("RGB")
        noise.save(desk.photos / f"{number:02d}.png")
    recipe = Comparison(other="twin", dataset="photos", steps=2, canvas=32)

    first = desk.run(target(digest, 3), recipe=recipe)
    again = desk.run(target(digest, 3), recipe=recipe)
    desk.other = "make"
    equal = desk.run(target(digest, 3), recipe=recipe)

    jobs = (first, again, equal)
    assert [(JobState.DONE, "")] * 3 == [(job.state, job.error) for job in jobs]
    assert [False, True, False] == [job.from_cache for job in jobs]
    found = desk.manifest(first)
    assert ("lost", "twin") == (
        found["findings"]["fate"],
        found["findings"]["other"]["model"],
    )
    assert "same" == desk.manifest(equal)["findings"]["fate"]
    inputs = {one["kind"]: one["digest"] for one in found["inputs"]}
    assert {"dataset", "model"} == set(inputs)
    verified = verify(first.portraits[0].manifest_digest, desk.bench.artifacts.get)
    assert verified.ok
    assert [True] == [one.ok for one in verified.findings if one.check == "content_key"]


def test_another_model_that_is_not_configured_is_named(desk: Desk, digest: str) -> None:
    """The job fails for that reason, and no child is started."""
    (desk.photos / "one.png").write_bytes(b"never looked at")
    recipe = Comparison(other="absent", dataset="photos", steps=0)

    done = desk.run(target(digest, 3), recipe=recipe)

    assert JobState.FAILED == done.state
    assert "model 'absent' is not in the configuration: add it under models" == done.error


def test_typical_ranges_reach_the_picture(desk: Desk) -> None:
    """With ranges the manifest names their digest, and the key is that of the same ranges."""
    low, high = np.zeros(12, np.float32), np.full(12, 0.1, np.float32)
    wanted = target("v1", 3)
    layer = wanted.feature.layer
    desk.live[str(wanted.feature)] = context(2.0, typical_low=low, typical_high=high)
    recipe = Maximisation(steps=8, canvas=32, typical_range=1.0)

    done = desk.run(wanted, recipe=recipe)

    digest = TypicalRange({str(layer): low}, {str(layer): high}).digest(layer)
    assert digest == desk.manifest(done)["typical_digest"]
    assert content_key(wanted, recipe, {"typical": digest}) == done.portraits[0].content_key


def test_a_running_optimisation_is_watched_and_cancelled(desk: Desk) -> None:
    """Previews are real pictures, and cancelling takes at most two seconds."""
    job = desk.submit(target("v1", 3), recipe=Maximisation(steps=10_000, canvas=64))
    wait_until(lambda: desk.bench.queue.get(job.id).step >= 16, "sixteen steps")

    preview = Image.open(io.BytesIO(desk.runner.preview(job.id) or b""))
    began = time.monotonic()
    desk.bench.queue.cancel(job.id, time.time())
    cancelled = desk.bench.ended(job)

    assert (64, 64) == preview.size
    assert JobState.CANCELLED == cancelled.state
    assert time.monotonic() - began <= 2.5  # with the look that finds it ended


PARENT = """
import os, sys, time
from pathlib import Path
from sidecar.jobs.child import Child
from sidecar.jobs.provenance import PHASES
from sidecar.jobs.runner import WORKER_COMMAND
from sidecar.jobs.spec import JobSpec, ModelSpec, encode_spec
from sidecar.features import FeatureKey
from sidecar.recipes import Maximisation, Target

folder = Path(sys.argv[1])
spec = JobSpec("job", 1, "cli", os.getpid(),
    (Target(FeatureKey.parse("tiny@v1/2/channel/3")),), Maximisation(),
    ModelSpec("tiny", "tiny_model:hang", "", 32, (0.5,) * 3, (0.5,) * 3), "cpu")
child = Child(WORKER_COMMAND, encode_spec(spec), folder, dict(os.environ))
print(child.pid, flush=True)
while "hanging" not in child.output:
    child.pump(0.1)
print("hanging", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["starting", "hanging"])
def test_the_child_dies_with_a_killed_daemon(tmp_path: Path, moment: str) -> None:
    """Kill -9 of the parent, while torch is imported or while the factory hangs, ends the child."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(FOLDER)))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if moment == "hanging":
        assert "hanging\n" == parent.stdout.readline()

    alive = child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert alive
    began = time.monotonic()
    wait_until(lambda: not lives(child), "the end of the child")
    assert time.monotonic() - began < 5


def _hanging_worker(folder: Path, parent_pid: int) -> Child:
    spec = JobSpec(
        "job",
        1,
        "cli",
        parent_pid,
        (target("v1", 3),),
        Maximisation(),
        ModelSpec("tiny", "tiny_model:hang", "", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "cpu",
    )
    path = os.pathsep.join((str(ROOT), str(FOLDER)))
    return Child(WORKER_COMMAND, encode_spec(spec), folder, {**os.environ, "PYTHONPATH": path})


def _pump_until(child: Child, words: str) -> None:
    def look() -> bool:
        child.pump(0.05)
        return words in child.output

    wait_until(look, f"the child to say {words!r}")


def test_the_child_ends_when_stdin_ends(tmp_path: Path) -> None:
    """Where the kernel's signal does not reach, the closed pipe does."""
    child = _hanging_worker(tmp_path, os.getpid())
    try:
        _pump_until(child, "hanging")
        child._process.stdin.close()  # type: ignore[union-attr]  # noqa: SLF001 - what a dead daemon does
        wait_until(lambda: child.exited, "the end of the child")
        status = child.close()
    finally:
        child.close()

    assert -signal.SIGKILL == status


def test_an_orphan_from_birth_ends_by_itself(tmp_path: Path) -> None:
    """A child whose parent is not the daemon of its specification does nothing."""
    child = _hanging_worker(tmp_path, os.getppid())
    try:
        wait_until(lambda: child.pump(0.05) == [] and child.exited, "the end of the child")
        status = child.close()
    finally:
        child.close()

    assert 3 == status


def test_the_child_binds_itself_to_the_thread_that_started_it(tmp_path: Path) -> None:
    """Linux counts the thread, not the process, as the parent: a slot that ends takes its child."""
    started: list[Child] = []

    def slot() -> None:
        started.append(_hanging_worker(tmp_path, os.getpid()))
        _pump_until(started[0], "hanging")

    thread = threading.Thread(target=slot)
    thread.start()
    thread.join()
    try:
        wait_until(lambda: started[0].exited, "the end of the child")
    finally:
        status = started[0].close()

    assert -signal.SIGKILL == status


def test_the_daemon_side_never_imports_torch() -> None:
    """Queue and runner load in a process that must stay small."""
    code = "import sys, sidecar.jobs; print(sorted({'torch', 'PIL', 'onnxruntime'} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "[]\n" == done.stdout
