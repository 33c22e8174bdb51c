"""What every way of making pictures must do, whatever it does: one body for all of them.

A method is held to it by a ``Case``: the smallest request that it can meet. ``test_conformance.py`` runs
every promise on every method in ``METHODS``, and fails where one has no case.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest

from sidecar.errors import JobCancelled, SidecarError
from sidecar.recipes import Recipe, Target, content_key, recipe_of
from sidecar.visualise import ImageModel, Materials, Picture, Progress, method_for

SHORT = frozenset({"dataset_examples", "comparison", "attribution"})
"""Methods that keep nothing: they look at images once, and begin anew."""


@dataclass
class Memory:
    """A checkpoint that counts."""

    state: bytes | None = None
    saves: int = 0

    def load(self) -> bytes | None:
        """Return the last state."""
        return self.state

    def save(self, state: bytes) -> None:
        """Keep it."""
        self.state, self.saves = state, self.saves + 1


@dataclass(frozen=True, slots=True)
class Case:
    """A request that a method meets in a fraction of a second, and some that it cannot.

    Attributes:
        model: Of what; a torch module with its hooks.
        targets: Two or more that differ, the last of another layer if the method can.
        recipe: How; whatever it looks at is in ``materials``.
        materials: What there is beside that.
        refused: Targets that the model does not have.
    """

    model: ImageModel
    targets: Sequence[Target]
    recipe: Recipe
    materials: Materials
    refused: Sequence[Target]

    def run(self, targets: Sequence[Target] | None = None, **more: object) -> tuple[Picture, ...]:
        """Make the pictures of all targets, or of some."""
        wanted = self.targets if targets is None else targets
        return method_for(self.recipe).run(self.model, wanted, self.recipe, self.materials, **more)


def equal_requests_have_equal_answers(case: Case) -> None:
    """Two runs agree in every byte and number, but for the time they took."""
    first, second = case.run(), case.run()

    for one, other in zip(first, second, strict=True):
        assert one.png() == other.png()
        assert one.history == other.history
        assert _without_cost(one) == _without_cost(other)


def the_seed_matters_or_is_said_not_to(case: Case) -> None:
    """Another seed gives another picture; a method without random numbers gives the same."""
    again = dataclasses.replace(case, recipe=dataclasses.replace(case.recipe, seed=5))

    one, other = case.run()[0], again.run()[0]

    assert np.array_equal(one.image, other.image) == (not case.recipe.random)


def numbers_and_pictures_are_whole(case: Case) -> None:
    """Every number is finite, and every picture is RGB of 8 bits, not of one colour."""
    for picture in case.run():
        numbers = [
            picture.activation,
            picture.activation_augmented,
            picture.activation_augmented_spread,
            picture.first_activation,
            *picture.history,
        ]
        assert np.isfinite(numbers).all()
        assert np.uint8 == picture.image.dtype
        assert (3, 3) == (picture.image.ndim, picture.image.shape[2])
        assert picture.image.std() > 0


def company_changes_nothing(case: Case) -> None:
    """A target's picture is the same, bit for bit, alone and among others."""
    together = case.run()

    for target, picture in zip(case.targets, together, strict=True):
        (alone,) = case.run([target])
        assert np.array_equal(alone.image, picture.image)
        assert alone.history == picture.history
        assert alone.activation == picture.activation


def answers_are_in_the_order_of_the_request(case: Case) -> None:
    """Whatever is worked on first."""
    backwards = list(reversed(case.targets))

    assert backwards == [picture.target for picture in case.run(backwards)]


def it_stops_when_told(case: Case) -> None:
    """At once, and at the second question; the module is left without hooks."""
    for patience in (0, 1):
        asked = iter(range(1000))
        with pytest.raises(JobCancelled):
            case.run(cancelled=lambda asked=asked, patience=patience: next(asked) >= patience)
        assert _hooks(case) == 0


