"""A real daemon on free ports in a thread of this process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.config import SidecarConfig
from sidecar.daemon import Daemon

START_SECONDS = 20.0
"""Generous: two cores may be busy with other tests."""


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that serves.

    Attributes:
        daemon: Its parts, for a look inside.
        grpc: Its first gRPC address.
        metrics_url: Where /metrics, /livez and /readyz are.
        console_url: Where the console is.
    """

    daemon: Daemon
    grpc: str
    metrics_url: str
    console_url: str


@contextmanager
def running_daemon(
    state_dir: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> Iterator[RunningDaemon]:
    """Run a daemon for the length of a ``with`` block.

    Args:
        state_dir: Where it keeps its state.
        settings: Configuration that differs from the default; addresses default to free ports.
        clock: What it takes for the time.

    Yields:
        The daemon, once it serves.

    Raises:
        ConfigError: It cannot start.
    """
    listen = {"grpc": ["127.0.0.1:0"], "metrics": "127.0.0.1:0", "web": "127.0.0.1:0"}
    merged = {"listen": listen, **(settings or {}), "state_dir": state_dir}
    daemon = Daemon(SidecarConfig.model_validate(merged), clock=clock)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="daemon-loop", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(daemon.start(), loop).result(START_SECONDS)
        try:
            yield RunningDaemon(
                daemon, daemon.grpc.addresses[0], daemon.metrics_url, daemon.console_url
            )
        finally:
            asyncio.run_coroutine_threadsafe(daemon.stop(1.0), loop).result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()
