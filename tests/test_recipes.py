"""Recipes and content keys."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Recipe, Target, content_key

pytestmark = pytest.mark.unit

TARGET = Target(LayerKey("m", "r", "conv").feature(3))


@given(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]))
def test_every_recipe_value_is_part_of_the_content_key(name: str) -> None:
    """No two different requests share an answer."""
    before = getattr(Recipe(), name)
    smaller = {"zoom_max": 0.9, "noise": 0.2, "zoom_min": 0.3}
    changed = dataclasses.replace(Recipe(), **{name: smaller.get(name, before + 1)})

    assert content_key(TARGET, Recipe()) != content_key(TARGET, changed)


def test_equal_requests_have_equal_keys() -> None:
    """Naming a default value is the same request as leaving it out."""
    assert content_key(TARGET, Recipe()) == content_key(TARGET, Recipe.of({"steps": 128}))


def test_the_typical_range_counts_only_where_it_is_used() -> None:
    """A new baseline does not throw away pictures that never looked at it."""
    plain, shaped = Recipe(), Recipe(typical_range=1.0)

    assert content_key(TARGET, plain, "a") == content_key(TARGET, plain, "b")
    assert content_key(TARGET, shaped, "a") != content_key(TARGET, shaped, "b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "recipe.steps 0 is outside 1 to 10000"),
        ({"steps": 1.5}, "recipe.steps 1.5 is not a whole number"),
        ({"noise": "much"}, "recipe.noise 'much' is not a number"),
        ({"noise": float("nan")}, "recipe.noise nan is outside"),
        ({"seed": True}, "recipe.seed True is not a number"),
        ({"zoom_min": 0.9, "zoom_max": 0.5}, "recipe.zoom_min 0.9 is above zoom_max"),
        ({"stepz": 1}, "recipe.stepz is unknown: use one of"),
    ],
)
def test_a_bad_recipe_names_the_field_the_value_and_the_way_out(values: dict, message: str) -> None:
    """Whoever wrote the recipe can mend it from the message alone."""
    with pytest.raises(UnsupportedTarget, match=message):
        Recipe.of(values)


def test_only_kinds_with_a_picture_can_be_targets() -> None:
    """A head has no picture yet, and a channel has no position."""
    with pytest.raises(UnsupportedTarget, match="no picture of a head"):
        Target(LayerKey("m", "r", "attn", FeatureKind.HEAD).feature(0))
    with pytest.raises(UnsupportedTarget, match="position applies to neurons"):
        Target(TARGET.feature, position=(1, 1))
