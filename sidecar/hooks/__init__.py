"""Sampled activations of a model server, handed to the daemon without disturbing the server.

Promises, after start-up: no exception reaches the server, no call waits for the network or the
daemon, the model's output stays bit-equal, memory stays within ``queue_bytes``, its pool and a ring, and
every sampled batch is either sent or counted as dropped with a reason. Importing this room loads
neither torch nor grpc; no thread starts before the first sample.

``sidecar.hooks.torch`` attaches a plan to a torch module. The environment variable
``SIDECAR_HOOKS_DISABLED=1`` makes attaching a no-op.
"""

from sidecar.hooks.plan import Plan, Tap
from sidecar.hooks.requests import current_requests
from sidecar.hooks.sink import Sink
from sidecar.hooks.transport import connect

__all__ = ["Plan", "Sink", "Tap", "connect", "current_requests"]
