import math
from typing import Any

import pytest

from sidecar.errors import InvalidInput, SidecarError
from sidecar.features import FeatureKind, Request, View
from sidecar.hooks import Plan, Tap, current_requests
from sidecar.hooks.requests import active_requests

pytestmark = pytest.mark.unit


def test_a_tap_has_its_kinds_view() -> None:
    """Channels are seen by their maximum, heads by their mean, unless somebody says otherwise."""
    assert Tap("a").resolved_view is View.MAX
    assert Tap("a", FeatureKind.HEAD, heads=2).resolved_view is View.MEAN
    assert Tap("a", FeatureKind.CHANNEL, View.MEAN).resolved_view is View.MEAN


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": FeatureKind.DIRECTION},
        {"kind": FeatureKind.LATENT, "view": View.MAX},
        {"kind": FeatureKind.NEURON, "encoder": str},
        {"kind": FeatureKind.CHANNEL, "view": View.ENTROPY},
        {"kind": FeatureKind.NEURON, "view": View.MAX},
        {"kind": FeatureKind.HEAD},
        {"layer": "a/b"},
    ],
)
def test_taps_that_could_never_deliver_are_refused(arguments: dict[str, Any]) -> None:
    """A mistake is told when the plan is made, not counted later in every forward pass."""
    with pytest.raises(InvalidInput):
        Tap("a", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "a b"},
        {"taps": ()},
        {"revision": "?"},
        {"sampling_rate": -0.1},
        {"sampling_rate": 1.1},
        {"sampling_rate": math.nan},
        {"dtype": "f64"},
        {"max_rows": 0},
        {"error_limit": 0},
        {"overhead_budget": 0.0},
        {"overhead_budget": -0.1},
        {"overhead_budget": 1.1},
        {"overhead_budget": math.nan},
    ],
)
def test_plans_no_hook_could_follow_are_refused(arguments: dict[str, Any]) -> None:
    """Every value is checked when the plan is made."""
    with pytest.raises(SidecarError):
        Plan(**{"model": "m", "taps": (Tap("a"),), **arguments})


def test_requests_belong_to_the_innermost_block() -> None:
    """Blocks nest, and leave nothing behind even after an error."""
    outer, inner = Request("outer"), Request("inner")

    def fail() -> None:
        with current_requests([inner]):
            assert active_requests() == (inner,)
            raise KeyError

    with current_requests([outer]):
        with pytest.raises(KeyError):
            fail()
        assert active_requests() == (outer,)
    assert active_requests() == ()


@pytest.mark.parametrize(
    ("glob", "matched"),
    [
        ("", [""]),
        ("layer*", ["layer1", "layer2"]),
        ("*.*", ["layer1.0", "layer1.1"]),
        ("layer?.[0-9].conv*", ["layer1.0.conv1", "layer1.1.conv2"]),
        ("layer1.**", ["layer1", "layer1.0", "layer1.0.conv1", "layer1.1", "layer1.1.conv2"]),
        ("**.conv?", ["layer1.0.conv1", "layer1.1.conv2"]),
        ("layer1.**.conv2", ["layer1.1.conv2"]),
        ("layer1.**.0", ["layer1.0"]),
        ("layer1.0", ["layer1.0"]),
        ("Layer1", []),
    ],
)
def test_a_star_stays_between_two_dots(glob: str, matched: list[str]) -> None:
    """One star stands for a part of the path, two for any number of parts, none for the root."""
    paths = ["", "layer1", "layer1.0", "layer1.0.conv1", "layer1.1", "layer1.1.conv2", "layer2"]

    assert matched == [path for path in paths if Tap(glob).matches(path)]
