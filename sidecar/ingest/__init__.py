"""The gRPC end of the daemon: takes activations in, answers questions, runs commands.

Promises: bounded in bytes; every batch is accounted for (``received = accepted + refused`` and
``accepted = processed + dropped + in flight``, at any moment); bad input is refused and counted and
its stream goes on; hooks are slowed down by steering and credit, never by waiting.
"""

from sidecar.ingest.accounting import Ledger
from sidecar.ingest.pipeline import Pipeline
from sidecar.ingest.server import GrpcServer

__all__ = ["GrpcServer", "Ledger", "Pipeline"]
