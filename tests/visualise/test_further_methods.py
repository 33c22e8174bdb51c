"""Attribution, caricature, atlas and search on EfficientNet-Lite0 with its ImageNet weights, on photographs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Atlas, Attribution, Caricature, Search, Target
from sidecar.visualise import ImageModel, Materials, method_for
from tests.visualise.test_examples import as_dataset
from tests.visualise.test_real_model import lite0, photographs

pytestmark = pytest.mark.service

__all__ = ["lite0"]  # a fixture

DIGEST = "ab" * 32
EGYPTIAN_CAT = 285


def test_the_pixels_of_a_cat_make_it_a_cat(lite0: ImageModel) -> None:
    """Without them the logit falls sooner than without any others; shuffled weights mark others."""
    layer = LayerKey("lite0", "r1", "_fc", FeatureKind.LOGIT, View.RAW)
    materials = Materials(images={DIGEST: np.asarray(photographs.chelsea())})
    recipe = Attribution(
        image=DIGEST,
        technique="integrated_gradients",
        baseline="grey",
        steps=32,
        curve=8,
        randomise="yes",
    )
    target = Target(FeatureKey(layer, EGYPTIAN_CAT))

    found = method_for(recipe).run(lite0, [target], recipe, materials)[0].findings

    facts = found["maps"]["integrated_gradients"]
    assert facts["completeness_ratio"] < 0.2
    assert facts["deletion_auc"] < 0.7 * found["random_order"]["deletion_auc"]
    assert facts["randomised_rank_correlation"] < 0.6


def test_a_layer_answers_to_a_caricature_as_to_the_photograph(lite0: ImageModel) -> None:
    """Their directions agree, and the start's did not."""
    target = Target(FeatureKey(LayerKey("lite0", "r1", "_blocks.10"), 3))
    materials = Materials(images={DIGEST: np.asarray(photographs.chelsea())})
    recipe = Caricature(image=DIGEST, steps=32)

    found = method_for(recipe).run(lite0, [target], recipe, materials)[0].findings

    assert found["cosine_of_start"] < 0.3
    assert found["cosine"] > 0.5


def test_an_atlas_tells_photographs_apart(lite0: ImageModel, tmp_path: Path) -> None:
    """Cells differ in the unit as they do in place, and the strongest one's picture drives it."""
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(photographs, name)()).save(tmp_path / f"{name}.png")
    target = Target(FeatureKey(LayerKey("lite0", "r1", "_blocks.4"), 3))
    recipe = Atlas(dataset="noise", positions=32, grid=2, steps=16)
    given = Materials(datasets={"noise": as_dataset(tmp_path)})

    picture = method_for(recipe).run(lite0, [target], recipe, given)[0]

    cells = picture.findings["cells"]
    assert len(cells) > 1
    assert len({one["unit_mean"] for one in cells}) == len(cells)
    assert 0.1 < sum(picture.findings["variance_explained"]) < 1
    assert picture.activation > picture.first_activation


def test_a_search_climbs_on_a_real_unit(lite0: ImageModel) -> None:
    """Later generations are further than the first ones."""
    target = Target(FeatureKey(LayerKey("lite0", "r1", "_blocks.7", view=View.MEAN), 10))
    recipe = replace(Search(), generations=32, population=16)

    picture = method_for(recipe).run(lite0, [target], recipe, Materials())[0]

    assert picture.activation > picture.first_activation
    assert np.mean(picture.history[-8:]) > np.mean(picture.history[:8])
