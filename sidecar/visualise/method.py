"""What every way of making a picture has in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UnsupportedTarget
from sidecar.recipes import Dataset, Recipe, Target
from sidecar.visualise.model import VisionModel
from sidecar.visualise.pictures import Cost, Picture, Progress, TypicalRange

_Kind = TypeVar("_Kind", bound=Recipe)
_Model_contra = TypeVar("_Model_contra", bound=VisionModel, contravariant=True)


class Checkpoint(Protocol):
    """Where a long run keeps what it has, so that another attempt need not begin anew."""

    def load(self) -> bytes | None:
        """Return what was saved last, or None; whoever saved it must be able to tell it is theirs."""

    def save(self, state: bytes) -> None:
        """Keep this in place of what was saved before, or not at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Named vectors over the units of one layer.

    Attributes:
        vectors: Shape ``(directions, width)``, float32.
        digest: sha256 of the file they are from.
    """

    vectors: NDArray[np.float32]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Materials:
    """What a run is given beside its targets.

    Attributes:
        typical: Ranges for the typical-range prior; None: there are none.
        images: Pictures that the recipe looks at, by the digest of their artifact; RGB, shape
            ``(height, width, 3)``.
        datasets: What the recipe looks through, by name.
        models: Other models that it looks at, by name; some only run forward.
        sources: What names each of these in content keys; none: its digest.
        directions: Dictionaries of vectors, by the layer they are of.
    """

    typical: TypicalRange | None = None
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=lambda: MappingProxyType({}))
    datasets: Mapping[str, Dataset] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[str, VisionModel] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    directions: Mapping[str, Directions] = field(default_factory=lambda: MappingProxyType({}))

    def model(self, name: str) -> VisionModel:
        """Return another model that the recipe looks at.

        Raises:
            UnsupportedTarget: It was not handed over.
        """
        if name not in self.models:
            raise UnsupportedTarget(f"model {name!r} was not handed over: name one under models")
        return self.models[name]

    def source(self, name: str) -> str:
        """Return what names another model in content keys.

        Raises:
            UnsupportedTarget: It was not handed over.
        """
        return self.sources.get(name) or self.model(name).digest

    def dataset(self, name: str) -> Dataset:
        """Return a dataset that the recipe looks through.

        Raises:
            UnsupportedTarget: It was not handed over, or is empty.
        """
        found = self.datasets.get(name)
        if found is None or not found.files:
            raise UnsupportedTarget(f"dataset {name!r} was not handed over, or has no image")
        return found

    def image(self, digest: str) -> NDArray[np.uint8]:
        """Return a picture that the recipe looks at.

        Raises:
            UnsupportedTarget: It was not handed over.
        """
        if digest not in self.images:
            raise UnsupportedTarget(f"image {digest[:80]} was not handed over: it is no artifact")
        return self.images[digest]


class Method(Protocol[_Kind, _Model_contra]):
    """One way of making pictures of units.

    Every method is deterministic in its arguments on one machine and number of threads, checks a
    request before it works on it, leaves the model as it was, and asks ``cancelled`` at least once
    a pass. ``tests/visualise/conformance.py`` holds them all to it.
    """

    recipe: type[_Kind]
    """The kind of recipe that asks for it."""

    gradients: bool
    """Whether it can work on no model that only runs forward."""

    def plan(
        self, model: _Model_contra, targets: Sequence[Target], recipe: _Kind, materials: Materials
    ) -> Cost:
        """Check a request and say what it will take.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: The request cannot be met; says why.
        """

    def run(
        self,
        model: _Model_contra,
        targets: Sequence[Target],
        recipe: _Kind,
        materials: Materials,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[Picture, ...]:
        """Make one picture a target, in their order.

        Raises:
            UnknownLayer, UnknownFeature, UnsupportedTarget: As ``plan``, before any work.
            SilentFeature, NonFiniteActivation: What came of it is no picture.
            JobCancelled: ``cancelled`` said so.
        """


AnyMethod = Method[Any, Any]
