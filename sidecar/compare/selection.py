"""Which features are pictured in a comparison."""

from collections.abc import Iterable, Sequence

from sidecar.errors import InvalidName
from sidecar.features import FeatureKey, FeatureKind, FeatureSelector

UNITS = (0, 1, 2, 3)
"""Units that are pictured of a layer of which nobody flagged or named any: enough to see how it fares."""

COMPARED = frozenset({FeatureKind.CHANNEL, FeatureKind.LOGIT})
"""Kinds of units that can be compared."""

UNPINNED = "configured"
"""Revision of a model whose weights' digest nobody configured; the report names the digest it had."""


def named(
    model: str, revision: str, layers: Sequence[str], units: Sequence[int]
) -> tuple[FeatureKey, ...]:
    """Return units of layers.

    Args:
        model: Name of the model.
        revision: Of it; empty: ``UNPINNED``.
        layers: ``LAYER[/KIND][;VIEW]``; kind ``channel`` where none is named.
        units: Their indices; empty: the first ones.

    Raises:
        InvalidName: A layer has another form, or a kind that is not compared.
    """
    found = []
    for text in layers:
        name, semicolon, view = text.partition(";")
        layer, slash, kind = name.rpartition("/")
        if not slash:
            layer, kind = name, FeatureKind.CHANNEL.value
        for unit in dict.fromkeys(units or UNITS):
            written = f"{model}@{revision or UNPINNED}/{layer}/{kind}/{unit}{semicolon}{view}"
            found.append(FeatureKey.parse(written))
    for key in found:
        if key.layer.kind not in COMPARED:
            kinds = " or ".join(sorted(COMPARED))
            raise InvalidName(f"{key}: a {key.layer.kind} is not compared: use {kinds}")
    return tuple(dict.fromkeys(found))


def flagged(
    model: str, revision: str, features: Iterable[str]
) -> tuple[tuple[FeatureKey, ...], tuple[str, ...]]:
    """Return those of a configuration's flags that can be compared, and those of the model that cannot.

    Args:
        model: Name of the model; flags of others are left alone.
        revision: Of it; empty: ``UNPINNED``.
        features: Text forms, as in ``flags[].feature``.
    """
    found, left = [], []
    for text in features:
        flag = FeatureSelector.parse(text)
        if flag.model != model:
            continue
        if flag.kind not in COMPARED:
            left.append(text)
            continue
        owner = f"{model}@{flag.revision or revision or UNPINNED}"
        rest = str(flag).partition("/")[2]
        found.append(FeatureKey.parse(f"{owner}/{rest}"))
    return tuple(dict.fromkeys(found)), tuple(left)
