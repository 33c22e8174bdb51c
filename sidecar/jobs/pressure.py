"""Asks the model server's metrics page whether audits must leave the machine to it."""

import math
import threading
import urllib.request

import structlog

from sidecar.config import YieldConfig

_log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 2.0  # a server that takes longer is asked again
_PAGE_LIMIT_BYTES = 16 << 20


def greatest(page: str, metric: str) -> float:
    """Return the greatest value of a metric on a page in Prometheus' text format; NaN without any."""
    found = math.nan
    for line in page.splitlines():
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        if name.strip() != metric:
            continue
        text = rest.rpartition("}")[2] if "{" in line else rest
        try:
            value = float(text.split()[0])
        except (IndexError, ValueError):
            continue
        if not value <= found:  # a NaN of either gives way to a number
            found = found if math.isnan(value) else value
    return found


class Pressure:
    """Polls from a thread of its own, so that a slow page delays nobody's turn.

    A page that cannot be read is no pressure: audits go on, and the log says so once.
    """

    def __init__(self, config: YieldConfig | None) -> None:
        """Poll what the configuration names; None: nothing."""
        self._config = config
        self._reason = ""
        self._silent = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to poll."""
        if self._config is not None:
            self._stopping.clear()
            self._thread = threading.Thread(
                target=self._serve, args=(self._config,), name="job-pressure", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Poll no more; a request on its way ends by itself."""
        self._stopping.set()

    def __call__(self) -> str:
        """Return why audits must make way now; empty: they need not."""
        return self._reason

    def _serve(self, config: YieldConfig) -> None:
        while not self._stopping.is_set():
            self._reason = self._ask(config)
            self._stopping.wait(config.poll_seconds)

    def _ask(self, config: YieldConfig) -> str:
        try:
            with urllib.request.urlopen(config.url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - http, as checked
                page = answer.read(_PAGE_LIMIT_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            return self._tell(f"cannot be read: {error}", config)
        value = greatest(page, config.metric)
        if math.isnan(value):
            return self._tell(f"has no {config.metric}", config)
        self._silent = False
        if value <= config.threshold:
            return ""
        return f"{config.metric} is {value:g}, above {config.threshold:g} of jobs.yield_to"

    def _tell(self, what: str, config: YieldConfig) -> str:
        if not self._silent:
            _log.warning("job_pressure_unknown", url=config.url, problem=what)
        self._silent = True
        return ""
