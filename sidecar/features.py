"""Identities and value types that cross rooms.

Three things are kept apart on purpose, because mixing them is how comparisons go wrong: the
*feature* (what is measured), the *capture* (how it was measured) and the *slice* (on which traffic).
Nothing here reads a clock, a file or a socket.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import InvalidName, MalformedMessage, ShapeMismatch, UnsupportedDtype

NAME_LIMIT = 200
"""Longest model, layer, slice or request name in characters; keeps labels and URLs bounded."""

SLICE_LIMIT = 8
"""Most key=value pairs in one slice; each pair multiplies the number of series it can cause."""

WEIGHT_LIMIT = 2**20
"""Largest weight of a request: sums of weighted 32-bit counts stay far from where float64 rounds, and
hooks that sample less than one row in a million have nothing to say about the rest."""

REVISION_DISPLAY = 12
"""Characters of a revision's sha256 that are shown: 48 bits, ample for one site's revisions."""

INDEX_DIGITS = 18
"""Most digits of a feature index in text: far beyond any model, and safely below 2**63."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]*")
_SLICE_VALUE = re.compile(r"[A-Za-z0-9_./:\-]+")


class FeatureKind(StrEnum):
    """What sort of unit a feature is."""

    NEURON = "neuron"
    CHANNEL = "channel"
    HEAD = "head"
    LATENT = "latent"
    DIRECTION = "direction"
    LOGIT = "logit"
    NORM = "norm"


class View(StrEnum):
    """How a unit's activations over space or positions become one number."""

    RAW = "raw"
    ABS = "abs"
    RELU = "relu"
    MAX = "max"
    MEAN = "mean"
    ENTROPY = "entropy"


class Scope(StrEnum):
    """Which positions of a sequence a feature is measured on."""

    ALL = "all"
    BOS = "bos"
    PROMPT = "prompt"
    GENERATED = "generated"


_DEFAULT_VIEW = {
    FeatureKind.CHANNEL: View.MAX,
    FeatureKind.DIRECTION: View.MAX,
    FeatureKind.HEAD: View.MEAN,
}


def default_view(kind: FeatureKind) -> View:
    """Return the view of a kind when none is named: channels, directions max; heads mean; else raw."""
    return _DEFAULT_VIEW.get(kind, View.RAW)


def check_name(field_name: str, value: str) -> str:
    """Return ``value`` if it can be a model, layer or slice name.

    Args:
        field_name: What the value is, for the message.
        value: The candidate.

    Raises:
        InvalidName: It is empty, longer than ``NAME_LIMIT``, or holds characters other than
            letters, digits and ``_ . : -``.
    """
    if len(value) > NAME_LIMIT or not _NAME.fullmatch(value):
        raise InvalidName(
            f"{field_name} {value[:80]!r} is not a name: use 1 to {NAME_LIMIT} letters, digits, "
            "'_', '.', ':' or '-', not starting with '.', ':' or '-'"
        )
    return value


def is_digest(revision: str) -> bool:
    """Whether a revision is a sha256, which may be shortened, and not a name that people chose."""
    return _DIGEST.fullmatch(revision) is not None


def short_revision(revision: str) -> str:
    """Return the form in which a revision is shown: 12 characters of a digest, any other name whole.

    Cutting a name that people chose, such as ``production-2026-11``, could make two revisions one.
    """
    return revision[:REVISION_DISPLAY] if is_digest(revision) else revision


def revision_matches(wanted: str, revision: str) -> bool:
    """Whether somebody who writes ``wanted`` means ``revision``.

    Args:
        wanted: A whole revision, the beginning of a digest, or empty for any revision.
        revision: A revision. Of a name such as ``v10`` no part will do: ``v1`` is another revision.

    Example:
        >>> revision_matches("v1", "v10"), revision_matches("3fa", "3fa" + "0" * 61)
        (False, True)
    """
    return wanted in ("", revision) or (is_digest(revision) and revision.startswith(wanted))


