"""Distributions of many features at once, in one pass, in bounded memory.

Promises: every finite value is counted exactly once for every row it stands for, in bins whose width
is a fixed ratio of the value's distance from its feature's centre. A quantile is off by at most
``Binning.relative_error`` of that distance whatever the values (4.55 % at 4 mantissa bits), and by at
most 2 % up to p99.9 for the distributions and real activations of ``tests/stats/test_guarantees.py``.
NaN and infinities are counted apart and touch nothing else. Distributions on the same bins merge to the
same bits in any order and association, moments included, whichever kernels counted them; ``recentre``
moves one onto other bins. Whatever was encoded comes back equal, and anything else raises
``CorruptState``.

A feature takes at most 2,100 bytes in one store at 4 mantissa bits up to 2**32 - 1 rows, half of that
up to 65,535, and at most 400 encoded with 65,536 values; what a layer takes is set aside when it is registered, see
``Budget``. Sparse layers have a bank of their own: 64 bytes a latent for each stretch of time. Nothing
here reads a clock, a file or a socket. The inner loops are a value, ``Kernels``: ``NUMPY`` always,
``compiled()`` for who can wait for it.
"""

from sidecar.stats.bank import Bank
from sidecar.stats.batch import decoded
from sidecar.stats.binning import Binning
from sidecar.stats.budget import Budget, Detail, Memory
from sidecar.stats.distribution import Distribution, Occupied
from sidecar.stats.epoch import Period
from sidecar.stats.fine import WatchedWindow
from sidecar.stats.kernels import NUMPY, Kernels, compiled
from sidecar.stats.own_counts import OWN_COUNTS, OwnCount
from sidecar.stats.screen import Expectation
from sidecar.stats.sparse import SparseBank
from sidecar.stats.sparse_distribution import SparseDistribution
from sidecar.stats.sparse_kernels import SparseKernels, compile_sparse_kernels
from sidecar.stats.watch import Watched, WindowCounts

__all__ = [
    "NUMPY",
    "OWN_COUNTS",
    "Bank",
    "Binning",
    "Budget",
    "Detail",
    "Distribution",
    "Expectation",
    "Kernels",
    "Memory",
    "Occupied",
    "OwnCount",
    "Period",
    "SparseBank",
    "SparseDistribution",
    "SparseKernels",
    "Watched",
    "WatchedWindow",
    "WindowCounts",
    "compile_sparse_kernels",
    "compiled",
    "decoded",
]
