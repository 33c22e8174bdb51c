"""Flags that fit no feature: which part is wrong, what is there instead, and one line in the log."""

from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sidecar.features import Capture, FeatureKind, FeatureSelector, LayerKey, View
from sidecar.monitor import UnmatchedFlag, explain
from sidecar.testing import FakeClock, running_daemon, wait_until

REVISION = "3fa1c0de9a10b7c2" * 4
LAYERS = [
    (LayerKey("lite0", REVISION, "blocks.14", FeatureKind.CHANNEL, View.MAX), 192),
    (LayerKey("lite0", REVISION, "blocks.9", FeatureKind.CHANNEL, View.MAX), 112),
    (LayerKey("lite0", REVISION, "fc", FeatureKind.LOGIT, View.RAW), 1000),
    (LayerKey("tiny", "v1", "conv", FeatureKind.CHANNEL, View.MAX), 4),
]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("flag", "field", "nearest"),
    [
        ("lite/blocks.14/channel/3", "model", ("lite0", "tiny")),
        ("lite0@3fb/blocks.14/channel/3", "revision", ("3fa1c0de9a10",)),
        ("lite0/blocks.41/channel/3", "layer", ("blocks.14", "blocks.9", "fc")),
        ("lite0/blocks.14/neuron/3", "kind", ("channel",)),
        ("lite0/blocks.14/channel/3;mean", "view", ("max",)),
        ("lite0/blocks.14/channel/3;max;bos", "scope", ("all",)),
        ("lite0/blocks.14/channel/192", "index", ("0 to 191",)),
    ],
)
def test_the_part_that_is_wrong_is_named_with_what_is_there(
    flag: str, field: str, nearest: tuple[str, ...]
) -> None:
    """A typing error is mended by looking at the line."""
    found = explain(FeatureSelector.parse(flag), LAYERS)

    assert found is not None
    assert (field, nearest) == (found.field, found.nearest)
    assert nearest[0] in found.words


@pytest.mark.unit
def test_without_any_layer_the_model_is_what_is_missing() -> None:
    """Nothing is offered where nothing is there."""
    found = explain(FeatureSelector.parse("m/a/channel/0"), [])

    assert UnmatchedFlag("m/a/channel/0", "model", "m", ()) == found
    assert "nor any other so far" in found.words


@pytest.mark.unit
@given(
    st.sampled_from([k for k, _ in LAYERS]), st.integers(0, 1200), st.sampled_from(["", "3", "v1"])
)
def test_a_flag_is_explained_exactly_when_it_fits_nothing(
    key: LayerKey, index: int, revision: str
) -> None:
    """What the monitor calls unmatched has an explanation, and nothing else has."""
    flag = FeatureSelector(key.model, key.layer, key.kind, index, key.view, revision)
    fits = any(flag.matches(one) and index < width for one, width in LAYERS)

    assert fits == (explain(flag, LAYERS) is None)


@pytest.mark.service
def test_a_flag_that_fits_nothing_is_one_line_of_the_log(tmp_path: Path) -> None:
    """It is told once, when no layer has come for a minute: hooks register one after another."""
    clock = FakeClock(1000.0)
    settings = {
        "models": [{"name": "tiny"}],
        "flags": [{"feature": f"tiny/{name}/channel/1"} for name in ("conv", "cnov")],
    }
    with (
        structlog.testing.capture_logs() as logs,
        running_daemon(tmp_path, settings, clock=clock) as running,
    ):

        def told() -> list[tuple[str, str, list[str]]]:
            found = [one for one in logs if one["event"] == "flag_unmatched"]
            return [(one["flag"], one["field"], one["nearest"]) for one in found]

        running.daemon.operations.warn_unmatched()
        running.daemon.monitor.register(LAYERS[3][0], 4, Capture(), clock())
        running.daemon.operations.warn_unmatched()
        early = told()
        clock.advance(61)  # housekeeping looks once a minute
        wait_until(told, what="the line")
        running.daemon.operations.warn_unmatched()

        assert [] == early
        assert [("tiny/cnov/channel/1", "layer", ["conv"])] == told()
