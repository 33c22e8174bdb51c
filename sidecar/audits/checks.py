"""The checks of a night: pure functions from what was found to what it means."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sidecar.audits.facts import Facts, LayerCounts, Portrayed
from sidecar.audits.status import CHECKS, Check, NightState, Outcome
from sidecar.features import is_digest, short_revision

NAMED = 5
"""Features and layers that one reason names; the report's sections name all."""

WORSENED = ("moved", "lost")
"""Fates of which more units than before are a regression; new ones are the other model's."""

_TRUSTED = "trusted"


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job of a night ended.

    Attributes:
        role: What it was for, see ``facts.Plan``.
        id: Which job; empty where it was refused.
        state: ``done``, ``failed``, ``cancelled``, ``refused``, or ``gone`` where nobody knows it any more.
        error: Code and words of what went wrong; empty where nothing did.
        cached: Whether everything was answered from the store.
    """

    role: str
    id: str
    state: str
    error: str = ""
    cached: bool = False

    @property
    def done(self) -> bool:
        """Whether it made what was asked."""
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class Gate:
    """What the gate said of the comparison.

    Attributes:
        rules: As text; empty: none is configured.
        broken: What breaks it, in words, a layer each.
        cached: Whether the comparison was answered from the store.
    """

    rules: str
    broken: tuple[str, ...]
    cached: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """An earlier night that this one is held against."""

    night: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier night said of a feature's portrait."""

    night: str
    portrait: Portrayed


@dataclass(frozen=True, slots=True)
class Repeat:
    """A portrait that was really made again, or one whose content key was answered anew.

    Attributes:
        feature: Whose.
        night: The earlier night that it is of.
        verdict: ``identical``, ``equal within 1/255`` or ``different``; empty: it could not be made.
        max_difference: Largest difference of a pixel's channel, in the range 0 to 1.
        picture: sha256 of the new picture; empty likewise.
        problem: Why it could not be made; empty: it was.
    """

    feature: str
    night: str
    verdict: str = ""
    max_difference: float = 0.0
    picture: str = ""
    problem: str = ""

    @property
    def different(self) -> bool:
        """Whether the pictures are further apart than rounding."""
        return self.verdict == "different"


@dataclass(frozen=True, slots=True)
class Served:
    """What the hooks say is served.

    Attributes:
        revisions: Those of the model that are sampled now; empty: no hook has sampled it.
        flagged: Flagged features of those revisions, and flags that fit none.
        problems: Of these, what keeps them from being watched, or that they drift: feature and words.
        lately: Whether any of them was sampled in the day before the night.
    """

    revisions: tuple[str, ...] = ()
    flagged: int = 0
    problems: tuple[tuple[str, str], ...] = ()
    lately: bool = True


def _impossible(name: str, reason: str) -> Check:
    return Check(name, Outcome.IMPOSSIBLE, None, None, reason)


def _counted(name: str, bad: Sequence[str], good: str, what: str) -> Check:
    """Return a check of which nothing may be wrong."""
    if not bad:
        return Check(name, Outcome.PASSED, 0.0, 0.0, good)
    return Check(name, Outcome.FAILED, float(len(bad)), 0.0, f"{what}: {listed(bad)}.")