@dataclass(frozen=True, slots=True, order=True)
class LayerKey:
    """One tapped site of one model revision, seen in one way.

    Attributes:
        model: Registry name of the model.
        revision: sha256 of the weights in hexadecimal, see ``weights_digest``.
        layer: Canonical site name: the module path, or a TransformerLens-style name.
        kind: What the units of the layer are.
        view: How a unit's activations become one number.
        scope: Which positions count.
    """

    model: str
    revision: str
    layer: str
    kind: FeatureKind = FeatureKind.CHANNEL
    view: View = View.MAX
    scope: Scope = Scope.ALL

    def __post_init__(self) -> None:
        """Refuse names that could not be labels or URL parts."""
        check_name("model", self.model)
        check_name("revision", self.revision)
        check_name("layer", self.layer)

    @property
    def shown_revision(self) -> str:
        """The revision as people see it, see ``short_revision``."""
        return short_revision(self.revision)

    def feature(self, index: int) -> "FeatureKey":
        """Return the key of unit ``index`` of this layer."""
        return FeatureKey(self, index)

    def __str__(self) -> str:
        """Return the text form, ``model@revision/layer/kind[;view[;scope]]``."""
        head = f"{self.model}@{self.revision}/{self.layer}/{self.kind}"
        return head + _suffix(self)


def _suffix(layer: "LayerKey | FeatureSelector") -> str:
    if layer.scope is not Scope.ALL:
        return f";{layer.view};{layer.scope}"
    return "" if layer.view is default_view(layer.kind) else f";{layer.view}"


@dataclass(frozen=True, slots=True, order=True)
class FeatureKey:
    """One unit: a layer and the unit's global index in it.

    Example:
        >>> key = FeatureKey.parse("lite0@3fa1/_blocks.14/channel/33")
        >>> key.layer.layer, key.index, str(key)
        ('_blocks.14', 33, 'lite0@3fa1/_blocks.14/channel/33')
    """

    layer: LayerKey
    index: int

    def __post_init__(self) -> None:
        """Refuse negative indices."""
        if self.index < 0:
            raise InvalidName(f"feature index {self.index} is negative: use 0 to width - 1")

    def __str__(self) -> str:
        """Return the text form, ``model@revision/layer/kind/index[;view[;scope]]``."""
        layer = self.layer
        head = f"{layer.model}@{layer.revision}/{layer.layer}/{layer.kind}/{self.index}"
        return head + _suffix(layer)

    @property
    def path(self) -> str:
        """The text form, percent-encoded for use as one or more URL path segments."""
        return quote(str(self), safe="/@;:._-")

    @property
    def label(self) -> str:
        """The Prometheus label ``feature``: the index, and the view where it is not the default."""
        return f"{self.index}{_suffix(self.layer)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form back.

        Raises:
            InvalidName: The text is not ``model@revision/layer/kind/index[;view[;scope]]``.
        """
        wanted = f"feature {text[:120]!r} is not 'model@revision/layer/kind/index'"
        parts = unquote(text).split("/")
        if len(parts) != 4:  # noqa: PLR2004 - the four parts of the message above
            raise InvalidName(f"{wanted}: found {len(parts)} parts, need 4")
        owner, layer, kind, tail = parts
        model, at, revision = owner.partition("@")
        index, *suffix = tail.split(";")
        numeric = index.isascii() and index.isdigit() and len(index) <= INDEX_DIGITS
        if not at or not numeric or len(suffix) > 2:  # noqa: PLR2004 - view and scope
            raise InvalidName(f"{wanted}: check the '@' and the number at the end")
        try:
            unit = FeatureKind(kind)
            view = View(suffix[0]) if suffix else default_view(unit)
            scope = Scope(suffix[1]) if len(suffix) > 1 else Scope.ALL
        except ValueError as error:
            raise InvalidName(f"{wanted}: {error}") from error
        return cls(LayerKey(model, revision, layer, unit, view, scope), int(index))


@dataclass(frozen=True, slots=True)
class FeatureSelector:
    """Names a unit of a model in any revision: what a configuration flags.

    Text form ``model/layer/kind/index[;view[;scope]]``, or with ``@revision`` to pin one.
    """

    model: str
    layer: str
    kind: FeatureKind
    index: int
    view: View
    revision: str = ""
    scope: Scope = Scope.ALL

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``model[@revision]/layer/kind/index[;view[;scope]]``.

        Raises:
            InvalidName: The text has another form.
        """
        owner, slash, rest = text.partition("/")
        pinned = "@" in owner
        try:
            key = FeatureKey.parse(text if pinned else f"{owner}@any{slash}{rest}")
        except InvalidName as error:
            form = "model[@revision]/layer/kind/index[;view[;scope]]"
            detail = error.message.rpartition("': ")[2]
            raise InvalidName(f"feature {text[:120]!r} is not {form!r}: {detail}") from error
        layer = key.layer
        revision = layer.revision if pinned else ""
        return cls(
            layer.model, layer.layer, layer.kind, key.index, layer.view, revision, layer.scope
        )

    def matches(self, layer: LayerKey) -> bool:
        """Whether the selected unit lives in ``layer``; a pinned digest may be shortened."""
        mine = (self.model, self.layer, self.kind, self.view, self.scope)
        theirs = (layer.model, layer.layer, layer.kind, layer.view, layer.scope)
        return mine == theirs and revision_matches(self.revision, layer.revision)

    def __str__(self) -> str:
        """Return the text form."""
        owner = f"{self.model}@{self.revision}" if self.revision else self.model
        return f"{owner}/{self.layer}/{self.kind}/{self.index}{_suffix(self)}"


