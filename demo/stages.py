"""The stages of the story, each followed through the real APIs to its end or its deadline."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import apis
from demo.apis import Unavailable
from demo.display import Display
from demo.layout import FOR_SECONDS, Site
from demo.lite0 import BLOCKS
from demo.processes import Children
from demo.story import (
    BASELINE_REQUESTS,
    BASELINE_SECONDS,
    FLAGGED,
    QUIET_SECONDS,
    RATE,
    Flagged,
)
from demo.traffic import Phase, Traffic

POLL_SECONDS = 0.25
"""How often a stage looks: often enough to see a pending alert that fires after 5 s."""

LAYERS = BLOCKS + 1
"""Sixteen blocks and the logits."""


class StageFailed(Exception):
    """A stage did not come to its end; the message says which, what was last seen, where to look."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a running stage found.

    Attributes:
        done: Whether the stage is at its end.
        detail: How it stands, in a few words.
        share: How much of it is done, 0 to 1, where that is known.
    """

    done: bool
    detail: str
    share: float | None = None


class Follower:
    """Runs stages one after the other, shows them, and watches the children meanwhile."""

    def __init__(self, display: Display, children: Children) -> None:
        """Show on ``display``; give up as soon as one of ``children`` ends."""
        self.display = display
        self._children = children

    def follow(self, title: str, seconds: float, look: Callable[[], Look], hint: str) -> None:
        """Look again and again until the stage is done.

        Args:
            title: What the stage waits for.
            seconds: Longest time it may take.
            look: Finds out how it stands; ``Unavailable`` counts as not done yet.
            hint: Where to look when it fails.

        Raises:
            StageFailed: The time is over.
            ChildEnded: A process has ended.
        """
        self.display.begin(title)
        deadline = time.monotonic() + seconds
        seen = Look(done=False, detail="nothing yet")
        while time.monotonic() < deadline:
            self._children.check()
            try:
                seen = look()
            except Unavailable as error:
                seen = Look(done=False, detail=str(error))
            if seen.done:
                self.display.done(seen.detail)
                return
            self.display.update(seen.detail, seen.share)
            time.sleep(POLL_SECONDS)
        raise StageFailed(
            f"{title}: not within {seconds:.0f} s. Last seen: {seen.detail}. Look at {hint}."
        )


def wait_answering(follower: Follower, name: str, url: str, seconds: float, log: Path) -> None:
    """Wait until a health address answers 200."""

    def look() -> Look:
        apis.fetch(url)
        return Look(done=True, detail=url)

    follower.follow(f"{name} answers", seconds, look, str(log))


def learn_baseline(follower: Follower, site: Site, traffic: Traffic) -> None:
    """Wait until the baselines of all layers are frozen."""

    def look() -> Look:
        layers = apis.layers(site.console)
        frozen = sum(bool(layer["baseline_frozen"]) for layer in layers)
        requests = min((layer["baseline_requests"] for layer in layers), default=0)
        tally = traffic.tally
        detail = (
            f"{len(layers)} layers, {frozen} frozen, {requests} requests, "
            f"{tally.latency_seconds * 1000:.0f} ms each"
        )
        done = len(layers) == frozen == LAYERS
        return Look(done, detail, requests / BASELINE_REQUESTS)

    # Four times what it takes: a slow machine answers fewer requests a second.
    seconds = 4 * max(BASELINE_SECONDS, BASELINE_REQUESTS / RATE)
    follower.follow("Baseline of every feature is learned", seconds, look, f"{site.console}/layers")


def stay_quiet(follower: Follower, site: Site) -> None:
    """Watch everyday traffic against the frozen baseline: nothing may fire.

    Raises:
        StageFailed: A flagged feature fires.
    """
    begun = time.monotonic()

    def look() -> Look:
        found = apis.features(site.console)
        loud = [one for one in found if one["state"] == "firing"]
        if loud:
            raise StageFailed(f"everyday traffic raised an alarm: {loud[0]['explanation']}")
        gone = time.monotonic() - begun
        normal = sum(one["state"] == "normal" for one in found)
        done = gone >= QUIET_SECONDS and normal == len(FLAGGED)
        return Look(
            done, f"{normal} of {len(FLAGGED)} flagged features normal", gone / QUIET_SECONDS
        )

    hint = f"{site.console}/"
    follower.follow("Everyday traffic raises no alarm", 4 * QUIET_SECONDS, look, hint)


def wait_firing(follower: Follower, site: Site, traffic: Traffic) -> None:
    """Let the new client join, and wait until the daemon's detectors fire on the right features."""
    traffic.enter(Phase.CATS)
    wanted = spiking()

    def look() -> Look:
        states = {one.name: _state(one, apis.features(site.console)) for one in wanted}
        done = all(state["state"] == "firing" for state in states.values())
        words = [
            f"{name}: {state['state']}, {(state['exceedance_ratio'] or 0):.0%} above"
            for name, state in states.items()
        ]
        return Look(done, "; ".join(words))

    follower.follow("The daemon's detectors fire", 60, look, f"{site.console}/")


