"""The sections that say how others reach the daemon, and what it tells them."""

from typing import Annotated

from pydantic import Field

from sidecar.config.values import Address, Bytes, Count, Section, SocketAddress, WebAddress


class ListenConfig(Section):
    """Where the daemon listens. Loopback and unix sockets only."""

    grpc: list[Address] = Field(
        default=["127.0.0.1:50061"],
        min_length=1,
        description="Addresses of the gRPC services: host:port or unix:///path. Port 0 picks a free one.",
    )
    lane: list[SocketAddress] = Field(
        default=[],
        description="Unix sockets, unix:///path, for hooks of this machine, at a fraction of gRPC's CPU time.",
    )
    lane_uids: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="Users whose processes may use the lane, beside the daemon's own and root.",
    )
    metrics: WebAddress = Field(
        default="127.0.0.1:9464",
        description="Address of /metrics, /livez and /readyz; an own thread, so it answers under overload.",
    )
    web: WebAddress = Field(
        default="127.0.0.1:8080", description="Address of the console, JSON API and webhook."
    )


class IngestConfig(Section):
    """Bounds on what the hooks may send."""

    queue_bytes: Bytes = Field(
        default=64 << 20,
        description="Batches waiting for the statistics, their requests included; beyond it they drop.",
    )
    message_limit_bytes: Bytes = Field(
        default=4 << 20, description="Largest message read from a stream."
    )
    stream_limit: Count = Field(default=64, description="Most open ingest streams.")
    credit_bytes: Bytes = Field(
        default=8 << 20, description="Unacknowledged payload one stream may have."
    )
    ring_bytes: Annotated[int, Field(ge=0)] = Field(
        default=32 << 20,
        description="Memory that hooks on the lane may share with the daemon, all together; 0: none.",
    )
    width_limit: Count = Field(default=262_144, description="Most features of one layer.")
    sampling_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Share of forward passes hooks sample when the sidecar is at ease."
    )


class AlertsConfig(Section):
    """What happens when a feature fires."""

    console_url: str = Field(
        default="",
        description="How people reach the console; links in alerts start with it. Default: listen.web.",
    )
    portrait_on_firing: bool = Field(
        default=True, description="Whether a firing alert asks for the feature's portrait."
    )
    direct: bool = Field(
        default=False,
        description="Ask for portraits from the daemon's own detector too, without Alertmanager.",
    )


class MetricsConfig(Section):
    """Bounds on what is exported."""

    flagged_limit: Count = Field(default=1000, description="Most flagged features with own series.")
    series_limit: Annotated[int, Field(ge=200)] = Field(
        default=50_000,
        description="Most series of one scrape; a flagged feature has up to 26, and up to 21 buckets.",
    )
    anomalies_limit: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=20,
        description="Most unflagged features with a series of their own because the screen finds them. "
        "0: none; the console and `sidecar layer get` show them all the same.",
    )
    classic_buckets: bool = Field(
        default=True, description="Whether flagged features have classic buckets, for heat maps."
    )
