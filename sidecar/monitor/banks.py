"""The banks of a monitor, as the configuration wants them, and the payload that holds everything."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidecar.config import StatisticsConfig
from sidecar.detect import SpikePolicy
from sidecar.errors import CorruptState, InvalidInput
from sidecar.features import LayerKey
from sidecar.monitor.layer import MonitoredLayer, read_layer
from sidecar.stats import Bank, Binning, Budget, Kernels, SparseBank

_HEADER = struct.Struct("<4sIIQ")  # magic, version, lengths of the JSON and the bank that follow
_MAGIC = b"SCMO"
_VERSION = 3


def new_banks(statistics: StatisticsConfig) -> tuple[Bank, SparseBank]:
    """Return empty banks of dense and of sparse layers."""
    return Bank(**_bank_settings(statistics)), SparseBank(**_sparse_settings(statistics))


def _bank_settings(statistics: StatisticsConfig) -> dict[str, Any]:
    """Return what a bank is made of."""
    return {
        "binning": Binning(mantissa_bits=statistics.mantissa_bits),
        "warmup_rows": statistics.warmup_rows,
        "history_seconds": statistics.history_seconds,
        "layer_limit": statistics.layer_limit,
        "feature_limit": statistics.feature_limit,
        "budget": budget_of(statistics),
    }


def _sparse_settings(statistics: StatisticsConfig) -> dict[str, Any]:
    """Return what a bank of sparse layers is made of."""
    return {
        "exponent": statistics.latent_exponent,
        "history_seconds": statistics.history_seconds,
        "layer_limit": statistics.layer_limit,
        "latent_limit": statistics.latent_limit,
    }


def budget_of(statistics: StatisticsConfig) -> Budget:
    """Return the memory that a configuration gives to distributions."""
    return Budget(
        memory_bytes=statistics.memory_bytes,
        full_detail_ratio=statistics.full_detail_ratio,
        flagged_memory_bytes=statistics.flagged_memory_bytes,
        flagged_mantissa_bits=statistics.flagged_mantissa_bits,
        flagged_windows=statistics.flagged_windows,
    )


def pack(layers: Sequence[dict[str, Any]], dense: bytes, sparse: bytes) -> bytes:
    """Return one payload of the layers' books and the encoded banks, for ``unpack``."""
    text = json.dumps({"layers": layers}, separators=(",", ":")).encode()
    return _HEADER.pack(_MAGIC, _VERSION, len(text), len(dense)) + text + dense + sparse


def unpack(
    payload: bytes, statistics: StatisticsConfig, policy: SpikePolicy, kernels: Kernels, now: float
) -> tuple[dict[LayerKey, MonitoredLayer], Bank, SparseBank]:
    """Return the layers and banks that ``pack`` saw.

    Raises:
        CorruptState: The payload is not what ``pack`` makes, or was made under settings with other
            bins.
    """
    try:
        magic, version, length, bank_length = _HEADER.unpack_from(payload)
        if (magic, version) != (_MAGIC, _VERSION):
            raise CorruptState(f"snapshot starts with {magic!r} version {version}")
        text = payload[_HEADER.size : _HEADER.size + length]
        saved = json.loads(text)
        layers = dict(read_layer(item, policy, now) for item in saved["layers"])
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        InvalidInput,
    ) as error:
        raise CorruptState(f"snapshot cannot be read: {error!r}") from error
    rest = payload[_HEADER.size + length :]
    bank = Bank.decode(
        rest[:bank_length],
        **_bank_settings(statistics),
        kernels=kernels,
    )
    sparse = SparseBank.decode(
        rest[bank_length:],
        **_sparse_settings(statistics),
    )
    widths = {key: of.width(key) for of in (bank, sparse) for key in of.layers()}
    if set(widths) != set(layers) or len(widths) != len(bank.layers()) + len(sparse.layers()):
        raise CorruptState("snapshot's layers and statistics disagree")
    for key, layer in layers.items():
        if np.any(layer.watch.indices >= widths[key]):
            raise CorruptState(f"snapshot watches features that {key} does not have")
    return layers, bank, sparse
