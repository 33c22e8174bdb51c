"""A real daemon on free ports in a thread of this process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.compilation import Loops
from sidecar.config import SidecarConfig
from sidecar.daemon import Daemon

_SOCKET_PATH_LIMIT = 107  # what struct sockaddr_un holds on Linux

START_SECONDS = 20.0
"""Generous: two cores may be busy with other tests."""


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that serves.

    Attributes:
        daemon: Its parts, for a look inside.
        grpc: Its first gRPC address.
        lane: The address of its lane; empty where the settings leave it out.
        metrics_url: Where /metrics, /livez and /readyz are.
        console_url: Where the console is.
    """

    daemon: Daemon
    grpc: str
    lane: str
    metrics_url: str
    console_url: str


@contextmanager
def running_daemon(
    state_dir: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    clock: Callable[[], float] = time.time,
    load_kernels: Callable[[], Loops] | None = None,
) -> Iterator[RunningDaemon]:
    """Run a daemon for the length of a ``with`` block.

    Args:
        state_dir: Where it keeps its state.
        settings: Configuration that differs from the default; addresses default to free ports.
        clock: What it takes for the time.
        load_kernels: As for ``Daemon``; by default numpy counts, which is ready at once.

    Yields:
        The daemon, once it serves.

    Raises:
        ConfigError: It cannot start.
    """
    merged = {"listen": _listen(state_dir), **(settings or {}), "state_dir": state_dir}
    config = SidecarConfig.model_validate(merged)
    daemon = Daemon(config, clock=clock, load_kernels=load_kernels)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="daemon-loop", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(daemon.start(), loop).result(START_SECONDS)
        try:
            yield RunningDaemon(
                daemon,
                daemon.grpc.addresses[0],
                next(iter(daemon.lane.addresses), ""),
                daemon.metrics_url,
                daemon.console_url,
            )
        finally:
            asyncio.run_coroutine_threadsafe(daemon.stop(1.0), loop).result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()


def _listen(state_dir: Path) -> dict[str, Any]:
    """Return free addresses; a lane only where its path is short enough for a socket."""
    path = state_dir / "lane.sock"
    lane = [f"unix://{path}"] if len(str(path).encode()) <= _SOCKET_PATH_LIMIT else []
    free = "127.0.0.1:0"
    return {"grpc": [free], "lane": lane, "metrics": free, "web": free}
