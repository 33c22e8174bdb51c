"""Holds the hooks' share of forward time within a budget by lowering the sampling rate."""

STRETCH_SECONDS = 1.0
"""Forward time after which the share is judged; long against a pass, short against a user's patience."""

STRETCH_SAMPLES = 5
"""Sampled passes a judgement rests on: with fewer, the one that is left out below would be most of
what was measured."""

LONGEST_STRETCH_SECONDS = 30.0
"""Forward time after which a judgement is made in any case, so that a rate near the floor recovers."""

FLOOR = 1e-3
"""Lowest rate the governor goes to: at ten requests a second every feature is still seen every two
minutes. A weight is then at most 1,000."""

_STEEPEST = 0.5  # of the rate is kept at least by one judgement, however bad it was
_AIM = 0.9  # of the budget is aimed at; between _CALM and the budget nothing changes
_CALM = 0.8
_RISE = 1.1  # by judgement: a rate that was halved is back after seven calm stretches


class Governor:
    """Judges the hooks' share stretch by stretch: down in proportion, up slowly.

    The longest pass of a stretch counts as the second longest, so that a single outlier, such as a
    thread that lost its processor inside a hook, changes nothing. Several threads may note passes at
    once without a lock: a lost addition moves the rate a little, never a weight, since those are
    computed from the rate that was used.

    Args:
        budget: Largest share of forward time, above 0 to 1; None: the share is measured only.
        planned: The plan's sampling rate, from which and to which the rate moves.

    Attributes:
        rate: Highest sampling rate allowed now.
        ratio: Hooks' share of forward time over the newest stretch.
    """

    def __init__(self, budget: float | None, planned: float) -> None:
        self._budget = budget
        self._planned = planned
        self._floor = min(FLOOR, planned)
        self.rate = planned
        self.ratio = 0.0
        self._begin(0.0)

    @property
    def holding(self) -> bool:
        """Whether the rate is below the plan's."""
        return self.rate < self._planned

    def _begin(self, forward_seconds: float) -> None:
        self._began = forward_seconds
        self._hooks = 0.0
        self._samples = 0
        self._longest = 0.0
        self._second = 0.0

    def note(self, hook_seconds: float, forward_seconds: float, rate: float) -> None:
        """Take in a sampled pass, and judge the stretch if it is over.

        Args:
            hook_seconds: What the hooks took of this pass.
            forward_seconds: Time in all forward passes so far, sampled or not.
            rate: Sampling rate this pass was chosen with.
        """
        self._hooks += hook_seconds
        self._samples += 1
        if hook_seconds > self._longest:
            self._longest, self._second = hook_seconds, self._longest
        elif hook_seconds > self._second:
            self._second = hook_seconds
        stretch = forward_seconds - self._began
        enough = stretch >= STRETCH_SECONDS and self._samples >= STRETCH_SAMPLES
        if enough or stretch >= LONGEST_STRETCH_SECONDS:
            self.ratio = (self._hooks - self._longest + self._second) / stretch
            self._judge(rate)
            self._begin(forward_seconds)
        elif stretch < 0.0:  # the books were reset, as in a forked child
            self._begin(forward_seconds)

    def _judge(self, rate: float) -> None:
        if self._budget is None:
            return
        if self.ratio > self._budget:
            kept = max(_STEEPEST, _AIM * self._budget / self.ratio)
            self.rate = max(self._floor, min(rate, self.rate) * kept)
        elif self.ratio < _CALM * self._budget and rate >= self.rate:
            # While somebody else holds the rate lower, a calm stretch says nothing about this one.
            self.rate = min(self._planned, self.rate * _RISE)
