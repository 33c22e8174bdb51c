"""Frozen baselines as files that replicas share, and the catalogue of their versions."""

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

from sidecar.errors import CorruptState, DiskFull, InvalidName, UnknownBaseline
from sidecar.features import Capture, FeatureKey, LayerKey
from sidecar.store.artifacts import ArtifactStore
from sidecar.store.database import Database
from sidecar.store.references import References

MEDIA_TYPE = "application/vnd.sidecar.baseline"
"""Of a baseline in the artifact store and on the wire."""

VERSIONS_KEPT = 8
"""Newest versions of one layer's baseline that are kept, beside the one in force."""

REVISIONS_KEPT = 8
"""Newest layers of one name, each at another revision, of which versions are kept."""

COUNT_LIMIT, TIME_LIMIT = 1 << 62, 1e12
"""Numbers beyond these are no counts and no times, and other programs could not hold them."""

HEADER_LIMIT = 1 << 16
"""Bytes of a header: some names of at most 200 characters, and numbers."""

_MAGIC = b"SCBASE\r\n"  # the line end shows a copy that went through a text conversion
_VERSION = 1
_PREFIX = struct.Struct("<8sHIQ")  # magic, version, bytes of the header, bytes of the statistics
_CHECK = struct.Struct("<I")  # the CRC of everything before it

_TABLES = (
    """CREATE TABLE baselines (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        digest TEXT NOT NULL,
        layer TEXT NOT NULL,
        facts TEXT NOT NULL,
        origin TEXT NOT NULL,
        stored REAL NOT NULL,
        UNIQUE (layer, digest)
    )""",
    "CREATE INDEX baselines_by_layer ON baselines (layer, sequence)",
    # A version refers to its file for as long as it is listed, whoever lists or forgets it.
    """INSERT OR IGNORE INTO artifact_references (digest, kind, owner, note, since)
        SELECT digest, 'baseline', layer, origin, stored FROM baselines""",
    """CREATE TRIGGER baselines_refer AFTER INSERT ON baselines
        BEGIN INSERT OR REPLACE INTO artifact_references (digest, kind, owner, note, since)
            VALUES (NEW.digest, 'baseline', NEW.layer, NEW.origin, NEW.stored); END""",
    """CREATE TRIGGER baselines_let_go AFTER DELETE ON baselines
        BEGIN DELETE FROM artifact_references
            WHERE digest = OLD.digest AND kind = 'baseline' AND owner = OLD.layer; END""",
)


