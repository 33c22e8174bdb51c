"""From numbers to words."""

import pytest

from sidecar.jobs.manifest import VERDICTS
from sidecar.visualise.verdict import RULES, TRUSTED, UNRELIABLE, WEAK, judge, weakest

SOUND = {
    "rise": 8.0,
    "stirred": 9.0,
    "agreement": 0.5,
    "preference": 1.0,
    "selectivity": 0.0,
    "robustness": 0.9,
    "reencoded": 0.95,
}


def test_a_sound_picture_is_trusted_without_reasons() -> None:
    """All that decides is good."""
    report = judge(SOUND)

    assert (TRUSTED, (), 1.0) == (report.verdict, report.reasons, report.measures["score"])


@pytest.mark.parametrize(
    ("change", "verdict", "word"),
    [
        ({"rise": -3.0, "agreement": 0.0}, UNRELIABLE, "pictures of nothing"),
        ({"rise": -3.0, "stirred": 0.5}, UNRELIABLE, "moved the unit by 0.5"),
        ({"rise": -3.0}, WEAK, "pictures of nothing"),
        ({"rise": 0.0, "agreement": 0.0}, WEAK, "Other seeds"),
        ({"preference": 0.6}, WEAK, "60% of"),
        ({"selectivity": 0.4}, WEAK, "40%"),
        ({"robustness": 0.1}, UNRELIABLE, "10%"),
        ({"reencoded": 0.3}, WEAK, "JPEG"),
        ({"path": 0.1}, UNRELIABLE, "fooled"),
        ({"path": 0.4}, WEAK, "fooled"),
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


def test_what_one_part_of_the_score_lacks_the_others_make_up_for() -> None:
    """Agreement of a few short ascents is a weak measure, and does not stand against the rest."""
    report = judge({**SOUND, "agreement": 0.0})

    assert (TRUSTED, ()) == (report.verdict, report.reasons)
    assert 0.75 == report.measures["score"]


def test_agreement_counts_as_far_as_the_unit_prefers_its_own_pictures() -> None:
    """A random network's pictures are all alike, and its units do not tell them apart."""
    alike = {**SOUND, "agreement": 1.5, "preference": 0.5}

    assert 0.75 == judge(alike).measures["score"]
    assert 1.0 == judge({**alike, "preference": 1.0}).measures["score"]


def test_a_sheet_is_believed_as_far_as_its_weakest_picture() -> None:
    """Whose reasons say which it is; one picture is no sheet."""
    good, poor = judge(SOUND), judge({**SOUND, "reencoded": 0.1})

    found = weakest([good, poor, good])

    assert UNRELIABLE == found.verdict
    assert all(reason.startswith("Picture 2 of 3: ") for reason in found.reasons)
    assert weakest([poor]) is poor
    assert () == weakest([good, good]).reasons


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
