"""Recipes and content keys."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.recipes import Maximisation, Side, Target, Term, content_key, recipe_like, recipe_of

pytestmark = pytest.mark.unit

A, B = {"typical": "a"}, {"typical": "b"}
TARGET = Target(LayerKey("m", "r", "conv").feature(3))


@given(st.sampled_from([field.name for field in dataclasses.fields(Maximisation)]))
def test_every_recipe_value_is_part_of_the_content_key(name: str) -> None:
    """No two different requests share an answer."""
    before = getattr(Maximisation(), name)
    others = {"zoom_max": 0.9, "noise": 0.2, "zoom_min": 0.3, "parametrisation": "maco"}
    others |= {"colours": "plain", "objective": "cosine", "transforms": "jitter", "plateau": 0.1}
    others |= {"jitter": 0.1, "scale": 0.2}
    value = others[name] if name in others else before + 1
    changed = dataclasses.replace(Maximisation(), **{name: value})

    assert content_key(TARGET, Maximisation()) != content_key(TARGET, changed)


def test_equal_requests_have_equal_keys() -> None:
    """Naming a default value is the same request as leaving it out."""
    assert content_key(TARGET, Maximisation()) == content_key(
        TARGET, Maximisation.of({"steps": 128})
    )


def test_the_typical_range_counts_only_where_it_is_used() -> None:
    """A new baseline does not throw away pictures that never looked at it."""
    plain, shaped = Maximisation(), Maximisation(typical_range=1.0)

    assert content_key(TARGET, plain, A) == content_key(TARGET, plain, B)
    assert content_key(TARGET, shaped, A) != content_key(TARGET, shaped, B)


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
        Maximisation.of(values)


def test_only_kinds_with_a_picture_can_be_targets() -> None:
    """A head has no picture yet, and a channel has no position."""
    with pytest.raises(UnsupportedTarget, match="no picture of a head"):
        Target(LayerKey("m", "r", "attn", FeatureKind.HEAD).feature(0))
    with pytest.raises(UnsupportedTarget, match="position applies to neurons"):
        Target(TARGET.feature, position=(1, 1))


def test_a_method_is_named_in_the_recipe() -> None:
    """Without a name it is activation maximisation; an unknown one is refused with those there are."""
    assert Maximisation(steps=3) == recipe_of({"steps": 3})
    assert Maximisation(steps=3) == recipe_of(Maximisation(steps=3).values())
    with pytest.raises(UnsupportedTarget, match=r"recipe\.method 'dream' is unknown: use one of"):
        recipe_of({"method": "dream"})
    with pytest.raises(UnsupportedTarget, match=r"recipe\.method 3 is unknown"):
        recipe_of({"method": 3})


def test_configured_values_stand_where_the_request_is_silent() -> None:
    """The usual recipe of a site is changed value by value."""
    usual = Maximisation(steps=9, canvas=64)

    assert Maximisation(steps=9, canvas=64, seed=4) == recipe_like(usual, {"seed": 4})


@given(
    st.sampled_from(Side),
    st.lists(st.floats(-9, 9).filter(bool), max_size=3),
    st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_a_target_survives_its_document(
    side: Side, weights: list[float], position: tuple[int, int] | None
) -> None:
    """What is stored of a request is the request."""
    kind = FeatureKind.CHANNEL if position is None else FeatureKind.NEURON
    layer = LayerKey("m", "r", "conv", kind)
    terms = tuple(Term(layer.feature(i), weight) for i, weight in enumerate(weights))
    target = Target(layer.feature(3), position, side, terms)

    assert target == Target.of(json.loads(json.dumps(target.document())))


def test_the_two_sides_of_a_unit_are_two_answers() -> None:
    """A picture of what silences a unit is never handed out for what drives it."""
    keys = {
        content_key(target, Maximisation())
        for target in (
            TARGET,
            Target(TARGET.feature, side=Side.NEGATIVE),
            Target(TARGET.feature, terms=(Term(TARGET.feature.layer.feature(4)),)),
            Target(TARGET.feature, terms=(Term(TARGET.feature.layer.feature(4), -1.0),)),
        )
    }

    assert 4 == len(keys)


def test_units_are_weighed_within_one_layer() -> None:
    """A sum over layers, or with a weight that is no number, is refused in words."""
    other = LayerKey("m", "r", "elsewhere").feature(0)
    with pytest.raises(UnsupportedTarget, match="is not in the layer of"):
        Target(TARGET.feature, terms=(Term(other),))
    with pytest.raises(UnsupportedTarget, match="use a finite number other than 0"):
        Term(other, float("nan"))
    with pytest.raises(UnsupportedTarget, match="use at most 16"):
        Target(TARGET.feature, terms=(Term(TARGET.feature),) * 17)