@dataclass(frozen=True, slots=True)
class BaselineFacts:
    """What a baseline was learned on.

    Attributes:
        layer: Of which layer of which model revision.
        capture: How the layer was measured.
        width: Its features.
        requests: Requests it was learned from.
        windows: Closed windows in which exceedances were counted against its thresholds.
        started: Unix seconds of the first sample, had it learned without a break since.
        frozen: Unix seconds at which it was frozen.
    """

    layer: LayerKey
    capture: Capture
    width: int
    requests: int
    windows: int
    started: float
    frozen: float

    @property
    def hours(self) -> float:
        """Hours it covers."""
        return max(self.frozen - self.started, 0.0) / 3600.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values for ``from_dict``."""
        return {**asdict(self), "layer": str(self.layer.feature(0))}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "BaselineFacts":
        """Return what ``to_dict`` saw; unknown keys are passed over.

        Raises:
            CorruptState: Something is missing or of another type.
        """
        try:
            capture = saved["capture"]
            found = cls(
                layer=FeatureKey.parse(saved["layer"]).layer,
                capture=Capture(
                    server=str(capture["server"]),
                    dtype=str(capture["dtype"]),
                    compiled=bool(capture["compiled"]),
                    tap=str(capture["tap"]),
                ),
                width=int(saved["width"]),
                requests=int(saved["requests"]),
                windows=int(saved["windows"]),
                started=float(saved["started"]),
                frozen=float(saved["frozen"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, InvalidName) as error:
            raise CorruptState(f"a baseline's header cannot be read: {error!r}") from error
        counts = (found.width - 1, found.requests, found.windows)
        times = (found.started, found.frozen)
        if not (
            all(0 <= count <= COUNT_LIMIT for count in counts)
            and all(0.0 <= at <= TIME_LIMIT for at in times)
        ):
            raise CorruptState("a baseline's header has numbers that no baseline has")
        return found


@dataclass(frozen=True, slots=True)
class StoredBaseline:
    """One version of a layer's baseline.

    Attributes:
        digest: sha256 of its file; the same for everybody who imports it.
        facts: What it was learned on.
        origin: ``learned``, ``by command`` or ``imported``.
        stored: Unix seconds at which this daemon stored it.
    """

    digest: str
    facts: BaselineFacts
    origin: str
    stored: float


def pack_baseline(facts: BaselineFacts, statistics: bytes) -> bytes:
    """Return a baseline's file: prefix, header in JSON, statistics, checksum.

    Args:
        facts: Its header.
        statistics: As ``stats.Bank.baseline`` returns them.
    """
    header = json.dumps(facts.to_dict(), sort_keys=True, separators=(",", ":")).encode()
    content = _PREFIX.pack(_MAGIC, _VERSION, len(header), len(statistics)) + header + statistics
    return content + _CHECK.pack(zlib.crc32(content))


def unpack_baseline(content: bytes) -> tuple[BaselineFacts, bytes]:
    """Return what ``pack_baseline`` saw.

    Raises:
        CorruptState: It is no baseline, is damaged, or is of another release's format.
    """
    if len(content) < _PREFIX.size + _CHECK.size or not content.startswith(_MAGIC):
        raise CorruptState("this is no baseline file: use what `sidecar baseline export` wrote")
    _, version, header_bytes, size = _PREFIX.unpack_from(content)
    if version != _VERSION:
        raise CorruptState(f"baseline format {version}: this release reads {_VERSION}")
    expected = _PREFIX.size + header_bytes + size + _CHECK.size
    if header_bytes > HEADER_LIMIT or len(content) != expected:
        raise CorruptState(f"baseline file of {len(content)} bytes should have {expected}")
    (checksum,) = _CHECK.unpack_from(content, len(content) - _CHECK.size)
    if checksum != zlib.crc32(memoryview(content)[: -_CHECK.size]):
        raise CorruptState("baseline file: the checksum does not match the content")
    start = _PREFIX.size + header_bytes
    try:
        header = json.loads(content[_PREFIX.size : start])
    except (ValueError, RecursionError) as error:
        raise CorruptState(f"a baseline's header cannot be read: {error!r}") from error
    return BaselineFacts.from_dict(header), content[start : start + size]


class BaselineStore:
    """Versions of baselines: their files among the artifacts, their facts in the database.

    Safe to use from several threads.
    """

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        keep: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        """Make the table where it is missing.

        Args:
            database: Where versions are listed.
            artifacts: Where their files are.
            keep: Returns digests of artifacts that others refer to.

        Raises:
            StorageError: The database cannot be written, or is of a newer release.
        """
        self._database, self._artifacts, self._keep = database, artifacts, keep
        References(database)  # whose table the triggers write to
        database.migrate("baselines", _TABLES)

    def add(self, content: bytes, origin: str, now: float, in_force: str = "") -> StoredBaseline:
        """Store a baseline's file; storing the same again changes nothing.

        Versions of the layer beyond the newest ``VERSIONS_KEPT`` are forgotten, but for the one in
        force; their files go when the artifact store needs room.

        Args:
            content: As ``pack_baseline`` returns it.
            origin: Where it comes from.
            now: Unix seconds.
            in_force: Digest of the version that must stay.

        Raises:
            CorruptState: It is no baseline.
            StorageError: The disk refuses it.
        """
        facts, _ = unpack_baseline(content)
        digest = self._put(content)
        layer = str(facts.layer)
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO baselines (digest, layer, facts, origin, stored) "
                "VALUES (?, ?, ?, ?, ?)",
                (digest, layer, json.dumps(facts.to_dict()), origin, now),
            )
            cursor.execute(
                "DELETE FROM baselines WHERE layer = ? AND digest NOT IN (?, ?) AND sequence NOT IN "
                "(SELECT sequence FROM baselines WHERE layer = ? ORDER BY sequence DESC LIMIT ?)",
                (layer, digest, in_force, layer, VERSIONS_KEPT),
            )
        return StoredBaseline(digest, facts, origin, now)

    def _put(self, content: bytes) -> str:
        """Store a file, if need be at the cost of the oldest artifacts that nobody refers to."""
        try:
            return self._artifacts.put(content, MEDIA_TYPE).digest
        except DiskFull:
            self._artifacts.collect(self._keep() | self.digests(), len(content))
            return self._artifacts.put(content, MEDIA_TYPE).digest

    def forget(self, known: AbstractSet[LayerKey]) -> int:
        """Forget the versions of layers of old revisions; return how many.

        Of every layer of a model the ``REVISIONS_KEPT`` newest revisions stay, and those that are
        registered.
        """
        newest: dict[tuple[str, str], set[str]] = {}
        gone = []
        for one in self.versions():
            layer = one.facts.layer
            seen = newest.setdefault((layer.model, layer.layer), set())
            if len(seen) < REVISIONS_KEPT or layer in known:
                seen.add(layer.revision)
            if layer.revision not in seen and layer not in known:
                gone.append((one.digest, str(layer)))
        if gone:
            with self._database.transaction() as cursor:
                cursor.executemany("DELETE FROM baselines WHERE digest = ? AND layer = ?", gone)
        return len(gone)

    def versions(self, layer: LayerKey | None = None) -> tuple[StoredBaseline, ...]:
        """Return the stored versions of one layer or of all, newest first; damaged rows are left out."""
        where, values = ("", ()) if layer is None else ("WHERE layer = ?", (str(layer),))
        rows = self._database.query(
            f"SELECT digest, facts, origin, stored FROM baselines {where} ORDER BY sequence DESC",  # noqa: S608 - one of two constants
            values,
        )
        found = []
        for row in rows:
            try:
                facts = BaselineFacts.from_dict(json.loads(row["facts"]))
            except (CorruptState, ValueError):
                continue
            found.append(StoredBaseline(row["digest"], facts, row["origin"], row["stored"]))
        return tuple(found)

    def digests(self) -> frozenset[str]:
        """Return the digests of all versions: what must not be collected."""
        return frozenset(row[0] for row in self._database.query("SELECT digest FROM baselines"))

    def read(self, digest: str) -> bytes:
        """Return a stored baseline's file.

        Raises:
            UnknownBaseline: No version of any layer has this digest.
            CorruptState: The disk changed it; it is set aside.
        """
        if digest not in self.digests():
            raise UnknownBaseline(f"no baseline {digest[:80]!r}: see `sidecar baseline list`")
        return self._artifacts.get(digest)
