"""The layers of a bank: which there are, and how many more there may be."""

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import (
    InvalidInput,
    LayerConflict,
    LimitReached,
    ShapeMismatch,
    UnknownFeature,
    UnknownLayer,
    UnregisteredLayer,
)
from sidecar.features import (
    WEIGHT_LIMIT,
    FeatureKind,
    LayerKey,
    LayerSample,
    Scope,
    SparseSample,
    View,
)


class Registered(Protocol):
    """A layer, of whatever bank."""

    @property
    def width(self) -> int:
        """Its features."""
        ...


_L = TypeVar("_L", bound=Registered)


class Registry(Generic[_L]):
    """Layers by their keys, in the order they were registered, within limits of number and width.

    Args:
        units: What the units of a layer are called in messages.
        layer_limit: Most layers.
        unit_limit: Most units over all of them.
        advice: What to do where there are too many units.
    """

    def __init__(self, units: str, layer_limit: int, unit_limit: int, advice: str) -> None:
        self._units, self._advice = units, advice
        self._layer_limit, self._unit_limit = layer_limit, unit_limit
        self._layers: dict[LayerKey, _L] = {}

    def __iter__(self) -> Iterator[LayerKey]:
        return iter(self._layers)

    def __getitem__(self, layer: LayerKey) -> _L:
        """Return a registered layer.

        Raises:
            UnknownLayer: It was never registered.
        """
        known = self._layers.get(layer)
        if known is None:
            raise UnknownLayer(f"layer {layer} was never registered")
        return known

    def __setitem__(self, layer: LayerKey, kept: _L) -> None:
        self._layers[layer] = kept

    def __delitem__(self, layer: LayerKey) -> None:
        self[layer]  # or says that it is unknown
        del self._layers[layer]

    def values(self) -> tuple[_L, ...]:
        """Return the layers."""
        return tuple(self._layers.values())

    def sampled(self, sample: LayerSample | SparseSample) -> _L:
        """Return the layer that a sample is of.

        Raises:
            UnregisteredLayer: It was never registered.
        """
        known = self._layers.get(sample.layer)
        if known is None:
            raise UnregisteredLayer(f"layer {sample.layer}: announce it before sending rows")
        return known

    def admits(self, layer: LayerKey, width: int) -> bool:
        """Return whether a layer that is announced is new; if not, it is the one that is known.

        Raises:
            LayerConflict: It is known with another width.
            LimitReached: It is new, and there are as many layers or units as there may be.
            ShapeMismatch: The width is not positive.
        """
        known = self._layers.get(layer)
        if known is not None:
            if known.width != width:
                raise LayerConflict(
                    f"layer {layer} has {known.width} {self._units} and was announced with {width}: "
                    "another width needs another model revision or layer name"
                )
            return False
        if width < 1:
            raise ShapeMismatch(f"layer {layer} was announced with width {width}: use at least 1")
        if len(self._layers) >= self._layer_limit:
            raise LimitReached(f"layer {layer}: {self._layer_limit} layers are kept already")
        used = sum(one.width for one in self._layers.values())
        if used + width > self._unit_limit:
            raise LimitReached(
                f"layer {layer}: {width} {self._units} on top of {used} exceed the limit of "
                f"{self._unit_limit}: {self._advice}"
            )
        return True

    def check_within(self, layer: LayerKey, features: NDArray[np.int64] | None) -> None:
        """Raise if a layer has not got all of these units; None are all it has.

        Raises:
            UnknownLayer: It was never registered.
            UnknownFeature: It has no such unit.
        """
        width = self[layer].width
        if features is not None and len(features):
            least, most = features.min(), features.max()
            if not 0 <= least <= most < width:
                raise UnknownFeature(
                    f"{self._units} {least} to {most} of {layer}: use 0 to {width - 1}"
                )


def weights_of(sample: LayerSample | SparseSample) -> NDArray[np.float64]:
    """Return how much each row of a sample stands for, shape ``(rows,)``; empty: each for itself.

    So does each row of a sample that describes no request.

    Raises:
        InvalidInput: A request's weight is not from 1 to ``WEIGHT_LIMIT``.
        ShapeMismatch: ``request_index`` points beyond the requests.
    """
    own = np.array([request.weight for request in sample.requests], np.float64)
    wrong = np.flatnonzero(~((own >= 1.0) & (own <= WEIGHT_LIMIT)))  # a NaN too
    if len(wrong):
        raise InvalidInput(
            f"layer {sample.layer}: request {wrong[0]} of the sample has weight {own[wrong[0]]}: use "
            f"1 to {WEIGHT_LIMIT:.0f}"
        )
    least, most = sample.request_index.min(initial=0), sample.request_index.max(initial=0)
    if len(own) and not 0 <= least <= most < len(own):
        raise ShapeMismatch(
            f"layer {sample.layer}: request_index has to point into {len(own)} requests, and goes "
            f"from {least} to {most}"
        )
    if (own == 1.0).all():
        return np.empty(0)
    return np.asarray(own[sample.request_index], np.float64)


def read_key(saved: Mapping[str, str]) -> LayerKey:
    """Return a layer's key from its attributes as text; KeyError and ValueError say what is wrong."""
    return LayerKey(
        saved["model"],
        saved["revision"],
        saved["layer"],
        FeatureKind(saved["kind"]),
        View(saved["view"]),
        Scope(saved["scope"]),
    )
