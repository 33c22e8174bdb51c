"""Finds the directions that people name, which no traffic need have been counted for."""

from collections.abc import Callable

from sidecar.errors import UnknownFeature, UnknownLayer, UnknownModel
from sidecar.features import FeatureKey, FeatureKind, FeatureSelector, LayerKey
from sidecar.jobs import Dictionaries
from sidecar.monitor.monitor import Monitor


class DirectionLookup:
    """Features by their text; those of a configured dictionary also where nobody watches them."""

    def __init__(self, monitor: Monitor, dictionaries: Dictionaries) -> None:
        """Look features up in the monitor first, then among the dictionaries."""
        self._monitor, self._dictionaries = monitor, dictionaries

    def resolve(self, text: str) -> FeatureKey:
        """Return the feature that a text names, see ``Monitor.resolve``.

        A direction may be called by its name, and takes the revision of the model's other layers.

        Raises:
            InvalidName, UnknownModel, UnknownLayer, UnknownFeature: As ``Monitor.resolve``; or the
                layer's dictionary has no such direction.
        """
        numbered = self._dictionaries.numbered(text)
        try:
            return self._monitor.resolve(numbered)
        except (UnknownLayer, UnknownModel):
            wanted = FeatureSelector.parse(numbered)
            layers = self._monitor.select(wanted.model, wanted.revision)
            revisions = sorted({key.revision for key in layers})
            found = [self._unwatched(wanted, revision) for revision in revisions]
            if not found or not self._dictionaries.has(found[0].layer):
                raise
        if len(found) > 1:
            names = ", ".join(sorted(key.layer.shown_revision for key in found))
            raise UnknownFeature(f"feature {text!r} fits revisions {names}: name one")
        return found[0]

    def check(self, key: FeatureKey, watched: Callable[[FeatureKey], object]) -> None:
        """Refuse a feature that is not there.

        Args:
            key: What is asked for.
            watched: Raises where the monitor has no such feature.

        Raises:
            UnsupportedTarget: It is a direction of a layer without a dictionary.
            UnknownFeature: The dictionary's names are fewer.
            UnknownModel: Nobody ever registered the model at that revision.
        """
        layer = key.layer
        if layer.kind is not FeatureKind.DIRECTION:
            watched(key)
            return
        self._dictionaries.check(layer, key.index)
        if layer.revision not in {one.revision for one in self._monitor.select(layer.model)}:
            raise UnknownModel(f"{key}: no layer of the model at that revision was ever registered")

    @staticmethod
    def _unwatched(wanted: FeatureSelector, revision: str) -> FeatureKey:
        layer = LayerKey(
            wanted.model, revision, wanted.layer, wanted.kind, wanted.view, wanted.scope
        )
        return layer.feature(wanted.index)
