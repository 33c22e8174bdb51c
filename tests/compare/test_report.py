"""A report says what its manifests say, and its page lets none of it become markup."""

import json
from typing import Any

import pytest

from sidecar.compare import Answer, as_json, parse_rules, render_page, report_of
from sidecar.errors import CorruptState

pytestmark = pytest.mark.unit

HOSTILE = '<script>alert("x")</script>'


def facts(unit: int, fate: str, on_images: str, **more: Any) -> dict[str, Any]:
    """Return a manifest, as far as a report reads it: a layer of ten, one of them lost."""
    findings = {
        "fate": fate,
        "fate_on_images": on_images,
        "reason": f"because of {HOSTILE}",
        "other": {"model": "b", "digest": "b" * 64, "layer": HOSTILE, "unit": 3},
        "dataset": {"name": "photos", "digest": "c" * 64, "images": 40},
        "correlation": None,
        "best": 3,
        "best_correlation": None,
        "median_shift": None,
        "spread_ratio": 1.0,
        "portraits": {"transfer": 0.25, "no_portrait_there": HOSTILE},
        "layer": {
            "units": 10,
            "counts": {"same": 9, "moved": 0, "lost": 1, "new": 2},
            "listed": {"moved": [], "lost": [4], "new": [1, 2]},
            "median_correlation": None,
            "median_best_correlation": 0.5,
            "limit": 0.5,
        },
    }
    return {
        "schema": 2,
        "feature": f"a@configured/conv/channel/{unit}",
        "model": {"name": "a", "digest": "a" * 64},
        "recipe": {"method": "comparison", "steps": 4},
        "code": {"torch": "2.13", "onnxruntime": None},
        "device": {"type": "cpu", "name": HOSTILE},
        "started": f"2026-11-26T07:00:0{unit}+00:00",
        "findings": findings | more,
    }


def answer(unit: int, document: dict[str, Any]) -> Answer:
    """Return it as it lies in a store."""
    manifest = json.dumps(document).encode()
    return Answer(f"key {unit}", f"picture {unit}", b"png", f"manifest {unit}", manifest)


def test_a_unit_that_only_its_portrait_shows_moved_counts_as_moved() -> None:
    """In its layer, and for the gate."""
    answers = [answer(1, facts(1, "moved", "same")), answer(2, facts(2, "same", "same"))]

    report = report_of(answers, parse_rules("moved,lost=1"))

    (layer,) = report.layers
    assert {"same": 8, "moved": 1, "lost": 1, "new": 2} == layer.counts
    assert [("moved=0", "conv/channel")] == [(one.rule, one.layer) for one in report.broken]
    assert [f"a@{'a' * 64}/conv/channel/{n}" for n in (1, 2)] == [
        one.feature for one in report.features
    ]
    assert "2026-11-26T07:00:02+00:00" == report.created


def test_nothing_of_a_manifest_becomes_markup() -> None:
    """Names, reasons and devices are text, whoever wrote them."""
    page = render_page(report_of([answer(1, facts(1, "same", "same"))]))

    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") >= 4
    assert "Passed" not in page


def test_the_json_says_whether_a_gate_was_asked_for() -> None:
    """Without a gate nothing passed and nothing failed."""
    answers = [answer(1, facts(1, "same", "same"))]

    found = [
        json.loads(as_json(report_of(answers, parse_rules(text))))["passed"]
        for text in ("", "lost=1", "lost")
    ]

    assert [None, True, False] == found
    assert "pictures" not in json.loads(as_json(report_of(answers)))


@pytest.mark.parametrize("damage", ["findings", "model", "fate"])
def test_a_manifest_of_something_else_is_refused(damage: str) -> None:
    """What is missing is named; a fate that nobody knows is none."""
    document = facts(1, "same", "same")
    if damage == "fate":
        document = facts(1, f'x"{HOSTILE}', "same")
    else:
        del document[damage]

    with pytest.raises(CorruptState, match="a manifest is of no comparison"):
        report_of([answer(1, document)])
