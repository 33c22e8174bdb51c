"""The ways into the daemon: gRPC from anywhere, and the lane from hooks of this machine.

Promises: bounded in bytes; every batch is accounted for (``received = accepted + refused`` and
``accepted = processed + dropped + in flight``, at any moment); bad input is refused and counted and
its stream goes on, but for a frame whose end cannot be known, which ends its own connection; hooks are
slowed down by steering and credit, never by waiting. Both transports lead through one ``Stream``.
"""

from sidecar.ingest.accounting import Ledger
from sidecar.ingest.lane import LaneServer
from sidecar.ingest.pipeline import Pipeline
from sidecar.ingest.server import GrpcServer
from sidecar.ingest.stream import Destination

__all__ = ["Destination", "GrpcServer", "LaneServer", "Ledger", "Pipeline"]
