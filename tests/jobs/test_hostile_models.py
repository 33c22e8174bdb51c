"""Crafted model files through the real child: the job fails in words, and the runner works on."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from sidecar.config import InputConfig, JobsConfig, ModelConfig
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobRequest, JobState, Runner
from sidecar.recipes import Maximisation, Target
from tests import onnx_graphs as graphs
from tests.hostile_files import GRAPHS, WEIGHTS
from tests.jobs import tiny_model
from tests.jobs.bench import Bench

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).parent
RECIPE = Maximisation(steps=8, canvas=32, noise=0.02)


class Shelf:
    """A runner of real children over models by name."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.models: dict[str, ModelConfig] = {}
        jobs = JobsConfig(python_path=[FOLDER], threads=1, device="cpu")
        scratch = bench.scratch
        self.runner = Runner(
            bench.queue, bench.artifacts, self.models.get, jobs, scratch, lambda _: {}
        )
        bench.runners.append(self.runner)
        self.runner.start()

    def run(self, revision: str = "v1", layer: str = "2", **model: object) -> Job:
        """Ask for a picture of a model and return the job once it has ended."""
        self.models["m"] = ModelConfig(name="m", input=InputConfig(size=32), **model)  # type: ignore[arg-type]  # checked by pydantic
        target = Target(FeatureKey.parse(f"m@{revision}/{layer}/channel/1"))
        return self.bench.ended(self.bench.queue.submit(JobRequest((target,), RECIPE, "cli"), 1.0))


@pytest.fixture
def shelf(bench: Bench) -> Shelf:
    """Return a shelf; the bench stops its runner."""
    return Shelf(bench)


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "zip-pickle",
        "exported-programme",
        "header-too-long",
        "overlapping",
        "huge-shape",
    ],
)
def test_crafted_weights_fail_their_job_and_nothing_else(
    shelf: Shelf, tmp_path: Path, kind: str
) -> None:
    """One attempt, the reason in words, no code run; the next job of the same runner is done."""
    name, write, words = WEIGHTS[kind]
    write(tmp_path / name, tmp_path / "it-ran")
    torch.save(tiny_model.make().state_dict(), tmp_path / "good.pt")

    failed = shelf.run(factory="tiny_model:make", weights=tmp_path / name)
    done = shelf.run(factory="tiny_model:make", weights=tmp_path / "good.pt")

    assert (JobState.FAILED, "SC801", 1) == (failed.state, failed.error_code, failed.attempts)
    assert words in failed.error
    assert not (tmp_path / "it-ran").exists()
    assert JobState.DONE == done.state


@pytest.mark.parametrize(
    "kind",
    [
        "climbing-path",
        "absolute-path",
        "symbolic-link",
        "huge-tensor",
        "huge-constant",
        "recursion-beyond-the-parser",
        "nan",
        "one-pixel",
        "other-shape",
    ],
)
def test_crafted_graphs_fail_their_job_and_nothing_else(
    shelf: Shelf, tmp_path: Path, kind: str
) -> None:
    """One attempt, the reason in words, nothing of the machine's files in it."""
    write, words = GRAPHS[kind]
    write(tmp_path / "m.onnx", tmp_path / "it-ran")

    failed = shelf.run(onnx=tmp_path / "m.onnx")

    assert (JobState.FAILED, "SC801", 1) == (failed.state, failed.error_code, failed.attempts)
    assert words in failed.error
    assert "root:" not in failed.error
    assert not (tmp_path / "it-ran").exists()


def test_nan_in_weights_fails_the_job(shelf: Shelf, tmp_path: Path) -> None:
    """The tensor is named."""
    state = tiny_model.make().state_dict()
    state["2.weight"][0] = torch.nan
    torch.save(state, tmp_path / "w.pt")

    failed = shelf.run(factory="tiny_model:make", weights=tmp_path / "w.pt")

    assert ("SC801", 1) == (failed.error_code, failed.attempts)
    assert "2.weight holds NaN" in failed.error


def test_a_graph_becomes_a_picture_and_its_manifest_says_of_which_file(
    shelf: Shelf, tmp_path: Path
) -> None:
    """The honest twin of the crafted ones: same child, same runner."""
    path = graphs.save(graphs.conv_graph(), tmp_path / "m.onnx")

    done = shelf.run(layer="block.out", onnx=path)

    assert (JobState.DONE, "") == (done.state, done.error)
    facts = json.loads(shelf.bench.artifacts.get(done.portraits[0].manifest_digest))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert {"name": "m.onnx", "sha256": digest} == facts["weights_file"]
    assert digest == facts["model"]["digest"]


def test_a_model_that_only_runs_forward_is_refused_a_gradient_method(
    shelf: Shelf, tmp_path: Path
) -> None:
    """In words that say what would help."""
    path = graphs.save(graphs.conv_graph(), tmp_path / "m.onnx")

    failed = shelf.run(layer="sum", onnx=path, gradients=False)

    assert ("SC207", 1) == (failed.error_code, failed.attempts)
    assert "gradients: true" in failed.error


def test_a_model_of_another_digest_than_configured_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    """Whether graph or weights, and even where the feature's revision is a name."""
    path = graphs.save(graphs.conv_graph(), tmp_path / "m.onnx")

    graph = shelf.run(layer="sum", onnx=path, digest="0" * 64)
    weights = shelf.run(factory="tiny_model:make", digest="0" * 64)

    for failed in (graph, weights):
        assert ("SC802", 1) == (failed.error_code, failed.attempts)
        assert "0" * 64 in failed.error
