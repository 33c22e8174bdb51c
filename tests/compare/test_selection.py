"""Which units a comparison pictures."""

import pytest

from sidecar.compare import UNPINNED, flagged, named
from sidecar.errors import InvalidName

pytestmark = pytest.mark.unit


def test_the_first_units_of_a_layer_are_channels_where_nothing_else_is_said() -> None:
    """A kind and a view may be named, and units."""
    usual = named("m", "", ["_blocks.2"], [])
    logits = named("m", "f" * 64, ["_fc/logit", "_blocks.1;mean"], [7, 7, 2])

    assert [f"m@{UNPINNED}/_blocks.2/channel/{n}" for n in range(4)] == list(map(str, usual))
    assert [("_fc", 7), ("_fc", 2), ("_blocks.1", 7), ("_blocks.1", 2)] == [
        (key.layer.layer, key.index) for key in logits
    ]
    assert {"mean"} == {key.layer.view for key in logits[2:]}


@pytest.mark.parametrize("text", ["_blocks.2/neuron", "_blocks.2/dance", "", "a/b/channel"])
def test_a_layer_of_another_form_or_kind_is_refused(text: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(InvalidName):
        named("m", "", [text], [0])


def test_flags_of_the_model_are_taken_and_those_that_cannot_be_compared_are_told() -> None:
    """A pinned flag keeps its revision; flags of other models are left alone."""
    flags = [
        "m/_blocks.2/channel/3",
        "m@abc/_fc/logit/1",
        "m/_blocks.2/neuron/5",
        "other/_blocks.2/channel/3",
    ]

    found, left = flagged("m", "d" * 64, flags)

    assert [f"m@{'d' * 64}/_blocks.2/channel/3", "m@abc/_fc/logit/1"] == list(map(str, found))
    assert ("m/_blocks.2/neuron/5",) == left
