from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ShapeMismatch
from sidecar.features import FeatureKey, FeatureKind, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, Materials, TypicalRange, maximise
from sidecar.visualise.priors import TypicalRangePrior, total_variation
from sidecar.visualise.units import Site, Units, forward_to

pytestmark = pytest.mark.unit

Unit = Callable[..., Target]
CPU = torch.device("cpu")


def _colours(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def test_total_variation_is_the_mean_difference_of_neighbours() -> None:
    """Flat is nothing; a one-pixel checkerboard is one each way."""
    flat = torch.full((1, 3, 16, 16), 0.3)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)

    found = total_variation(torch.cat([flat, board]))

    assert [0.0, 2.0] == found.tolist()


def test_the_total_variation_weight_lowers_the_measured_variation(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """More weight, smoother picture, in order."""
    measured = [
        total_variation(
            _colours(
                maximise(
                    model,
                    [unit("middle", 1)],
                    replace(recipe, steps=15, total_variation=weight),
                )[0].image
            )
        ).item()
        for weight in (0.0, 3.0, 30.0)
    ]

    assert sorted(measured, reverse=True) == measured
    assert measured[2] < 0.5 * measured[0]


def _overshoot(model: ImageModel, picture: np.ndarray, typical: TypicalRange, of: Target) -> float:
    """Mean distance of the other units from their range, by the ten-line definition."""
    layer = str(of.feature.layer)
    low, high = typical.low[layer], typical.high[layer]
    small = torch.nn.functional.interpolate(
        _colours(picture), (24, 24), mode="bilinear", antialias=True
    )
    values = forward_to(model, of.feature.layer.layer, small).amax((2, 3))[0].numpy()
    over = np.maximum(values - high, 0) + np.maximum(low - values, 0)
    return float(np.delete(over / (high - low), of.feature.index).mean())


def test_the_typical_range_keeps_the_other_units_in_and_the_target_free(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """With the prior the others overshoot far less, and the target still rises."""
    target = unit("middle", 1)
    layer = str(target.feature.layer)
    typical = TypicalRange(
        {layer: np.full(8, -0.2, np.float32)}, {layer: np.full(8, 0.4, np.float32)}
    )
    long = replace(recipe, steps=40)

    free = maximise(model, [target], long)[0]
    kept = maximise(
        model, [target], replace(long, typical_range=3.0), materials=Materials(typical)
    )[0]

    loose, tight = (_overshoot(model, p.image, typical, target) for p in (free, kept))
    assert tight < 0.6 * loose
    assert kept.activation > kept.first_activation + 0.1
    assert typical.digest(target.feature.layer) == kept.inputs["typical"]
    assert {} == free.inputs


@settings(deadline=None)  # the first call of a torch kernel takes its time
@given(seed=st.integers(0, 10_000), index=st.integers(0, 4), view=st.sampled_from(["max", "mean"]))
def test_the_penalty_is_the_others_mean_overshoot_in_widths(
    seed: int, index: int, view: str
) -> None:
    """The vectorised form equals the loop over units, unknown units left out of the sum."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(0, 3, (1, 5, 3, 4)).astype(np.float32))
    low = rng.normal(-1, 0.5, 5).astype(np.float32)
    high = (low + rng.uniform(0.5, 2, 5)).astype(np.float32)
    low[seed % 5] = high[seed % 5] = np.nan
    target = _target(index, View(view))
    layer, site = target.feature.layer, Site(5, 3, 4)
    prior = TypicalRangePrior(TypicalRange({str(layer): low}, {str(layer): high}), layer, site, CPU)

    found = prior(Units.of([target], site, CPU), maps).item()

    expected = 0.0
    for other in set(range(5)) - {index, seed % 5}:
        grid = maps[0, other].numpy()
        value = grid.max() if view == "max" else grid.mean()
        over = max(value - high[other], 0) + max(low[other] - value, 0)
        expected += over / (high[other] - low[other]) / 4
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_unit_that_never_moves_live_does_not_drown_the_others() -> None:
    """A range of zero width is widened to a thousandth of the layer's median."""
    target = _target(0, View.MAX)
    layer, site = target.feature.layer, Site(3, 1, 1)
    low, high = np.zeros(3, np.float32), np.array([1, 1, 0], np.float32)
    prior = TypicalRangePrior(TypicalRange({str(layer): low}, {str(layer): high}), layer, site, CPU)

    cost = prior(Units.of([target], site, CPU), torch.full((1, 3, 1, 1), 0.5))

    assert 0.5 / 1e-3 / 2 == pytest.approx(cost.item())


def test_a_range_of_another_width_is_refused(
    model: ImageModel, unit: Unit, recipe: Maximisation
) -> None:
    """A baseline of another revision cannot be used by mistake."""
    target = unit("middle", 1)
    ends = {str(target.feature.layer): np.zeros(7, np.float32)}

    with pytest.raises(ShapeMismatch, match="7 units, the layer has 8"):
        maximise(
            model,
            [target],
            replace(recipe, typical_range=1.0),
            materials=Materials(TypicalRange(ends, ends)),
        )


def _target(index: int, view: View) -> Target:
    return Target(FeatureKey(LayerKey("m", "r", "site", FeatureKind.CHANNEL, view), index))
