"""Attribution, caricature and search on EfficientNet-Lite0 with its ImageNet weights, on a photograph."""

from dataclasses import replace

import numpy as np
import pytest

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Attribution, Caricature, Search, Target
from sidecar.visualise import ImageModel, Materials, method_for
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


def test_a_search_climbs_on_a_real_unit(lite0: ImageModel) -> None:
    """Later generations are further than the first ones."""
    target = Target(FeatureKey(LayerKey("lite0", "r1", "_blocks.7", view=View.MEAN), 10))
    recipe = replace(Search(), generations=32, population=16)

    picture = method_for(recipe).run(lite0, [target], recipe, Materials())[0]

    assert picture.activation > picture.first_activation
    assert np.mean(picture.history[-8:]) > np.mean(picture.history[:8])