@dataclass(frozen=True, slots=True)
class Capture:
    """How a layer was measured; only series with an equal capture are compared.

    Attributes:
        server: Name and version of the inference server.
        dtype: dtype of the activations where they were tapped.
        compiled: Whether the model runs compiled.
        tap: The hook adapter and its version.
    """

    server: str = ""
    dtype: str = "float32"
    compiled: bool = False
    tap: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """On which traffic: a bounded, sorted set of key=value pairs.

    Example:
        >>> str(Slice.of({"route": "/v1", "canary": "no"}))
        'canary=no,route=/v1'
        >>> Slice.of({"route": "/v1", "canary": "no"}).contains(Slice.of({"canary": "no"}))
        True
    """

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, mapping: dict[str, str]) -> Self:
        """Build a slice from a mapping.

        Raises:
            InvalidName: More than ``SLICE_LIMIT`` pairs, or a key or value with other characters
                than letters, digits and ``_ . / : -``.
        """
        if len(mapping) > SLICE_LIMIT:
            raise InvalidName(f"slice has {len(mapping)} keys: use at most {SLICE_LIMIT}")
        for key, value in mapping.items():
            check_name("slice key", key)
            if len(value) > NAME_LIMIT or not _SLICE_VALUE.fullmatch(value):
                raise InvalidName(
                    f"slice {key}={value[:80]!r}: use 1 to {NAME_LIMIT} letters, digits, "
                    "'_', '.', '/', ':' or '-'"
                )
        return cls(tuple(sorted(mapping.items())))

    def contains(self, wanted: "Slice") -> bool:
        """Whether all pairs of another slice are among these: the empty slice is in every one."""
        return set(wanted.pairs) <= set(self.pairs)

    def __str__(self) -> str:
        """Return ``key=value`` pairs joined by commas, sorted by key."""
        return ",".join(f"{key}={value}" for key, value in self.pairs)


@dataclass(frozen=True, slots=True)
class Request:
    """One sampled request of a batch.

    Attributes:
        id: The server's request id, or empty.
        traffic: The slice the request belongs to.
        weight: How many rows of the traffic each row of this request stands for, relative to
            sampling at the plan's own rate with every position taken: the plan's rate over the rate
            in force, times the item's positions over those taken. Finite, 1 to ``WEIGHT_LIMIT``; 1
            unless the hook sampled less than planned.
    """

    id: str = ""
    traffic: Slice = field(default_factory=Slice)
    weight: float = 1.0


Values = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
"""Activations in one of three forms: float32, float16, or the bits of bfloat16, which numpy lacks."""


@dataclass(frozen=True, slots=True)
class LayerSample:
    """Sampled activations of one layer.

    Attributes:
        layer: Where they were taken.
        values: Activations, shape ``(rows, width)``, C-contiguous, as float32, float16, or the bits
            of bfloat16 as uint16. May hold NaN and ±Inf.
        request_index: For each row the index of its request in ``requests``, shape ``(rows,)``,
            int32, never decreasing.
        requests: The requests the rows belong to.
    """

    layer: LayerKey
    values: Values
    request_index: NDArray[np.int32]
    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        rows = self.request_index.shape
        if self.values.ndim != 2 or self.values.shape[:1] != rows:  # noqa: PLR2004 - rows and width
            raise ShapeMismatch(
                f"layer {self.layer.layer}: values {self.values.shape} and request_index {rows} "
                "must be (rows, width) and (rows,)"
            )


