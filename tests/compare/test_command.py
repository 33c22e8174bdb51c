"""``sidecar compare`` on a tiny network and its changed twin: without a daemon, and with one."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from sidecar.cli import main
from sidecar.features import FeatureKind, LayerKey, View
from sidecar.jobs.png import read_pixels
from sidecar.testing import running_daemon, wait_until
from sidecar.weights import module_digest
from sidecar.wire import Hello, RegisterLayer
from tests.ingest.conftest import GrpcClient
from tests.jobs import tiny_model

pytestmark = pytest.mark.e2e

JOBS = Path(tiny_model.__file__).parent


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A network, an equal one, and one whose second layer is dead; and images of noise."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(3)
    for number in range(40):
        ground = 100 + rng.integers(0, 30, 3) + rng.integers(0, 60, (36, 40, 3))
        Image.fromarray(ground.astype(np.uint8)).save(folder / f"{number:02d}.png")
    names = {"tiny": "make", "again": "make", "dead": "silent"}
    return {
        "models": [
            {"name": name, "factory": f"tiny_model:{factory}", "input": {"size": 32}}
            for name, factory in names.items()
        ],
        "flags": [
            {"feature": "tiny/2/channel/5"},
            {"feature": "tiny/2/neuron/5"},
            {"feature": "dead/0/channel/1"},
        ],
        "datasets": [{"name": "noise", "folder": str(folder)}],
        "jobs": {"python_path": [str(JOBS)], "threads": 1, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def config(settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings as a file; its state_dir is never made."""
    path = tmp_path_factory.mktemp("config") / "sidecar.yaml"
    path.write_text(yaml.safe_dump({**settings, "state_dir": "never/made"}))
    return path


def run(*arguments: str) -> Result:
    """Run the command on the dataset with short portraits."""
    usual = ("--dataset", "noise", "--set", "canvas=32")
    return CliRunner().invoke(main, ["compare", *arguments, *usual])


@pytest.fixture(scope="module")
def failed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Result, Path]]:
    """A comparison with the dead twin under a gate, and where its report lies."""
    to = tmp_path_factory.mktemp("report") / "new" / "folder"
    layers = ("--layer", "0", "--layer", "2")
    gate = ("--fail-on", "lost,moved=5%", "--set", "steps=2", "--to", str(to))
    yield run("tiny", "dead", *layers, *gate, "--config", str(config)), to
    assert not (config.parent / "never").exists()


def test_a_gate_fails_for_the_layer_that_was_changed_and_no_other(
    failed: tuple[Result, Path],
) -> None:
    """Exit 6; the report counts every unit, and pictures the flagged and the first ones."""
    result, to = failed

    assert 6 == result.exit_code, result.output
    report = json.loads((to / "report.json").read_text())
    below, changed = report["layers"]
    assert ("0/channel", 8, 8) == (below["layer"], below["units"], below["counts"]["same"])
    assert ("2/channel", 12, 12) == (changed["layer"], changed["units"], changed["counts"]["lost"])
    assert ["2/channel"] == [one["layer"] for one in report["broken"]]
    assert report["passed"] is False
    assert [("0/channel", n) for n in range(4)] + [("2/channel", 5)] == [
        (one["layer"], one["unit"]) for one in report["features"]
    ]
    digest = module_digest(tiny_model.make())
    assert digest == report["model"]["digest"] != report["other"]["digest"]
    assert f"tiny@{digest}/2/channel/5" == report["features"][-1]["feature"]
    assert "no_portrait_there" in report["features"][-1]["portraits"]
    assert "left out: tiny/2/neuron/5" in result.stderr
    assert "gate lost=0: 2/channel: 12 of 12 units lost" in result.stderr


def test_the_page_holds_every_picture_and_loads_nothing(failed: tuple[Result, Path]) -> None:
    """No script, no address of anything else; a picture for each feature, as in the JSON."""
    _, to = failed
    page = (to / "report.html").read_text()
    report = json.loads((to / "report.json").read_text())

    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    assert len(report["features"]) == len(re.findall('src="data:image/png;base64,', page))
    for one in report["features"]:
        assert one["picture"] in page
    for name in ("model", "other", "dataset"):
        assert report[name]["digest"] in page
    assert "<b>Failed</b>: lost=0, moved=5%" in page


def test_an_equal_model_passes(config: Path, tmp_path: Path) -> None:
    """Exit 0; without layers the flagged features are pictured."""
    gate = ("--fail-on", "lost,moved,new", "--set", "steps=0", "--to", str(tmp_path))

    result = run("tiny", "again", *gate, "--config", str(config))

    assert 0 == result.exit_code, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] is True
    assert [("2/channel", 5, "same")] == [
        (one["layer"], one["unit"], one["fate"]) for one in report["features"]
    ]


def test_a_daemon_compares_as_well(settings: dict[str, object], tmp_path: Path) -> None:
    """The features are those the daemon watches, the flags those it has; the counts are the same."""
    digest = module_digest(tiny_model.make())
    layer = LayerKey("tiny", digest, "2", FeatureKind.CHANNEL, View.MAX)
    with running_daemon(tmp_path / "state", settings) as running:
        client = GrpcClient(running.grpc)
        client.say(Hello("tiny", digest, client_id="client-1"))
        client.read()
        client.say(RegisterLayer(1, layer, 12))
        wait_until(running.daemon.monitor.layers)

        result = run(
            *("tiny", "dead", "--set", "steps=0", "--fail-on", "lost"),
            *("--to", str(tmp_path / "to"), "--address", running.grpc),
        )
        unknown = run("tiny", "away", "--address", running.grpc)
        client.close()

    assert 6 == result.exit_code, result.output
    report = json.loads((tmp_path / "to" / "report.json").read_text())
    assert [12] == [one["counts"]["lost"] for one in report["layers"]]
    assert [5] == [one["unit"] for one in report["features"]]
    assert unknown.exit_code
    assert "recipe.other 'away' is no model" in unknown.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "away"), "model 'away' is not in the configuration: tiny, again, dead"),
        (("again", "tiny"), "no feature of again is flagged: name layers with --layer"),
        (("tiny", "dead", "--fail-on", "same"), "fate 'same' is unknown"),
        (("tiny", "dead", "--set", "steps=many"), "recipe.steps 'many' is not a number"),
        (("tiny", "dead", "--unit", "3"), "--unit is of named layers"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_loaded(
    config: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Exit 2, and what to do."""
    result = run(*arguments, "--config", str(config))

    assert 2 == result.exit_code
    assert words in result.output


def test_a_failed_comparison_says_why(config: Path) -> None:
    """A unit that the layer does not have is an error of the job, in the worker's words."""
    result = run("tiny", "dead", "--layer", "2", "--unit", "99", "--config", str(config))

    assert 1 == result.exit_code
    assert "layer 2 has 12 units: use 0 to 11" in result.output


def test_pictures_are_whole(failed: tuple[Result, Path]) -> None:
    """What the page embeds are PNGs that can be read."""
    page = (failed[1] / "report.html").read_text()
    found = re.findall(r"base64,([^\"]+)", page)

    assert all(min(read_pixels(base64.b64decode(one)).shape[:2]) >= 32 for one in found)
