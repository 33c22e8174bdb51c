"""An interrupted run goes on from its checkpoint, and nobody can tell from the pictures."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sidecar.errors import JobCancelled
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, Materials, Picture, Progress, TypicalRange, maximise
from tests.visualise.conformance import Memory

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]


def after(steps: int) -> Callable[[], bool]:
    """Cancel before the step after so many."""
    left = iter([False] * steps)
    return lambda: next(left, True)


def facts(picture: Picture) -> tuple[object, ...]:
    """Return all that is reported of a picture."""
    return (
        picture.image.tobytes(),
        picture.activation,
        picture.activation_augmented,
        picture.activation_augmented_spread,
        picture.first_activation,
        picture.history,
    )


@pytest.fixture
def targets(unit: Unit) -> tuple[Target, ...]:
    """Units of two layers, so that there are two batches."""
    return (unit("middle", 1), unit("low", 2), unit("middle", 5))


@pytest.mark.parametrize("stops", [(1,), (5,), (8,), (11,), (3, 4, 6)])
def test_an_interrupted_run_gives_the_same_bits(
    model: ImageModel, recipe: Maximisation, targets: tuple[Target, ...], stops: tuple[int, ...]
) -> None:
    """Interrupted anywhere, in the second batch or several times: pictures and numbers are the same."""
    recipe = replace(recipe, steps=8, crops=2, noise=0.1)
    whole = maximise(model, targets, recipe)
    memory = Memory()

    for steps in stops:
        with pytest.raises(JobCancelled):
            maximise(model, targets, recipe, checkpoint=memory, cancelled=after(steps))
    resumed = maximise(model, targets, recipe, checkpoint=memory)

    assert [facts(picture) for picture in whole] == [facts(picture) for picture in resumed]


def test_typical_ranges_are_resumed_too(
    model: ImageModel, recipe: Maximisation, unit: Unit
) -> None:
    """The prior's part of the gradient needs no state of its own."""
    target = unit("middle", 1)
    name = str(target.feature.layer)
    typical = TypicalRange({name: np.zeros(8, np.float32)}, {name: np.full(8, 0.1, np.float32)})
    recipe, materials = replace(recipe, steps=6, typical_range=1.0), Materials(typical)
    whole = maximise(model, [target], recipe, materials=materials)
    memory = Memory()

    with pytest.raises(JobCancelled):
        maximise(
            model, [target], recipe, materials=materials, checkpoint=memory, cancelled=after(3)
        )
    resumed = maximise(model, [target], recipe, materials=materials, checkpoint=memory)

    assert facts(whole[0]) == facts(resumed[0])


def test_no_step_is_taken_twice(
    model: ImageModel, recipe: Maximisation, targets: tuple[Target, ...]
) -> None:
    """The second attempt reports from where the first one stopped, and takes only what is left."""
    recipe = replace(recipe, steps=8)
    memory, seen = Memory(), list[Progress]()
    with pytest.raises(JobCancelled):
        maximise(model, targets, recipe, checkpoint=memory, cancelled=after(11))
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    maximise(model, targets, recipe, checkpoint=memory, cancelled=count, on_progress=seen.append)

    assert 16 - 11 == asked
    assert [8, 11, 16] == [progress.step for progress in seen]
    assert 16 == seen[0].steps


def test_a_checkpoint_is_saved_every_ten_seconds(
    model: ImageModel, recipe: Maximisation, unit: Unit
) -> None:
    """By the clock, not by the step."""
    now = 0.0

    def clock() -> float:
        return now

    def pass_time() -> bool:
        nonlocal now
        now += 4.0
        return False

    memory = Memory()
    recipe = replace(recipe, steps=10)
    maximise(
        model, [unit("middle", 1)], recipe, checkpoint=memory, clock=clock, cancelled=pass_time
    )

    assert 3 == memory.saves  # at 12, 24 and 36 of 40 seconds


@pytest.mark.parametrize("other", ["recipe", "target", "model", "damaged", "foreign", "cut"])
def test_the_checkpoint_of_something_else_is_passed_over(
    model: ImageModel, recipe: Maximisation, unit: Unit, other: str
) -> None:
    """Of another recipe, unit, model or release, or damaged: the run begins anew."""
    recipe = replace(recipe, steps=6)
    memory = Memory()
    with pytest.raises(JobCancelled):
        maximise(model, [unit("middle", 1)], recipe, checkpoint=memory, cancelled=after(4))
    assert memory.state is not None
    target, wanted = unit("middle", 1), recipe
    if other == "recipe":
        wanted = replace(recipe, seed=9)
    elif other == "target":
        target = unit("middle", 2)
    elif other == "model":
        model = replace(model, digest="e" * 64)
    elif other == "damaged":
        memory.state = b"nonsense"
    elif other == "foreign":
        file = io.BytesIO()
        np.savez(file, something=np.zeros(3))
        memory.state = file.getvalue()
    else:
        memory.state = memory.state[: len(memory.state) // 2]
    fresh = maximise(model, [target], wanted)

    asked: list[int] = []

    def count() -> bool:
        asked.append(1)
        return False

    found = maximise(model, [target], wanted, checkpoint=memory, cancelled=count)

    assert 6 == len(asked)
    assert facts(fresh[0]) == facts(found[0])


def test_states_hold_no_pickled_objects(
    model: ImageModel, recipe: Maximisation, unit: Unit
) -> None:
    """Every array can be read where pickles are refused."""
    memory = Memory()
    with pytest.raises(JobCancelled):
        maximise(model, [unit("middle", 1)], recipe, checkpoint=memory, cancelled=after(2))

    with np.load(io.BytesIO(memory.state or b""), allow_pickle=False) as arrays:
        kinds = {arrays[name].dtype.kind for name in arrays.files}

    assert kinds <= set("fiubU")
