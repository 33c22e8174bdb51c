import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.errors import (
    JobCancelled,
    NonFiniteActivation,
    SilentFeature,
    UnknownFeature,
    UnknownLayer,
    UnsupportedTarget,
)
from sidecar.features import FeatureKind, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, Materials, Progress, TypicalRange, maximise, plan

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]


def _hooks(module: nn.Module) -> int:
    return sum(len(inner._forward_hooks) for inner in module.modules())  # noqa: SLF001 - torch has no public count


class Undead(nn.Module):
    """Channel 0 follows the image, channel 1 is always zero, channel 2 always one."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, shape ``(n, 3, h, w)``."""
        red = images[:, :1]
        maps: torch.Tensor = self.site(torch.cat([red, red * 0, red * 0 + 1], 1))
        return maps


class Exploding(nn.Module):
    """Turns to NaN after a number of forward passes."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.left = passes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, NaN once there are no passes left."""
        self.left -= 1
        maps: torch.Tensor = self.site(images * (1.0 if self.left >= 0 else math.nan))
        return maps


class Blind(nn.Module):
    """Computes without gradients, as serving code often does."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Conv2d(3, 2, 3)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps."""
        maps: torch.Tensor = self.site(images)
        return maps


class Swallowing(nn.Module):
    """Catches every ordinary exception of its insides."""

    def __init__(self) -> None:
        super().__init__()
        self.site = nn.Conv2d(3, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps, or zeros where anything went wrong."""
        try:
            maps: torch.Tensor = self.site(images)
        except Exception:  # noqa: BLE001 - that is the point
            return images * 0
        return maps


def test_equal_requests_give_equal_pictures_bit_for_bit(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Two runs agree in every byte and every number."""
    targets = [unit("middle", 1), unit("middle", 2)]

    first, second = (maximise(model, targets, recipe) for _ in range(2))

    assert [p.png() for p in first] == [p.png() for p in second]
    assert [p.history for p in first] == [p.history for p in second]


def test_another_seed_gives_another_picture(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The seed is part of what makes a picture."""
    one, two = (
        maximise(model, [unit("middle", 1)], replace(recipe, seed=seed))[0] for seed in (0, 1)
    )

    assert not np.array_equal(one.image, two.image)


def test_torchs_global_random_state_neither_matters_nor_moves(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The room draws from its own streams only."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = maximise(model, [unit("middle", 1)], recipe)[0]
    after = torch.get_rng_state()
    torch.manual_seed(2)
    second = maximise(model, [unit("middle", 1)], recipe)[0]

    assert torch.equal(before, after)
    assert np.array_equal(first.image, second.image)


def test_a_picture_does_not_depend_on_its_company(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Alone, among others of its layer, and among other layers, it is the same up to rounding."""
    wanted = unit("middle", 3)
    alone = maximise(model, [wanted], recipe)[0]
    company = [unit("low", 0), *(unit("middle", i) for i in (5, 3, 1)), unit("middle", 3)]
    crowd = maximise(model, company, recipe)

    for picture in (crowd[2], crowd[4]):
        gap = np.abs(alone.image.astype(int) - picture.image.astype(int)).max()
        assert gap <= 1
        assert alone.activation == pytest.approx(picture.activation, abs=1e-2)
        assert alone.history == pytest.approx(picture.history, abs=1e-4)


def test_pictures_come_back_in_the_order_of_the_request(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Batching by layer does not reorder the answer."""
    kinds = (FeatureKind.CHANNEL, FeatureKind.LOGIT, FeatureKind.NEURON)
    targets = [
        unit("middle", 1),
        unit("head", 2, kinds[1]),
        unit("middle", 4, kinds[2], position=(0, 5)),
        unit("middle", 0),
    ]

    pictures = maximise(model, targets, recipe)

    assert targets == [picture.target for picture in pictures]


def test_more_targets_than_a_pass_holds_are_done_in_turns(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """No forward pass carries more than one image on a CPU, whatever is asked."""
    sizes: list[int] = []
    model.module.low.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    targets = [unit("low", i % 6) for i in range(11)]

    pictures = maximise(model, targets, replace(recipe, steps=2, crops=3))

    assert len(pictures) == 11
    assert max(sizes) == 1


def test_crops_beyond_a_pass_are_averaged_not_dropped(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Twenty crops a step cost twenty forward images a step and change the picture."""
    seen: list[int] = []
    model.module.low.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    many = maximise(model, [unit("middle", 1)], replace(recipe, crops=20))[0]
    spent = sum(seen)
    one = maximise(model, [unit("middle", 1)], recipe)[0]

    assert spent == plan(model, [unit("middle", 1)], replace(recipe, crops=20)).forwards + 2
    assert not np.array_equal(many.image, one.image)


@pytest.mark.parametrize("kind", ["channel", "neuron", "logit"])
def test_the_gradient_reaches_the_picture(
    model: ImageModel, unit: Unit, recipe: Maximisation, kind: str
) -> None:
    """Every kind of unit is driven well above its start."""
    layer = "head" if kind == "logit" else "middle"
    target = unit(layer, 1, FeatureKind(kind))

    picture = maximise(model, [target], replace(recipe, steps=20))[0]

    assert picture.activation > picture.first_activation + 0.1
    assert picture.history[-1] > picture.history[0]


def test_the_activation_is_in_the_view_of_the_live_statistics(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Max and mean views of one channel are made alike and measured each in its own way."""
    by_max, by_mean = maximise(
        model, [unit("middle", 1, view=View.MAX), unit("middle", 1, view=View.MEAN)], recipe
    )
    colours = torch.from_numpy(by_max.image.copy()).permute(2, 0, 1)[None].float() / 255
    whole = nn.functional.interpolate(colours, (24, 24), mode="bilinear", antialias=True)
    maps = torch.tanh(net.middle(torch.relu(net.low((whole - 0.5) / 0.5))))
    # A hook on the module sees its output before the tanh that the network applies to it.
    plain = torch.atanh(maps)[0, 1]

    assert np.array_equal(by_max.image, by_mean.image)
    assert by_max.activation == pytest.approx(plain.max().item(), abs=1e-4)
    assert by_mean.activation == pytest.approx(plain.mean().item(), abs=1e-4)


def test_a_neuron_is_one_position_and_the_centre_by_default(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The middle layer is 6 x 6, so no position means (3, 3)."""
    neuron = FeatureKind.NEURON
    implied, named, corner = (
        maximise(model, [unit("middle", 1, neuron, position=place)], recipe)[0]
        for place in (None, (3, 3), (0, 0))
    )

    # The random numbers are the target's, and the position is part of the target.
    assert implied.activation > implied.first_activation
    assert named.activation > named.first_activation
    assert not np.array_equal(named.image, corner.image)


def test_nothing_above_the_target_layer_runs(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """A whole request for a middle layer never gets to the upper part."""
    maximise(model, [unit("low", 1), unit("middle", 1)], recipe)

    assert net.upper_calls == 0


def test_the_cut_gets_past_a_model_that_swallows_exceptions(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """What ends the forward pass is no Exception that a model may catch."""
    picture = maximise(wrap(Swallowing()), [unit("site", 0)], recipe)[0]

    assert picture.activation > picture.first_activation


def _cancel_after(steps: int) -> Callable[[], bool]:
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def test_cancelling_takes_effect_before_the_next_step(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """After it says stop, no further step begins."""
    steps: list[int] = []
    ticks = iter(range(0, 1000, 3))

    with pytest.raises(JobCancelled, match="step 4 of 6"):
        maximise(
            model,
            [unit("middle", 1)],
            recipe,
            on_progress=lambda p: steps.append(p.step),
            cancelled=_cancel_after(4),
            clock=lambda: float(next(ticks)),
        )

    assert [0, 1, 2, 3, 4] == steps


def test_no_hook_is_left_after_success(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """A finished request leaves the module as it was."""
    maximise(model, [unit("middle", 1)], recipe)

    assert _hooks(net) == 0


def test_no_hook_is_left_after_an_error(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Errors of the callback, of the target and of the model's forward all clean up."""

    def fail(_: Progress) -> None:
        raise OSError("nobody listens")

    with pytest.raises(OSError, match="nobody"):
        maximise(model, [unit("middle", 1)], recipe, on_progress=fail)
    with pytest.raises(UnknownLayer):
        maximise(model, [unit("middle", 1), unit("spare", 0)], recipe)
    with pytest.raises(UnsupportedTarget):
        maximise(replace(model, input_size=0), [unit("middle", 1)], recipe)

    assert _hooks(net) == 0


def test_no_hook_is_left_after_cancelling(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """A cancelled request leaves the module as it was."""
    with pytest.raises(JobCancelled):
        maximise(model, [unit("middle", 1)], recipe, cancelled=lambda: True)

    assert _hooks(net) == 0


def test_parameters_and_buffers_are_unchanged(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The picture is optimised, not the network."""
    before = {name: value.clone() for name, value in net.state_dict().items()}

    maximise(model, [unit("middle", 1)], recipe)

    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_progress_never_goes_back_and_ends_at_the_last_step(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Two layers and three batches count as one request."""
    heard: list[Progress] = []
    targets = [unit("low", 1), *(unit("middle", i % 8) for i in range(9))]

    maximise(model, targets, replace(recipe, steps=20), on_progress=heard.append)

    steps = [p.step for p in heard]
    assert sorted(steps) == steps
    assert {60} == {p.steps for p in heard}
    assert steps[0] == 0
    assert steps[-1] == 60
    assert {16, 20, 36} <= set(steps)
    assert math.isnan(heard[0].activations[1])
    assert all(math.isfinite(value) for value in heard[-1].activations)


def test_intermediate_pictures_show_the_current_batch_side_by_side(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The last preview is the finished pictures in a row."""
    heard: list[Progress] = []

    pictures = maximise(
        model, [unit("middle", 1), unit("middle", 2)], recipe, on_progress=heard.append
    )

    assert (0, 1) == heard[-1].shown
    assert np.array_equal(np.concatenate([p.image for p in pictures], 1), heard[-1].preview)
    assert heard[-1].png().startswith(b"\x89PNG")


def test_a_slow_device_reports_every_two_seconds(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """When a step takes 0.7 s, people do not wait 16 steps for a picture."""
    heard: list[int] = []
    now = [0.0]

    def slow() -> bool:
        now[0] += 0.7
        return False

    maximise(
        model,
        [unit("middle", 1)],
        replace(recipe, steps=9),
        on_progress=lambda p: heard.append(p.step),
        cancelled=slow,
        clock=lambda: now[0],
    )

    assert [0, 3, 6, 9] == heard


@pytest.mark.parametrize("index", [1, 2])
def test_a_silent_unit_is_named_and_never_painted(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation, index: int
) -> None:
    """A constant channel has no gradient: an error names it, and not its healthy neighbour."""
    heard: list[int] = []
    targets = [unit("site", 0), unit("site", index)]

    with pytest.raises(SilentFeature, match=f"site/channel/{index}: no gradient in 16") as caught:
        maximise(
            wrap(Undead()),
            targets,
            replace(recipe, steps=100),
            on_progress=lambda p: heard.append(p.step),
        )

    assert "channel/0" not in str(caught.value)
    assert max(heard) < 16


def test_priors_do_not_hide_a_silent_unit(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """Total variation and the other units have gradients, the dead unit still has none."""
    target = unit("site", 1)
    layer = str(target.feature.layer)
    typical = TypicalRange(
        {layer: np.full(3, -0.1, np.float32)}, {layer: np.full(3, 0.1, np.float32)}
    )
    priors = replace(recipe, total_variation=1.0, typical_range=1.0)

    with pytest.raises(SilentFeature, match="channel/1"):
        maximise(wrap(Undead()), [target], priors, materials=Materials(typical))


def test_a_layer_without_gradients_is_refused(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation
) -> None:
    """A forward under no_grad gets an explanation, not a torch traceback."""
    with pytest.raises(SilentFeature, match="no_grad"):
        maximise(wrap(Blind()), [unit("site", 0)], recipe)


@pytest.mark.parametrize("passes", [1, 2, 5, 8, 9, 23])
def test_numbers_that_stop_being_finite_end_the_job(
    wrap: Callable[[nn.Module], ImageModel], unit: Unit, recipe: Maximisation, passes: int
) -> None:
    """NaN in the start, at any step, or only in the finished picture: always the same error."""
    with pytest.raises(NonFiniteActivation, match="site/channel/0"):
        maximise(wrap(Exploding(passes)), [unit("site", 0)], recipe)


def test_a_plan_costs_two_images_and_counts_all_others(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """It tells the forward images, a time and a memory bound from two dry passes."""
    ticks = iter([10.0, 10.5])
    passes: list[int] = []
    net.low.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))

    cost = plan(
        model, [unit("middle", 1), unit("low", 1)], recipe, clock=lambda: float(next(ticks))
    )

    assert [1, 1] == passes
    assert cost.forwards == 2 * (6 + 18)
    assert cost.seconds_estimate == pytest.approx(0.5 * (3 * 12 + 36))
    assert 6 * 12 * 12 * 4 < cost.bytes_estimate < 10_000_000


def test_a_plan_never_runs_above_the_highest_target(
    net: nn.Module, model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """The dry pass is cut off as well."""
    plan(model, [unit("middle", 1), unit("low", 1)], recipe)

    assert net.upper_calls == 0
    assert _hooks(net) == 0


@pytest.mark.parametrize("ask", [plan, maximise])
def test_what_does_not_exist_is_refused_before_any_work(
    model: ImageModel, unit: Unit, recipe: Maximisation, ask: Callable[..., object]
) -> None:
    """Layers, indices, positions, views and shapes are checked first, by both entrances."""
    neuron, logit = FeatureKind.NEURON, FeatureKind.LOGIT

    with pytest.raises(UnknownLayer, match="did you mean middle"):
        ask(model, [unit("midle", 0)], recipe)
    with pytest.raises(UnknownLayer, match="never runs"):
        ask(model, [unit("spare", 0)], recipe)
    with pytest.raises(UnknownFeature, match="use 0 to 7"):
        ask(model, [unit("middle", 8)], recipe)
    with pytest.raises(UnsupportedTarget, match=r"\(6, 0\) is outside the layer's 6 x 6"):
        ask(model, [unit("middle", 0, neuron, position=(6, 0))], recipe)
    with pytest.raises(UnsupportedTarget, match=r"\(-1, 0\)"):
        ask(model, [unit("middle", 0, neuron, position=(-1, 0))], recipe)
    with pytest.raises(UnsupportedTarget, match="holds no logits"):
        ask(model, [unit("middle", 0, logit)], recipe)
    with pytest.raises(UnsupportedTarget, match="view entropy"):
        ask(model, [unit("middle", 0, view=View.ENTROPY)], recipe)
    with pytest.raises(UnsupportedTarget, match="no targets"):
        ask(model, [], recipe)
    with pytest.raises(UnsupportedTarget, match=r"check the model's input\.size"):
        ask(replace(model, input_size=0), [unit("middle", 0)], recipe)


def test_the_typical_range_prior_needs_a_range(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """Asking for the prior without a baseline is an error, not a silent no-op."""
    with pytest.raises(UnsupportedTarget, match="baseline"):
        maximise(model, [unit("middle", 0)], replace(recipe, typical_range=1.0))
