"""The gRPC server: ingest, features, jobs, audits and health on one set of addresses."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sidecar.audits import Audits
from sidecar.errors import ConfigError
from sidecar.ingest.audits import AuditServicer
from sidecar.ingest.features import FeatureServicer
from sidecar.ingest.jobs import JobServicer
from sidecar.ingest.rpc import IngestStreams, limits_of
from sidecar.ingest.sockets import clear_stale, path_of, share, why
from sidecar.ingest.stream import Destination
from sidecar.monitor import Operations
from sidecar.wire import METHOD, SERVICE
from sidecar.wire.v1 import audits_pb2_grpc, features_pb2_grpc, jobs_pb2_grpc

SERVICES = (
    "",
    SERVICE,
    "sidecar.wire.v1.FeatureService",
    "sidecar.wire.v1.JobService",
    "sidecar.wire.v1.AuditService",
)
"""Names under which the health service answers."""


class GrpcServer:
    """Serves all gRPC services on the configured addresses, on the running event loop."""

    def __init__(self, destination: Destination, operations: Operations, audits: Audits) -> None:
        """Prepare; nothing listens before ``start``."""
        self._audits = audits
        self._config = destination.config
        self._streams = IngestStreams(destination)
        self._operations = operations
        self._server: grpc.aio.Server | None = None
        # The stubs leave the asyncio half out.
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.addresses: tuple[str, ...] = ()

    async def start(self) -> None:
        """Listen on every address.

        Raises:
            ConfigError: One of them is taken or not allowed; the message names all of those.
        """
        server = grpc.aio.server(options=limits_of(self._config.ingest))
        self._server = server
        method = grpc.stream_stream_rpc_method_handler(self._streams.serve)
        handlers = grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})
        server.add_generic_rpc_handlers((handlers,))
        features_pb2_grpc.add_FeatureServiceServicer_to_server(
            FeatureServicer(self._operations), server
        )
        jobs_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(self._operations), server)
        audits_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(self._audits), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.addresses = self._bind(server)
        await server.start()
        for address in self.addresses:
            _share(address)
        for service in SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def _bind(self, server: grpc.aio.Server) -> tuple[str, ...]:
        bound, problems = [], []
        for address in self._config.listen.grpc:
            try:
                if (path := path_of(address)) is not None:
                    clear_stale(path)
                port = server.add_insecure_port(_definite(address))
            except (RuntimeError, OSError, ConfigError) as error:
                problems.append(f"listen.grpc {address}: {why(error)}: free it or choose another")
                continue
            host = address.rsplit(":", 1)[0]
            bound.append(f"{host}:{port}" if path_of(address) is None else address)
        if problems:
            raise ConfigError("\n".join(problems))
        return tuple(bound)

    async def stop(self, grace: float) -> None:
        """End ingest streams, let other calls end for ``grace`` seconds, turn new ones away, close."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        self._streams.close()
        await server.stop(grace)


def _definite(address: str) -> str:
    """Return an address that is one address.

    Of localhost's two gRPC is content with either, and who asks for the other would talk to whoever
    listens there.
    """
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host == "localhost" else address


def _share(address: str) -> None:
    """Widen the mode that grpcio gives a socket, 0755, which lets no other user connect."""
    path = path_of(address)
    try:
        if path is not None:
            share(path)
    except OSError as error:
        raise ConfigError(f"listen.grpc {address}: {error.strerror}: choose another") from error
