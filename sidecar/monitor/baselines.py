"""Baselines with versions: stored when they freeze, exported, imported, shared by replicas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sidecar.errors import (
    BaselineMismatch,
    CorruptState,
    DiskFull,
    InvalidInput,
    LayerConflict,
    SidecarError,
    StorageError,
    UnknownLayer,
)
from sidecar.features import LayerKey
from sidecar.monitor.cautions import differences
from sidecar.monitor.monitor import Monitor
from sidecar.monitor.shared import SharedFile, SharedFolder
from sidecar.monitor.views import Event
from sidecar.store import (
    BaselineFacts,
    BaselineStore,
    StoredBaseline,
    pack_baseline,
    unpack_baseline,
)

DAY_HOURS = 24.0
"""Traffic repeats daily: what was learned on less calls the other hours' traffic unusual."""

EXCEEDING_REQUESTS = 10.0
"""Requests beyond a quantile from which its threshold is a measurement and not an accident."""


@dataclass(frozen=True, slots=True)
class BaselineVersion:
    """One stored version of a layer's baseline.

    Attributes:
        stored: Its digest, facts and origin.
        in_force: Whether live traffic is compared with it now.
        cautions: What makes it a poor one, in sentences; empty: nothing known.
    """

    stored: StoredBaseline
    in_force: bool
    cautions: tuple[str, ...]


