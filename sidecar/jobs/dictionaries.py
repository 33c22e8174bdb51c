"""The configured dictionaries of directions: which layer has one, and what its rows are called."""

from collections.abc import Sequence
from urllib.parse import unquote

from sidecar.config import DictionaryConfig, read_labels
from sidecar.errors import DigestMismatch, UnknownFeature, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey
from sidecar.jobs.files import FileDigests
from sidecar.jobs.spec import DictionarySpec

_PARTS = 4
"""Of a feature's text: model, layer, kind and unit."""

_NAMES_SHOWN = 20


class Dictionaries:
    """Finds dictionaries by the layer they are over. Safe to use from several threads.

    The daemon reads names and digests; the vectors are read in the worker alone.
    """

    def __init__(self, configured: Sequence[DictionaryConfig] = ()) -> None:
        """Take the configured dictionaries, and read the names of their rows.

        Raises:
            ValueError: A file of names cannot be read any more.
        """
        self._configured = {(one.model, one.layer): one for one in configured}
        self._labels = {
            place: read_labels(one.labels)
            for place, one in self._configured.items()
            if one.labels is not None
        }
        self._digests = FileDigests()

    def has(self, layer: LayerKey) -> bool:
        """Whether a layer's units are directions, and there is a file of them."""
        return layer.kind is FeatureKind.DIRECTION and self._place(layer) in self._configured

    def numbered(self, text: str) -> str:
        """Return a feature's text with the row's number where a direction is named; others as they are.

        Raises:
            UnknownFeature: The layer has no dictionary, or its dictionary has no such name.

        Example:
            >>> Dictionaries().numbered("lite0/_blocks.11/direction/3")
            'lite0/_blocks.11/direction/3'
        """
        parts = unquote(text).split("/")
        if len(parts) != _PARTS or parts[2] != FeatureKind.DIRECTION:
            return text
        owner, layer, kind, tail = parts
        name, semicolon, view = tail.partition(";")
        if name.isdigit():
            return text
        place = owner.partition("@")[0], layer
        row = self._row(text, place, name)
        return f"{owner}/{layer}/{kind}/{row}{semicolon}{view}"

    def _row(self, text: str, place: tuple[str, str], name: str) -> int:
        shown = f"feature {text[:120]!r}"
        if place not in self._configured:
            raise UnknownFeature(
                f"{shown}: there is no dictionary over layer {place[1]!r} of model {place[0]!r}: name its "
                "file under dictionaries"
            )
        labels = self._labels.get(place, ())
        if name not in labels:
            known = (
                ", ".join(labels[:_NAMES_SHOWN]) or "none: name a file under dictionaries.labels"
            )
            raise UnknownFeature(
                f"{shown}: dictionary {self._configured[place].name} has no direction {name[:80]!r}: use "
                f"the row's number or one of its labels, {known}"
            )
        return labels.index(name)

    def check(self, layer: LayerKey, index: int) -> None:
        """Refuse a direction of a layer that has none, or one beyond those that have names.

        Raises:
            UnsupportedTarget: There is no dictionary over the layer.
            UnknownFeature: The rows have names, and fewer.
        """
        config = self._find(layer)
        rows = len(self._labels.get(self._place(layer), ()))
        if rows and index >= rows:
            raise UnknownFeature(
                f"{layer.feature(index)}: dictionary {config.name} names {rows} directions: use 0 to "
                f"{rows - 1}"
            )

    def read(self, layer: LayerKey) -> DictionarySpec:
        """Return the dictionary of a layer with its file's digest.

        Raises:
            UnsupportedTarget: There is none, or its file cannot be read.
            DigestMismatch: The file is another than the configuration promises.

        Complexity:
            Reads the file once a process and change, at the speed of the disk.
        """
        config = self._find(layer)
        try:
            digest = self._digests.of(config.file)
        except OSError as error:
            raise UnsupportedTarget(
                f"dictionary {config.name}: cannot read {config.file}: {error}"
            ) from error
        if config.digest and digest != config.digest:
            raise DigestMismatch(
                f"dictionary {config.name}: {config.file} has sha256 {digest}, but dictionaries[].digest "
                f"says {config.digest}: mend either"
            )
        return DictionarySpec(config.name, layer.layer, str(config.file.resolve()), digest)

    def _find(self, layer: LayerKey) -> DictionaryConfig:
        found = self._configured.get(self._place(layer))
        if found is None:
            raise UnsupportedTarget(
                f"layer {layer.layer} of model {layer.model} has no dictionary of directions: name a file "
                "of vectors for it under dictionaries"
            )
        return found

    @staticmethod
    def _place(layer: LayerKey) -> tuple[str, str]:
        return layer.model, layer.layer
