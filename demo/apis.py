"""What the demo asks Prometheus, Alertmanager and the daemon, over their HTTP APIs."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from demo.story import Flagged

TIMEOUT_SECONDS = 5.0
ALERT = "SidecarFeatureSpike"
"""The alert that the sidecar's rules raise when a flagged feature fires."""

# Everything is on this machine: a proxy in the environment must not come between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unavailable(Exception):
    """An address does not answer, or not with what it should."""


def fetch(url: str) -> bytes:
    """Return the body behind a URL.

    Raises:
        Unavailable: Nobody answers, or with another status than 200.
    """
    try:
        with _OPENER.open(url, timeout=TIMEOUT_SECONDS) as response:
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{url}: status {error.code}: {error.read(300)!r}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: {error}") from error


def fetch_json(url: str) -> Any:
    """Return the JSON document behind a URL.

    Raises:
        Unavailable: As ``fetch``, or the body is no JSON.
    """
    body = fetch(url)
    try:
        return json.loads(body)
    except ValueError as error:
        raise Unavailable(f"{url}: no JSON: {body[:200]!r}") from error


def absolute(console: str, link: str) -> str:
    """Return the full address of a link in an answer; the console's own are relative to it."""
    return urljoin(f"{console}/", link)


def layers(console: str) -> list[dict[str, Any]]:
    """Return the layers the daemon knows."""
    found: list[dict[str, Any]] = fetch_json(f"{console}/api/v1/layers")["layers"]
    return found


def features(console: str) -> list[dict[str, Any]]:
    """Return the flagged features as the daemon sees them."""
    found: list[dict[str, Any]] = fetch_json(f"{console}/api/v1/features?flagged=true")["features"]
    return found


def jobs(console: str) -> list[dict[str, Any]]:
    """Return the daemon's jobs, newest first."""
    found: list[dict[str, Any]] = fetch_json(f"{console}/api/v1/jobs")["jobs"]
    return found


@dataclass(frozen=True, slots=True)
class Spike:
    """A spike alert as Prometheus or Alertmanager tells it.

    Attributes:
        layer: Module path.
        kind: Kind of unit.
        feature: The label ``feature``: the unit's index.
        state: Prometheus: ``pending`` or ``firing``. Alertmanager: ``active`` or ``suppressed``.
        annotations: Texts and links.
    """

    layer: str
    kind: str
    feature: str
    state: str
    annotations: dict[str, str]

    def about(self, flagged: Flagged) -> bool:
        """Whether it is about this feature."""
        mine = (self.layer, self.kind, self.feature)
        return mine == (flagged.layer, flagged.kind, str(flagged.index))


def prometheus_spikes(url: str) -> list[Spike]:
    """Return the spike alerts Prometheus holds, pending or firing."""
    found = fetch_json(f"{url}/api/v1/alerts")["data"]["alerts"]
    return _spikes(found, [alert["state"] for alert in found])


def alertmanager_spikes(url: str) -> list[Spike]:
    """Return the spike alerts Alertmanager holds."""
    found = fetch_json(f"{url}/api/v2/alerts?filter={quote(f'alertname={ALERT}')}")
    return _spikes(found, [alert["status"]["state"] for alert in found])


def _spikes(alerts: Sequence[dict[str, Any]], states: Sequence[str]) -> list[Spike]:
    return [
        Spike(
            layer=alert["labels"].get("layer", ""),
            kind=alert["labels"].get("kind", ""),
            feature=alert["labels"].get("feature", ""),
            state=state,
            annotations=alert.get("annotations", {}),
        )
        for alert, state in zip(alerts, states, strict=True)
        if alert["labels"].get("alertname") == ALERT
    ]