class Baselines:
    """Keeps versions of the monitor's baselines and brings others' in.

    Every method may be called from any thread and may block on the disk.
    """

    def __init__(
        self,
        monitor: Monitor,
        store: BaselineStore,
        *,
        shared: Path | None,
        quantile: float,
        record: Callable[[Sequence[Event]], None],
    ) -> None:
        """Join the parts; nothing is read yet.

        Args:
            monitor: Whose baselines.
            store: Where versions are kept.
            shared: Folder of exported files that layers take on instead of learning.
            quantile: The spike test's, for judging how good a baseline is.
            record: Takes audit entries.
        """
        self._monitor, self._store, self._record = monitor, store, record
        self._shared, self._quantile = SharedFolder(shared), quantile
        self._tried: dict[LayerKey, SharedFile] = {}
        self._warned: dict[LayerKey, tuple[str, ...]] = {}
        self._known = 0

    def keep(self, now: float) -> None:
        """Store baselines that have frozen since, and give shared ones to layers that still learn.

        Call it often; it does nothing where nothing has changed. The shared folder is looked at for as
        long as a layer learns, see ``SharedFolder``.

        Raises:
            StorageError: The disk refuses a version; it is tried again next time.
        """
        failed: StorageError | None = None
        for layer in self._monitor.unnamed_baselines():
            try:
                self._store_one(layer, now)
            except StorageError as error:  # one that is too great must not keep out the others
                failed = error
        self._give_shared(now)
        layers = self._monitor.select()
        if len(layers) != self._known:  # only a new layer can push an old revision's out
            self._known = len(layers)
            self._store.forget(set(layers))
        self._warn()
        if failed is not None:
            raise failed

    def _warn(self) -> None:
        """Log what speaks against a baseline in force, once each time that it changes."""
        found = self._monitor.baseline_cautions()
        log = structlog.get_logger()
        for layer, words in found.items():
            if self._warned.get(layer) != words:
                log.warning("baseline_caution", layer=str(layer), cautions=list(words))
        self._warned = dict(found)

    def _store_one(self, layer: LayerKey, now: float) -> None:
        found = self._monitor.baseline(layer)
        if found is not None:
            facts, statistics, how = found
            stored = self._store.add(pack_baseline(facts, statistics), how, now)
            self._monitor.name_baseline(layer, stored.digest, facts.frozen)

    def _give_shared(self, now: float) -> None:
        """Give the layers that still learn what the folder has for them, each file once."""
        learning = set(self._monitor.learning_layers())
        # A layer that comes back after it had to give way is tried again.
        self._tried = {layer: file for layer, file in self._tried.items() if layer in learning}
        if learning:
            self._shared.look(now)
        for layer in sorted(learning):
            file = self._shared.file_for(layer)
            if file is not None and self._tried.get(layer) != file:
                self._adopt_shared(layer, file.path, now)
                self._tried[layer] = file

    def _adopt_shared(self, layer: LayerKey, path: Path, now: float) -> None:
        try:
            self._adopt(path.read_bytes(), f"from {path.name}", now, learning=True)
        except DiskFull:
            raise  # no verdict on the file: it is tried again
        except (SidecarError, OSError) as error:
            detail = f"{path.name}: {error}"
            self._record((Event(now, "baseline_refused", str(layer), detail),))

    def versions(self, layer: LayerKey | None = None) -> tuple[BaselineVersion, ...]:
        """Return the stored versions of one layer or of all, newest first."""
        current = self._monitor.baseline_digests()
        return tuple(
            self._version(one, in_force=current.get(one.facts.layer) == one.digest)
            for one in self._store.versions(layer)
        )

    def _version(self, stored: StoredBaseline, *, in_force: bool) -> BaselineVersion:
        found = cautions(stored.facts, self._quantile)
        if in_force:
            found += self._monitor.baseline_cautions().get(stored.facts.layer, ())
        return BaselineVersion(stored, in_force, found)

    def adopt(self, content: bytes, now: float) -> BaselineVersion:
        """Compare a layer with an exported baseline from now on, instead of with its own.

        Args:
            content: A file as ``sidecar baseline export`` writes it.
            now: Unix seconds.

        Raises:
            InvalidInput: It is no baseline, damaged, or of another release's format.
            UnknownLayer: Its layer was never registered, or only at another revision.
            BaselineMismatch: The layer has another width, capture or kind of bins.
            StorageError: The disk refuses it; nothing has changed then.
        """
        try:
            return self._adopt(content, "by command", now)
        except CorruptState as error:  # the sender's file is damaged, and nothing of ours
            raise InvalidInput(error.message) from error

    def _adopt(
        self, content: bytes, how: str, now: float, *, learning: bool = False
    ) -> BaselineVersion:
        facts, statistics = unpack_baseline(content)
        self._check(facts)
        stored = self._store.add(
            content, "imported", now, self._monitor.baseline_digests().get(facts.layer, "")
        )
        try:
            events = self._monitor.adopt_baseline(
                facts, statistics, stored.digest, how, now, learning=learning
            )
        except LayerConflict as error:
            raise BaselineMismatch(error.message) from error
        self._record(events)
        return self._version(stored, in_force=True)

    def _check(self, facts: BaselineFacts) -> None:
        """Refuse a baseline of another layer, revision or way of measuring."""
        layer = facts.layer
        known = {status.key: status for status in self._monitor.layers()}
        if layer not in known:
            others = sorted(
                key.shown_revision
                for key in known
                if (key.model, key.layer) == (layer.model, layer.layer)
            )
            raise UnknownLayer(
                f"baseline of {layer}: no hook has registered that layer"
                + (
                    f"; it is known at revision {', '.join(others)}, and a baseline is never used "
                    "for another revision: let it learn its own"
                    if others
                    else ": attach the hooks first, or put the file into store.shared_baselines"
                )
            )
        if facts.width != known[layer].width:
            raise BaselineMismatch(
                f"baseline of {layer} has {facts.width} features and the layer {known[layer].width}: "
                "use one of this layer"
            )
        mine = known[layer].capture
        if mine != facts.capture:
            raise BaselineMismatch(
                f"baseline of {layer} was measured differently: {differences(facts.capture, mine)}: "
                "learn one under the present capture"
            )


def cautions(facts: BaselineFacts, quantile: float) -> tuple[str, ...]:
    """Return what makes a baseline a poor one, in sentences.

    Source:
        A baseline of one hour instead of 24 multiplies false alarms in the far tail by 3 to 80 under
        bursts, measured by ``sidecar.testing``'s simulator (``docs/detection.md``).
    """
    found = []
    beyond = facts.requests * (1.0 - quantile)
    if beyond < EXCEEDING_REQUESTS:
        need = round(EXCEEDING_REQUESTS / (1.0 - quantile))
        found.append(
            f"{facts.requests} requests are few for the {100 * quantile:.6g} % quantile: use at "
            f"least {need}"
        )
    if facts.hours < DAY_HOURS:
        found.append(
            f"it covers {facts.hours:.3g} h, not a day: traffic of other hours may look unusual"
        )
    if not facts.windows:
        found.append(
            "how often requests exceed was derived and not counted, because it was frozen before its "
            "second half: alerts come later than they could"
        )
    return tuple(found)