def wait_prometheus(follower: Follower, site: Site, state: str) -> None:
    """Wait until Prometheus has the alerts ``pending``, or ``firing``."""
    wanted = spiking()

    def look() -> Look:
        found = apis.prometheus_spikes(site.prometheus)
        mine = [spike for one in wanted for spike in found if spike.about(one)]
        enough = ("pending", "firing") if state == "pending" else ("firing",)
        reached = [spike for spike in mine if spike.state in enough]
        words = ", ".join(f"{spike.layer}/{spike.feature} {spike.state}" for spike in mine)
        return Look(len(reached) == len(wanted), words or "no alert yet")

    seconds = 30 + (FOR_SECONDS if state == "firing" else 0)
    hint = f"{site.prometheus}/alerts"
    follower.follow(f"Prometheus: the alerts are {state}", seconds, look, hint)


def wait_alertmanager(follower: Follower, site: Site) -> None:
    """Wait until Alertmanager holds the alerts."""
    wanted = spiking()

    def look() -> Look:
        found = apis.alertmanager_spikes(site.alertmanager)
        mine = [spike for one in wanted for spike in found if spike.about(one)]
        words = ", ".join(f"{spike.layer}/{spike.feature} {spike.state}" for spike in mine)
        return Look(len(mine) == len(wanted), words or "no alert yet")

    hint = f"{site.folder}/logs/prometheus.log"
    follower.follow("Alertmanager has them", 30, look, hint)


def wait_jobs(follower: Follower, site: Site) -> None:
    """Wait until the webhook, or the daemon itself, has asked for the portraits."""
    wanted = spiking()

    def look() -> Look:
        found = {one.name: job_of(one, apis.jobs(site.console)) for one in wanted}
        words = [f"{name}: {job['state']}" for name, job in found.items() if job]
        return Look(len(words) == len(wanted), "; ".join(words) or "no job yet")

    hint = f"{site.folder}/logs/alertmanager.log and logs/daemon.log"
    follower.follow("The alerts started portrait jobs", 30, look, hint)


def wait_portrait(follower: Follower, site: Site, flagged: Flagged) -> Path:
    """Wait for one portrait and keep a copy.

    Returns:
        The picture's file in the demo's folder; the manifest lies beside it.

    Raises:
        StageFailed: The job fails.
    """
    done: dict[str, Any] = {}

    def look() -> Look:
        job = job_of(flagged, apis.jobs(site.console))
        if job is None:
            return Look(done=False, detail="no job")
        if job["state"] in ("failed", "cancelled"):
            page = apis.absolute(site.console, job["page"])
            raise StageFailed(f"the portrait job {job['state']}: {job['error']} See {page}.")
        if job["state"] == "done":
            done.update(job)
            took = (job["ended"] or 0) - (job["started"] or 0)
            return Look(done=True, detail=f"made in {took:.0f} s")
        share = job["step"] / job["steps"] if job["steps"] else 0.0
        words = f"{job['state']}, step {job['step']} of {job['steps'] or '?'}"
        return Look(done=False, detail=words, share=share)

    hint = f"{site.folder}/logs/daemon.log"
    follower.follow(f"Portrait of “{flagged.name}” arrives", 200, look, hint)
    return _keep(site, flagged, done)


def _keep(site: Site, flagged: Flagged, job: dict[str, Any]) -> Path:
    """Copy the picture and its manifest from the artifact store, through the console."""
    portrait = next(one for one in job["portraits"] if _names(one["feature"], flagged))
    picture = site.folder / f"portrait-{flagged.name.replace(' ', '-')}.png"
    content = apis.fetch(apis.absolute(site.console, portrait["picture"]))
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise StageFailed(f"{portrait['picture']} is no PNG picture: {content[:40]!r}")
    picture.write_bytes(content)
    picture.with_suffix(".json").write_bytes(
        apis.fetch(apis.absolute(site.console, portrait["manifest"]))
    )
    return picture


def spiking() -> list[Flagged]:
    """Return the flagged features that the cats must drive up."""
    return [one for one in FLAGGED if one.spikes]


def check_quiet_features(follower: Follower, site: Site) -> None:
    """See that the other flagged features stayed as they were.

    Raises:
        StageFailed: One of them fires.
    """
    quiet = [one for one in FLAGGED if not one.spikes]

    def look() -> Look:
        found = apis.features(site.console)
        loud = [one.name for one in quiet if _state(one, found)["state"] == "firing"]
        if loud:
            raise StageFailed(f"the cats must not drive these features, yet they fire: {loud}")
        return Look(done=True, detail=", ".join(one.name for one in quiet))

    follower.follow("The other flagged features stayed quiet", 10, look, f"{site.console}/")


def job_of(flagged: Flagged, jobs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the newest job an alert asked for about a feature."""
    mine = (
        job
        for job in jobs
        if job["origin"] == "alert" and any(_names(text, flagged) for text in job["features"])
    )
    return next(mine, None)


def _names(text: str, flagged: Flagged) -> bool:
    """Whether the text form of a feature key, of whatever revision, names this feature."""
    return text.endswith(f"/{flagged.layer}/{flagged.kind}/{flagged.index}")


def _state(flagged: Flagged, features: list[dict[str, Any]]) -> dict[str, Any]:
    found = next((one for one in features if _names(one["key"], flagged)), None)
    return found or {"state": "not registered", "exceedance_ratio": None, "page": ""}
