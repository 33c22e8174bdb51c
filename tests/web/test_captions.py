import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.jobs import Portrait
from sidecar.web import captions

pytestmark = pytest.mark.unit

PORTRAIT = Portrait("lite0@ab/_blocks.14/channel/33", "c" * 64, "d" * 64, "e" * 64, 1.0)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
)


def test_a_whole_manifest_is_read() -> None:
    """What the worker writes comes out under the picture."""
    caption = captions.parse(
        PORTRAIT,
        {
            "method": {"name": "activation_maximisation", "version": 1},
            "activation": {"plain": 61.6, "augmented": 58.0, "augmented_spread": 2.0},
            "live": {"percentile": 99.5, "maximum": 6.1, "count": 12_000, "window": "baseline"},
            "recipe": {"seed": 7, "steps": 128},
            "duration_seconds": 14.0,
            "device": {"type": "cuda", "name": "H100"},
            "code": {"sidecar": "0.1.0"},
            "model": {"digest_verified": True},
        },
    )

    assert ("activation_maximisation", 61.6, 99.5, 7) == (
        caption.method,
        caption.activation,
        caption.percentile,
        caption.seed,
    )
    assert (12_000, 6.1, "baseline", "cuda", True) == (
        caption.live_count,
        caption.live_maximum,
        caption.live_window,
        caption.device,
        caption.verified,
    )


@given(st.dictionaries(st.sampled_from(["activation", "live", "recipe", "device", "code"]), JSON))
def test_any_json_makes_a_caption(manifest: dict[str, Any]) -> None:
    """A manifest from another release costs words, never the page."""
    caption = captions.parse(PORTRAIT, manifest)

    assert PORTRAIT == caption.portrait


@given(JSON)
def test_what_is_no_manifest_at_all_leaves_the_caption_bare(value: Any) -> None:
    """Lists, texts and numbers are read as an empty manifest."""
    if not isinstance(value, dict):
        assert captions.Caption(PORTRAIT) == captions.parse(PORTRAIT, value)


def test_a_truncated_or_missing_manifest_leaves_the_caption_bare(backend: Any) -> None:
    """A picture is shown even where its manifest is gone or cut short."""
    cut = backend.store(b'{"method": {"na', "application/json")
    huge = backend.store(b"[" + b"1," * (3 << 20) + b"1]", "application/json")
    for digest in (cut, huge, "f" * 64):
        portrait = Portrait("x", "c" * 64, "d" * 64, digest, 1.0)

        assert captions.Caption(portrait) == captions.caption(backend, portrait)


def test_numbers_beyond_reason_are_left_out() -> None:
    """JSON knows integers of any length and some writers emit NaN; neither reaches the page."""
    for number in ("9" * 400, "NaN", "Infinity", "true"):
        manifest = json.loads(f'{{"activation": {{"plain": {number}}}}}')

        assert captions.parse(PORTRAIT, manifest).activation is None