def an_interrupted_run_gives_the_same_bits(case: Case) -> None:
    """Wherever it is stopped, once or again and again, and whether or not its method keeps anything."""
    whole, asked = case.run(), _questions(case)
    for stops in ([asked // 4], [asked // 2], [asked - 1], [asked // 5] * 4):
        memory = Memory()
        for stop in stops:
            questions = count()
            with suppress(JobCancelled):
                case.run(checkpoint=memory, cancelled=lambda q=questions, n=stop: next(q) >= n)
        resumed = case.run(checkpoint=memory)

        for one, other in zip(whole, resumed, strict=True):
            assert one.png() == other.png()
            assert one.history == other.history
            assert _without_cost(one) == _without_cost(other)


def what_was_reached_is_not_done_again(case: Case) -> None:
    """Of methods that keep it: the second attempt asks no more than is left, and begins there."""
    if case.recipe.method in SHORT:
        return
    asked, heard, memory = _questions(case), list[Progress](), Memory()
    stop = asked * 3 // 4
    questions = count()
    with pytest.raises(JobCancelled):
        case.run(checkpoint=memory, cancelled=lambda: next(questions) >= stop)

    again = _questions(case, checkpoint=memory, on_progress=heard.append)

    assert memory.saves > 0
    assert again <= asked - stop // 2
    assert heard[-1].step == heard[-1].steps


def it_leaves_the_model_as_it_was(case: Case) -> None:
    """Weights, mode and hooks, after success and after an error of the caller's."""

    def fail(_: Progress) -> None:
        raise OSError("nobody listens")

    before = {name: value.clone() for name, value in case.model.module.state_dict().items()}

    case.run()
    with pytest.raises(OSError, match="nobody"):
        case.run(on_progress=fail)

    after = case.model.module.state_dict()
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert not case.model.module.training
    assert _hooks(case) == 0


def what_the_plan_refuses_the_run_refuses(case: Case) -> None:
    """In the same words, before a step is taken."""
    method = method_for(case.recipe)
    for wanted in ([], *([target] for target in case.refused)):
        with pytest.raises(SidecarError) as planned:
            method.plan(case.model, wanted, case.recipe, case.materials)
        with pytest.raises(SidecarError) as ran:
            case.run(wanted, on_progress=_never)
        assert (type(planned.value), str(planned.value)) == (type(ran.value), str(ran.value))


def materials_that_are_missing_are_named(case: Case) -> None:
    """A recipe that looks at images is refused without them, by plan and run alike."""
    if not case.recipe.images:
        return
    bare = dataclasses.replace(case, materials=dataclasses.replace(case.materials, images={}))
    plan = method_for(case.recipe).plan
    for ask in (
        lambda: plan(bare.model, bare.targets, bare.recipe, bare.materials),
        lambda: bare.run(on_progress=_never),
    ):
        with pytest.raises(SidecarError, match=case.recipe.images[0][:8]):
            ask()


def the_plan_is_what_it_took(case: Case) -> None:
    """The cost is positive, and the passes are those that the findings report."""
    cost = method_for(case.recipe).plan(case.model, case.targets, case.recipe, case.materials)

    assert min(cost.forwards, cost.seconds_estimate, cost.bytes_estimate) > 0
    for picture in case.run():
        told = picture.findings.get("cost")
        if told is not None:
            assert cost.forwards == told["forwards"] == told["forwards_planned"]


def progress_never_goes_back(case: Case) -> None:
    """It begins at 0, ends at the last step, and every preview can be shown."""
    heard: list[Progress] = []

    case.run(on_progress=heard.append)

    steps = [progress.step for progress in heard]
    assert sorted(steps) == steps
    assert heard[-1].step == heard[-1].steps
    assert {len(case.targets)} == {len(progress.activations) for progress in heard}
    assert all(progress.png().startswith(b"\x89PNG") for progress in heard)


def what_is_found_can_be_written_down(case: Case) -> None:
    """Findings are JSON without NaN, and the recipe in the picture is read back as it was."""
    for picture in case.run():
        assert picture.findings == json.loads(json.dumps(picture.findings, allow_nan=False))
        assert case.recipe == recipe_of(json.loads(json.dumps(picture.recipe.values())))


def the_picture_says_where_it_is_from(case: Case) -> None:
    """Target, weights, method, recipe and content key are in the PNG's provenance."""
    for target, picture in zip(case.targets, case.run(), strict=True):
        texts = picture.provenance()
        assert str(target.feature) == texts["sidecar.feature"]
        assert case.model.digest == texts["sidecar.model_digest"]
        assert f"{case.recipe.method}/{case.recipe.version}" == texts["sidecar.method"]
        assert case.recipe.values() == json.loads(texts["sidecar.recipe"])
        key = content_key(target, case.recipe, picture.inputs)
        assert key == texts["sidecar.content_key"]
        assert {*case.recipe.inputs, *target.inputs} <= {*picture.inputs}


PROMISES: tuple[Callable[[Case], None], ...] = (
    equal_requests_have_equal_answers,
    the_seed_matters_or_is_said_not_to,
    numbers_and_pictures_are_whole,
    company_changes_nothing,
    answers_are_in_the_order_of_the_request,
    it_stops_when_told,
    an_interrupted_run_gives_the_same_bits,
    what_was_reached_is_not_done_again,
    it_leaves_the_model_as_it_was,
    what_the_plan_refuses_the_run_refuses,
    materials_that_are_missing_are_named,
    the_plan_is_what_it_took,
    progress_never_goes_back,
    what_is_found_can_be_written_down,
    the_picture_says_where_it_is_from,
)


def _questions(case: Case, **more: object) -> int:
    """Return how often a run asks whether it is cancelled."""
    questions = count()
    case.run(cancelled=lambda: next(questions) < 0, **more)
    return next(questions)


def _without_cost(picture: Picture) -> dict[str, object]:
    return {name: value for name, value in picture.findings.items() if name != "cost"}


def _never(_: Progress) -> None:
    raise AssertionError("work was begun")


def _hooks(case: Case) -> int:
    modules = case.model.module.modules()
    return sum(len(inner._forward_hooks) for inner in modules)  # noqa: SLF001 - torch has no count
