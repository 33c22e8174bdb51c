"""Identities: text forms, digests, slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import InvalidName, ShapeMismatch
from sidecar.features import (
    SLICE_LIMIT,
    FeatureKey,
    FeatureKind,
    FeatureSelector,
    LayerKey,
    LayerSample,
    Request,
    Scope,
    Slice,
    View,
    default_view,
    weights_digest,
)

pytestmark = pytest.mark.unit

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,20}", fullmatch=True)
layers = st.builds(
    LayerKey,
    model=names,
    revision=names,
    layer=names,
    kind=st.sampled_from(FeatureKind),
    view=st.sampled_from(View),
    scope=st.sampled_from(Scope),
)
keys = st.builds(FeatureKey, layer=layers, index=st.integers(0, 10**9))


@given(keys)
def test_a_feature_key_survives_its_text_form(key: FeatureKey) -> None:
    """What is printed can be read back, also from a URL path."""
    assert key == FeatureKey.parse(str(key))
    assert key == FeatureKey.parse(key.path)


@given(st.text(max_size=80))
def test_parsing_any_text_raises_nothing_but_our_error(text: str) -> None:
    """Garbage in a URL is a clear refusal, never a crash."""
    try:
        key = FeatureKey.parse(text)
    except InvalidName:
        return
    assert key == FeatureKey.parse(str(key))


@given(keys)
def test_a_selector_without_revision_matches_every_revision(key: FeatureKey) -> None:
    """A flag in the configuration outlives a new revision of the model."""
    layer = key.layer
    text = f"{layer.model}/{layer.layer}/{layer.kind}/{key.index};{layer.view};{layer.scope}"
    selector = FeatureSelector.parse(text)

    other = LayerKey(layer.model, "other", layer.layer, layer.kind, layer.view, layer.scope)
    assert selector.matches(layer)
    assert selector.matches(other)


def test_a_pinned_selector_matches_by_prefix_only_its_revision() -> None:
    """A flag set from a page belongs to the revision of that page."""
    selector = FeatureSelector.parse("lite0@3fa1/_blocks.14/channel/33")

    assert selector.matches(LayerKey("lite0", "3fa1" + "0" * 60, "_blocks.14"))
    assert not selector.matches(LayerKey("lite0", "4fa1" + "0" * 60, "_blocks.14"))
    assert not selector.matches(LayerKey("lite0", "3fa1", "_blocks.14", view=View.MEAN))
    assert not selector.matches(LayerKey("lite0", "3fa1", "_blocks.14", scope=Scope.BOS))
    assert str(selector) == "lite0@3fa1/_blocks.14/channel/33"


def test_the_view_is_part_of_the_text_only_where_it_is_unusual() -> None:
    """Ordinary keys stay short."""
    usual = LayerKey("m", "r", "conv").feature(3)
    unusual = LayerKey("m", "r", "conv", view=View.MEAN).feature(3)
    scoped = LayerKey("m", "r", "conv", scope=Scope.PROMPT).feature(3)

    assert str(usual) == "m@r/conv/channel/3"
    assert str(unusual) == "m@r/conv/channel/3;mean"
    assert str(scoped) == "m@r/conv/channel/3;max;prompt"
    assert (usual.label, unusual.label) == ("3", "3;mean")


@pytest.mark.parametrize("bad", ["", " ", "a b", "-x", "é", "a/b", "a" * 201, 'x"y', "a\nb"])
def test_names_that_could_break_a_label_or_a_url_are_refused(bad: str) -> None:
    """Quotes, spaces, slashes and line ends never reach an exposition or a path."""
    with pytest.raises(InvalidName, match="layer"):
        LayerKey("m", "r", bad)


def test_a_slice_is_sorted_and_bounded() -> None:
    """The same traffic has one name, and one slice cannot multiply series without end."""
    found = Slice.of({"route": "/v1/eu", "canary": "no"})

    assert str(found) == "canary=no,route=/v1/eu"
    with pytest.raises(InvalidName, match="at most"):
        Slice.of({f"k{i}": "v" for i in range(SLICE_LIMIT + 1)})
    with pytest.raises(InvalidName, match="slice k"):
        Slice.of({"k": 'a"b'})


def test_the_default_view_of_each_kind_is_one_of_its_views() -> None:
    """Every kind has a view when none is named."""
    views = {kind: default_view(kind) for kind in FeatureKind}

    assert View.MAX is views[FeatureKind.CHANNEL]
    assert View.RAW is views[FeatureKind.LOGIT]


tensors = st.lists(
    st.tuples(
        names,
        st.sampled_from(["float32", "int64"]),
        st.tuples(st.integers(0, 4)),
        st.binary(max_size=8),
    ),
    max_size=5,
    unique_by=lambda item: item[0],
)


@given(tensors, st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_tensors(items: list, rng) -> None:  # noqa: ANN001
    """The same weights stored in another order are the same revision."""
    shuffled = list(items)
    rng.shuffle(shuffled)

    assert weights_digest(items) == weights_digest(shuffled)


def test_a_digest_changes_with_name_dtype_shape_and_bytes() -> None:
    """Any difference in the weights is another revision."""
    base = ("w", "float32", (2,), b"01234567")
    changed = [("v", *base[1:]), ("w", "int64", *base[2:]), ("w", "float32", (1, 2), base[3])]
    changed.append((*base[:3], b"01234568"))

    digests = {weights_digest([item]) for item in [base, *changed]}

    assert len(digests) == 5


def test_a_sample_refuses_arrays_that_do_not_fit_together() -> None:
    """A row without a request, or a flat array, is a programming error found at once."""
    layer = LayerKey("m", "r", "l")
    with pytest.raises(ShapeMismatch):
        LayerSample(layer, np.zeros((2, 3), np.float32), np.zeros(1, np.int32), (Request(),))
    with pytest.raises(ShapeMismatch):
        LayerSample(layer, np.zeros(3, np.float32), np.zeros(3, np.int32), (Request(),))
