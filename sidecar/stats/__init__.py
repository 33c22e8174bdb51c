"""Distributions of many features at once, in one pass, in bounded memory.

Promises: every finite value is counted exactly once, in bins whose width is a fixed ratio of the
value's distance from its feature's centre; a quantile is off by at most ``Binning.relative_error``
of that distance; distributions on the same bins merge exactly, in any order; NaN and infinities are
counted apart and touch nothing else; whatever was encoded comes back equal, and anything else raises
``CorruptState``. Memory is at most ``5 * Binning.bins * 4`` bytes of counters a feature up to 2**32
rows, half of that for stores of up to 65,535 rows. Sparse layers have a bank of their own: 64 bytes a
latent for each stretch of time, and merges that are exact to the bit. Nothing here reads a clock, a
file or a socket.
"""

from sidecar.stats.bank import Bank
from sidecar.stats.binning import Binning
from sidecar.stats.budget import Budget, Detail, Memory
from sidecar.stats.distribution import Distribution, Occupied, merge
from sidecar.stats.encoding import decode, encode
from sidecar.stats.epoch import Period
from sidecar.stats.fine import WatchedWindow
from sidecar.stats.kernels import NUMPY, Kernels, compiled
from sidecar.stats.recentre import recentre
from sidecar.stats.sparse import SparseBank
from sidecar.stats.sparse_distribution import SparseDistribution
from sidecar.stats.sparse_kernels import SparseKernels, compile_sparse_kernels
from sidecar.stats.watch import WindowCounts

__all__ = [
    "NUMPY",
    "Bank",
    "Binning",
    "Budget",
    "Detail",
    "Distribution",
    "Kernels",
    "Memory",
    "Occupied",
    "Period",
    "SparseBank",
    "SparseDistribution",
    "SparseKernels",
    "WatchedWindow",
    "WindowCounts",
    "compile_sparse_kernels",
    "compiled",
    "decode",
    "encode",
    "merge",
    "recentre",
]