SPARSE_DTYPES = ("float32", "float16", "uint16")
"""What a sparse sample's values may be; uint16 holds the bits of a bfloat16."""


@dataclass(frozen=True, slots=True)
class SparseSample:
    """Sampled activations of one sparse layer: only what is not zero, row after row.

    Attributes:
        layer: Where they were taken.
        width: Latents of the layer, listed or not.
        row_splits: Row ``i`` has the entries from ``row_splits[i]`` to ``row_splits[i + 1]``, shape
            ``(rows + 1,)``, integers; begins with 0, never decreases, ends with ``nnz``.
        latents: Which latent each entry is of, shape ``(nnz,)``, uint32, below ``width``, increasing
            within a row, so that none is there twice.
        values: Their activations, shape ``(nnz,)``: float32, float16, or uint16 that holds bfloat16.
            May hold zeros, NaN and ±Inf.
        request_index: For each row the index of its request in ``requests``, shape ``(rows,)``,
            int32, never decreasing.
        requests: The requests the rows belong to.

    Raises:
        ShapeMismatch: The arrays do not fit together, or a latent is not below ``width``.
        MalformedMessage: The rows overlap, or a row's latents do not increase.
        UnsupportedDtype: Latents or values have another dtype.
    """

    layer: LayerKey
    width: int
    row_splits: NDArray[np.integer[Any]]
    latents: NDArray[np.uint32]
    values: NDArray[Any]
    request_index: NDArray[np.int32]
    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        """Refuse what no kernel may be given."""
        name, entries = f"layer {self.layer.layer}", len(self.latents)
        splits = self.row_splits.astype(np.int64)  # (rows + 1,); differences of unsigned would wrap
        if self.latents.dtype != np.uint32 or self.values.dtype.name not in SPARSE_DTYPES:
            raise UnsupportedDtype(
                f"{name}: latents are {self.latents.dtype} and values {self.values.dtype}: use uint32 "
                f"and one of {', '.join(SPARSE_DTYPES)}"
            )
        shapes = (splits.shape, self.values.shape, self.latents.shape)
        if shapes != ((len(self.request_index) + 1,), (entries,), (entries,)):
            raise ShapeMismatch(
                f"{name}: row_splits, values and latents have shapes {shapes}: need one split more "
                f"than the {len(self.request_index)} rows, and a value for each latent"
            )
        if splits[0] != 0 or splits[-1] != entries or np.any(np.diff(splits) < 0):
            raise MalformedMessage(
                f"{name}: row_splits must begin with 0, never decrease, and end with {entries}"
            )
        if entries and self.latents.max() >= self.width:
            raise ShapeMismatch(
                f"{name}: latent {self.latents.max()} of {self.width}: number them from 0"
            )
        falls = np.flatnonzero(self.latents[1:] <= self.latents[:-1]) + 1  # these must begin a row
        if np.any(splits[np.minimum(np.searchsorted(splits, falls), len(splits) - 1)] != falls):
            raise MalformedMessage(
                f"{name}: a row's latents must increase: sort them, and list each once"
            )


def weights_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], bytes | memoryview]]) -> str:
    """Return the sha256 that names a model revision.

    Two copies of a model have equal digests exactly when their tensors have equal names, dtypes,
    shapes and bytes, in whatever order and file format they are stored.

    Args:
        tensors: ``(name, dtype, shape, little-endian bytes)`` of every tensor, in any order; dtype
            in torch's spelling without the prefix, such as ``float32``.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> weights_digest([("w", "float32", (1,), b"abcd")])[:12]
        '2cecb0b17b0c'
    """
    lines = sorted(_tensor_lines(tensors))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensor_lines(
    tensors: Iterable[tuple[str, str, tuple[int, ...], bytes | memoryview]],
) -> Iterator[str]:
    for name, dtype, shape, payload in tensors:
        yield f"{name}\0{dtype}\0{shape}\0{hashlib.sha256(payload).hexdigest()}"
