"""From numbers to words."""

import pytest

from sidecar.jobs.manifest import VERDICTS
from sidecar.visualise.verdict import RULES, TRUSTED, UNRELIABLE, WEAK, judge

SOUND = {"rise": 8.0, "agreement": 0.5, "selectivity": 0.0, "robustness": 0.9, "reencoded": 0.95}


def test_a_sound_picture_is_trusted_without_reasons() -> None:
    """All that decides is good."""
    report = judge(SOUND)

    assert (TRUSTED, (), 1.0) == (report.verdict, report.reasons, report.measures["score"])


@pytest.mark.parametrize(
    ("change", "verdict", "word"),
    [
        ({"rise": -3.0, "agreement": 0.0}, UNRELIABLE, "pictures of nothing"),
        ({"rise": -3.0}, UNRELIABLE, "pictures of nothing"),
        ({"agreement": 0.0}, WEAK, "Other seeds"),
        ({"selectivity": 0.4}, WEAK, "40%"),
        ({"robustness": 0.1}, UNRELIABLE, "10%"),
        ({"reencoded": 0.3}, WEAK, "JPEG"),
        ({"path": 0.1}, UNRELIABLE, "fooled"),
        ({"path": 0.7}, WEAK, "fooled"),
        ({"transfer": 0.01}, WEAK, "sibling"),
        ({"seeds_stirred": 0.0}, UNRELIABLE, "No other seed"),
    ],
)
def test_what_is_not_good_is_said(change: dict[str, float], verdict: str, word: str) -> None:
    """One sentence for each measure that falls short."""
    report = judge({**SOUND, **change})

    assert verdict == report.verdict
    assert any(word in reason for reason in report.reasons)
    assert len(change) == len(report.reasons)


def test_measures_that_do_not_discriminate_decide_nothing() -> None:
    """They are told, and that is all."""
    told = [name for name, rule in RULES.items() if rule.good is None]

    report = judge({**SOUND, **dict.fromkeys(told, -1e9)})

    assert TRUSTED == report.verdict
    assert set(told) - {"score"} < set(report.measures)


def test_the_document_explains_every_number() -> None:
    """With unit and meaning, and a verdict that the manifest knows."""
    document = judge(dict.fromkeys(RULES, 0.0)).document()

    assert document["verdict"] in VERDICTS
    assert set(RULES) == set(document["measures"])
    for name, one in document["measures"].items():
        assert (one["unit"], one["meaning"]) == (RULES[name].unit, RULES[name].meaning)
        assert one["decides"] == (RULES[name].good is not None)


def test_every_measure_that_decides_has_a_sentence() -> None:
    """That names the value."""
    for name, rule in RULES.items():
        assert (rule.good is None) == (rule.reason == ""), name
        assert rule.meaning.endswith("."), name