def listed(items: Sequence[str]) -> str:
    """Return the first ``NAMED`` items and how many more there are."""
    more = len(items) - NAMED
    return "; ".join(items[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def complete(jobs: Sequence[JobEnd]) -> Check:
    """Whether every job of the night ended as it should."""
    bad = [
        f"{job.role} {job.state}{f' ({job.error})' if job.error else ''}"
        for job in jobs
        if not job.done
    ]
    if not jobs:
        return _impossible("complete", "No job was asked for.")
    good = f"Done: {_plural(len(jobs), 'job')}."
    return _counted("complete", bad, good, f"{len(bad)} of {len(jobs)} jobs are not done")


def comparison(against: str, gate: Gate | None) -> Check:
    """Whether the gate on the comparison holds."""
    if not against:
        return _impossible("comparison", "The audit compares with no other model.")
    if gate is None:
        return _impossible(
            "comparison", f"There is no comparison with {against}: its job did not end well."
        )
    origin = (
        " Answered from the store: models and images are those of an earlier night."
        if gate.cached
        else ""
    )
    if not gate.rules:
        return _impossible("comparison", f"No gate is configured, see fail_on.{origin}")
    good = f"No layer breaks {gate.rules}.{origin}"
    what = f"The comparison with {against} breaks {gate.rules}"
    return _counted("comparison", gate.broken, good, what)


def counts(now: Facts, before: Reference | None, tolerance: float) -> Check:
    """Whether more units of a layer are moved or lost than the night before.

    Args:
        now: What this night found.
        before: The last night in which this did not fail; None where there is none.
        tolerance: Share of a layer's units by which more may be.
    """
    if not now.layers:
        return _impossible("counts", "Nothing was compared.")
    if before is None or not before.facts.layers:
        return _impossible("counts", "No earlier night compared these models: this is the first.")
    if before.facts.dataset_digest != now.dataset_digest:
        words = f"The images are not those of {before.night}: counts of other images say nothing."
        return _impossible("counts", words)
    known = {layer.layer: layer for layer in before.facts.layers}
    grown = [
        (share, words)
        for layer in now.layers
        if layer.layer in known
        for share, words in _growth(known[layer.layer], layer)
    ]
    if not grown:
        return _impossible("counts", f"None of these layers was compared on {before.night}.")
    worst = max(share for share, _ in grown)
    bad = [words for share, words in sorted(grown, reverse=True) if share > tolerance]
    if bad:
        reason = (
            f"More than on {before.night}: {listed(bad)}; allowed are {tolerance:.2%} of a layer."
        )
        return Check("counts", Outcome.FAILED, worst, tolerance, reason)
    by = f", but for {worst:.2%} of its units at most" if worst > 0 else ""
    reason = f"No layer has more units moved or lost than on {before.night}{by}."
    return Check("counts", Outcome.PASSED, worst, tolerance, reason)


def _growth(before: LayerCounts, now: LayerCounts) -> Iterable[tuple[float, str]]:
    for fate in WORSENED:
        more = now.counts.get(fate, 0) - before.counts.get(fate, 0)
        words = f"{now.layer} has {now.counts.get(fate, 0)} of {now.units} units {fate}, had {before.counts.get(fate, 0)}"
        yield more / now.units, words


def reproduced(repeats: Sequence[Repeat], cached: int) -> Check:
    """Whether portraits come out as they did.

    Args:
        repeats: What was made anew though an earlier night has the same.
        cached: Portraits that were answered from the store, which proves nothing.
    """
    held = (
        f" {_plural(cached, 'portrait')} answered from the store prove nothing." if cached else ""
    )
    made = [one for one in repeats if not one.problem]
    if not made:
        why = listed([f"{one.feature}: {one.problem}" for one in repeats])
        words = (
            f"Nothing could be made again ({why})."
            if why
            else "No earlier night pictured the same."
        )
        return _impossible("reproduced", words + held)
    worst = max(one.max_difference for one in made)
    bad = [
        f"{one.feature} differs from {one.night} by up to {255 * one.max_difference:.0f}/255"
        for one in made
        if one.different
    ]
    words = f"{_plural(len(made), 'portrait')} made anew"
    if bad:
        reason = f"{len(bad)} of {words} came out otherwise: {listed(bad)}."
        return Check("reproduced", Outcome.FAILED, worst, 1 / 255, reason)
    near = f"to within {255 * worst:.0f}/255" if worst else "pixel by pixel"
    reason = f"{words}, the same as before {near}.{held}"
    return Check("reproduced", Outcome.PASSED, worst, 1 / 255, reason)


def verdict(now: Facts, earlier: Mapping[str, Earlier]) -> Check:
    """Whether a portrait that could be trusted still can."""
    held = [one for one in now.portraits if one.verdict and _was(earlier, one)]
    if not held:
        words = (
            "No earlier night judged a portrait of the same features."
            if now.portraits
            else "No portrait was made."
        )
        return _impossible("verdict", words)
    bad = [
        f"{one.feature} was trusted on {earlier[one.feature].night}, and is {one.verdict}"
        for one in held
        if earlier[one.feature].portrait.verdict == _TRUSTED != one.verdict
    ]
    good = f"None of {_plural(len(held), 'feature')} judged before lost its trust."
    return _counted("verdict", bad, good, f"{len(bad)} of {len(held)} lost their trust")


def _was(earlier: Mapping[str, Earlier], one: Portrayed) -> bool:
    was = earlier[one.feature].portrait if one.feature in earlier else None
    return was is not None and bool(was.verdict) and was.negative == one.negative


def verified(findings: Sequence[tuple[str, str]]) -> Check:
    """Whether pictures and manifests of the night are what they say.

    Args:
        findings: sha256 of each manifest, and what is wrong with it; empty: nothing.
    """
    if not findings:
        return _impossible("verified", "The night refers to no artifact.")
    bad = [f"{digest[:12]}: {words}" for digest, words in findings if words]
    good = f"Verified: {_plural(len(findings), 'manifest')}, each with its picture."
    return _counted("verified", bad, good, f"{len(bad)} of {len(findings)} do not verify")


def revision(digest: str, served: Served) -> Check:
    """Whether what was looked at is what is served."""
    if not digest:
        return _impossible("revision", "No job could tell which weights the configured model has.")
    if not served.revisions:
        return _impossible(
            "revision", "No hook has sampled this model, so nobody knows what is served."
        )
    if not served.lately:
        return _impossible(
            "revision", "No hook has sampled this model for a day, so nobody knows what is served."
        )
    named = [one for one in served.revisions if not is_digest(one)]
    if named:
        return _impossible("revision", f"Hooks call the revision {named[0]!r}, which is no digest.")
    others = [short_revision(one) for one in served.revisions if one != digest]
    good = f"Revision {short_revision(digest)} is served, and was audited."
    what = f"audited was {short_revision(digest)}, but served is"
    return _counted("revision", others, good, what)


def live(served: Served) -> Check:
    """Whether every flagged feature is watched, and none drifts."""
    if not served.revisions:
        return _impossible("live", "No hook has sampled this model.")
    if not served.flagged:
        return _impossible("live", "No feature of this model is flagged.")
    bad = [f"{feature} {words}" for feature, words in served.problems]
    good = f"Judged against a baseline, and not drifting: {_plural(served.flagged, 'flagged feature')}."
    return _counted(
        "live", bad, good, f"{len(bad)} of {_plural(served.flagged, 'flagged feature')}"
    )


def state_of(checks: Sequence[Check], jobs: Sequence[JobEnd]) -> NightState:
    """Return what a night came to: ``failed`` where no job was done."""
    if not any(job.done for job in jobs):
        return NightState.FAILED
    failed = any(one.outcome is Outcome.FAILED for one in checks)
    return NightState.REGRESSED if failed else NightState.PASSED


def in_order(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return checks in the order in which reports list them."""
    return tuple(sorted(checks, key=lambda one: CHECKS.index(one.name)))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
