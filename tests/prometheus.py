"""A real Prometheus as tests talk to it."""

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

DEADLINE_SECONDS = 40.0


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **values: str) -> Any:
        """Return the data of an API call; errors of Prometheus are raised."""
        query = f"?{urllib.parse.urlencode(values)}" if values else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[Any]:
        """Return the vector an expression gives now."""
        return self.get("query", query=expr)["result"]

    def alerts(self, name: str) -> list[Any]:
        """Return the active alerts of this name."""
        found = self.get("alerts")["alerts"]
        return [alert for alert in found if alert["labels"]["alertname"] == name]


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of ``check``; fail when there is none in time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            if found := check():
                return found
        except OSError:
            pass
        # Prometheus has no call that waits: asking ten times a second is the only way.
        time.sleep(0.1)
    return pytest.fail(f"not within {DEADLINE_SECONDS} s: {what}")
