"""Who makes way for whom: pure decisions about the jobs that run and wait.

People's jobs go first. Where one cannot start because every slot is taken, or because its model has as
many running as it may, an audit is put back, the one that was submitted last. Alerts wait their turn.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.jobs.protocol import Priority


@dataclass(frozen=True, slots=True)
class Turn:
    """A job that runs, or that could.

    Attributes:
        id: Which job.
        model: Of which model.
        rank: ``Priority.rank``.
        running: Whether it runs.
        sequence: Grows with every submission.
    """

    id: str
    model: str
    rank: int
    running: bool
    sequence: int


def who_makes_way(
    turns: Sequence[Turn], slots: int, limits: Mapping[str, int]
) -> Mapping[str, str]:
    """Say which running audits must make way.

    The answer for the same jobs is always the same, and does not change while those that make way are
    still about to: so it may be asked again and again.

    Args:
        turns: Jobs in the order of their turns.
        slots: Jobs that may run at once.
        limits: Most jobs of a model at once; a model not named has no limit.

    Returns:
        For whom each makes way: id of the audit to id of the waiting job.
    """
    running = [turn for turn in turns if turn.running]
    audits = [turn for turn in running if turn.rank == Priority.AUDIT.rank]
    audits.sort(key=lambda turn: -turn.sequence)
    free = slots - len(running)
    of_model = Counter(turn.model for turn in running)
    found: dict[str, str] = {}
    for turn in turns:
        if turn.running or turn.rank != Priority.INTERACTIVE.rank:
            continue
        over = of_model[turn.model] - limits.get(turn.model, len(turns) + 1)
        full = over >= 0
        if over > 0 or free < 0:
            continue  # a smaller limit than before: one audit less would not do
        if full or free == 0:
            # Where its model is full, only one of the same model helps, whatever slots are free.
            left = (a for a in audits if a.id not in found and (not full or a.model == turn.model))
            victim = next(left, None)
            if victim is None:
                continue  # only people's and alerts' jobs are in the way
            found[victim.id] = turn.id
            of_model[victim.model] -= 1
            free += 1
        of_model[turn.model] += 1
        free -= 1
    return found
