"""The manifest's numbers: ranks against live traffic, thinned histories, strict JSON."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.jobs import LiveContext
from sidecar.jobs.manifest import (
    encode_manifest,
    iso_time,
    live_facts,
    read_verdict,
    thin_history,
)

pytestmark = pytest.mark.unit

LEVELS = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999])


def context_of(values: np.ndarray) -> LiveContext:
    """Return the live distribution of some values."""
    return LiveContext(
        LEVELS,
        np.quantile(values, LEVELS),
        len(values),
        float(values.min()),
        float(values.max()),
        "baseline",
        1.0,
        2.0,
    )


def test_the_middle_of_the_table_is_interpolated() -> None:
    """Half-way between the 25 and 50 % quantiles is the 37.5th percentile."""
    live = context_of(np.linspace(0, 100, 10_001))

    facts = live_facts(live, 37.5)

    assert 37.5 == pytest.approx(facts["percentile"])
    assert 0.375 == pytest.approx(facts["ratio_to_max"])
    assert "within the observed range" == facts["position"]


@pytest.mark.parametrize(
    ("activation", "percentile", "position"),
    [
        (250.0, 100.0, "above the observed maximum"),
        (100.0, 100.0, "within the observed range"),
        (0.0, 0.0, "within the observed range"),
        (-1.0, 0.0, "below the observed minimum"),
        (math.inf, None, "no live values to compare with"),
        (math.nan, None, "no live values to compare with"),
    ],
)
def test_the_ends_are_named(activation: float, percentile: float | None, position: str) -> None:
    """Beyond what was ever seen is said in words, not extrapolated."""
    facts = live_facts(context_of(np.linspace(0, 100, 1001)), activation)

    assert (percentile, position) == (facts["percentile"], facts["position"])


def test_a_stretch_of_equal_values_ranks_at_its_end() -> None:
    """A unit that is zero for 80 % of traffic: zero is at the 75th percentile or above, not at 0."""
    values = np.concatenate([np.zeros(800), np.linspace(1, 2, 200)])

    assert live_facts(context_of(values), 0.0)["percentile"] >= 75.0


def test_without_live_values_nothing_is_claimed() -> None:
    """No count, or a table of NaN, gives no percentile."""
    nothing = LiveContext(LEVELS, np.full(8, np.nan), 0, math.nan, math.nan, "current")

    facts = live_facts(nothing, 3.0)

    assert (None, None, None) == (facts["percentile"], facts["ratio_to_max"], facts["started"])
    assert "no live values to compare with" == facts["position"]


def test_a_ratio_to_a_maximum_that_is_not_positive_is_none() -> None:
    """Twice of minus three is no ratio anyone can read."""
    assert live_facts(context_of(np.linspace(-9, -3, 100)), -1.0)["ratio_to_max"] is None


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    activations=st.lists(st.floats(-2e6, 2e6), min_size=2, max_size=20),
)
def test_the_percentile_grows_with_the_activation(
    values: list[float], activations: list[float]
) -> None:
    """Between 0 and 100, and never smaller for a larger activation."""
    live = context_of(np.array(values))

    found = [live_facts(live, activation)["percentile"] for activation in sorted(activations)]

    assert sorted(found) == found
    assert 0 <= found[0] <= found[-1] <= 100


@given(seed=st.integers(0, 2**32), activation=st.floats(0, 50))
def test_the_percentile_is_near_the_empirical_rank(seed: int, activation: float) -> None:
    """It lies between the empirical ranks of the neighbouring entries of the table."""
    data = np.random.default_rng(seed).lognormal(size=500)
    live = context_of(data)

    found = live_facts(live, activation)["percentile"] / 100

    rank = float((data <= activation).mean())
    ends = np.concatenate(([0.0], LEVELS, [1.0]))
    # A rank that close to an entry of the table may count as on either side of it.
    slack = 2 / len(data)
    below = ends[ends <= rank - slack].max(initial=0.0)
    above = ends[ends >= rank + slack].min(initial=1.0)
    assert below <= found <= above


@given(history=st.lists(st.floats(allow_nan=False), max_size=500))
def test_a_history_keeps_its_ends(history: list[float]) -> None:
    """At most 64 points, in order, first and last among them, each the value of its step."""
    thin = thin_history(history)

    assert min(len(history), 64) == len(thin["step"]) == len(thin["activation"])
    assert sorted(set(thin["step"])) == thin["step"]
    assert [history[int(step) - 1] for step in thin["step"]] == thin["activation"]
    if history:
        assert (1, len(history)) == (thin["step"][0], thin["step"][-1])


def test_a_manifest_is_strict_json() -> None:
    """NaN and infinities, at any depth, are null: other languages read it too."""
    facts = {
        "a": math.nan,
        "b": [1.0, (math.inf, {"c": -math.inf})],
        "d": "☃",
        "e": None,
        "f": True,
    }

    text = encode_manifest(facts).decode()

    assert "NaN" not in text
    assert "Infinity" not in text
    expected = {"a": None, "b": [1.0, [None, {"c": None}]], "d": "☃", "e": None, "f": True}
    assert expected == json.loads(text)
    assert text == encode_manifest(dict(reversed(facts.items()))).decode()


def test_times_are_utc() -> None:
    """Seconds become ISO 8601 with an offset; zero stands for never."""
    assert "2023-11-14T22:13:20.250+00:00" == iso_time(1_700_000_000.25)
    assert iso_time(0.0) is None


def test_a_verdict_is_read_back_or_left_out(tmp_path: Path) -> None:
    """What a child wrote is not relied on: an odd verdict, none, or no JSON are all none."""
    path = tmp_path / "manifest.json"

    def read(document: object) -> tuple[str, str]:
        path.write_text(json.dumps(document))
        return read_verdict(path)

    assert ("weak", "One.\nTwo lines.") == read(
        {"reliability": {"verdict": "weak", "reasons": ["One.", "Two\nlines."]}}
    )
    assert ("", "") == read({"reliability": {"verdict": "<b>", "reasons": []}})
    assert ("", "") == read({"reliability": None})
    assert ("", "") == read([])
    assert ("", "") == read_verdict(tmp_path / "nowhere")
