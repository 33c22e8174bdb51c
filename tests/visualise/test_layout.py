"""The other layout of an atlas: UMAP where it is installed, a stand-in where only the call matters."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sidecar.errors import SilentFeature, UnsupportedTarget
from sidecar.recipes import Atlas, Dataset, Target, content_key
from sidecar.visualise import ImageModel, Materials, Picture, method_for
from sidecar.visualise.layout import lay_out
from tests.visualise.conftest import noise_in

RECIPE = Atlas(dataset="noise", grid=2, least=1, steps=1, canvas=32, layout="umap")
APART = 10.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Put a stand-in in the place of umap-learn, which places by the first two units; says what it was asked."""
    said: list[dict[str, object]] = []

    class Umap:
        """What is used of the library."""

        def __init__(self, **settings: object) -> None:
            said.append(settings)

        def fit_transform(self, taken: np.ndarray) -> np.ndarray:
            """Return a place for each activation."""
            return taken[:, :2]

    module = ModuleType("umap")
    module.UMAP = Umap  # type: ignore[attr-defined]  # it has no other
    module.__spec__ = ModuleSpec("umap", None)
    monkeypatch.setitem(sys.modules, "umap", module)
    return said


@pytest.fixture
def noise(tmp_path: Path) -> Dataset:
    """Some images."""
    return noise_in(tmp_path, 8)


def draw(model: ImageModel, noise: Dataset, target: Target, recipe: Atlas = RECIPE) -> Picture:
    """Make a map."""
    materials = Materials(datasets={"noise": noise})
    return method_for(recipe).run(model, [target], recipe, materials)[0]


@pytest.mark.e2e  # seconds of compiling
def test_neighbours_stay_neighbours_and_the_seed_says_where() -> None:
    """Two clouds come out apart; the same seed gives the same bits, another does not."""
    pytest.importorskip("umap", reason="the extra umap is not installed", exc_type=ImportError)
    rng = np.random.default_rng(2)
    clouds = rng.normal(size=(2, 40, 8)) + np.array([0.0, APART])[:, None, None]
    taken = torch.from_numpy(clouds.reshape(80, 8).astype(np.float32))

    places, shares = lay_out(taken, "umap", 7)
    again, other = (lay_out(taken, "umap", seed)[0] for seed in (7, 8))

    one, two = places[:40], places[40:]
    spread = max(part.std(0).max() for part in (one, two))
    assert np.linalg.norm(one.mean(0) - two.mean(0)) > 2 * spread
    assert places.tobytes() == again.tobytes() != other.tobytes()
    assert np.isnan(shares).all()


@pytest.mark.unit
def test_umap_is_asked_for_one_thread_and_the_recipes_seed(
    model: ImageModel,
    noise: Dataset,
    unit: Callable[..., Target],
    asked: list[dict[str, object]],
) -> None:
    """More threads would add up in another order each time; seeds beyond its range are folded into it."""
    picture = draw(model, noise, unit("middle", 1), replace(RECIPE, seed=(1 << 32) + 5))

    assert [{"n_neighbors": 15, "random_state": 5, "n_jobs": 1}] == asked
    assert ("umap", None) == (
        picture.findings["layout"],
        picture.findings["variance_explained"],
    )


@pytest.mark.unit
def test_the_layout_is_part_of_the_key(unit: Callable[..., Target]) -> None:
    """Another layout is another picture."""
    keys = {content_key(unit("middle", 1), replace(RECIPE, layout=one)) for one in ("pca", "umap")}

    assert 2 == len(keys)


@pytest.mark.unit
@pytest.mark.usefixtures("asked")
def test_what_umap_cannot_lay_out_is_refused_in_words() -> None:
    """Fewer activations than neighbours; and those that are all the same."""
    with pytest.raises(
        UnsupportedTarget, match="more than 15 activations, and there are 15: raise"
    ):
        lay_out(torch.randn(15, 4), "umap")
    with pytest.raises(SilentFeature, match="the same everywhere"):
        lay_out(torch.ones(20, 4), "umap")


@pytest.mark.unit
def test_without_the_package_plan_and_run_say_what_to_install(
    model: ImageModel,
    noise: Dataset,
    unit: Callable[..., Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before a picture is looked at."""
    monkeypatch.setattr("sidecar.visualise.layout.importlib.util.find_spec", lambda _: None)
    target, materials = unit("middle", 1), Materials(datasets={"noise": noise})

    for ask in (method_for(RECIPE).plan, method_for(RECIPE).run):
        with pytest.raises(UnsupportedTarget, match=r"pip install 'feature-sidecar\[umap\]', or"):
            ask(model, [target], RECIPE, materials)
