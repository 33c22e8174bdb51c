"""Artifacts in an object store, such as S3, behind fsspec; what is read is kept on the local disk."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from sidecar.errors import ConfigError, CorruptState, StorageError, StoreUnreachable
from sidecar.store.shelf import (
    DIGEST,
    TYPE_SUFFIX,
    UNKNOWN_TYPE,
    Entry,
    LocalShelf,
    checked_type,
)

_log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS = 3
"""Times that a call is made before the store counts as unreachable."""

PAUSE_SECONDS = 0.2
"""Before the second attempt; four times as long before each further one."""

RELIST_SECONDS = 3600.0
"""How often the whole store is listed; in between this process knows what it wrote and removed."""

TOUCH_SECONDS = 86_400.0
"""Content stored again is written anew only where it is older than this: it is its age alone that
changes, and collections count in days."""

# One call never takes longer than about this; the client library would wait for minutes.
_S3_OPTIONS = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
}


class RemoteShelf:
    """Objects below a prefix, two for each artifact: its content and its media type.

    Every call is tried ``ATTEMPTS`` times. What the store cannot do then is ``StoreUnreachable``, and
    nothing was changed. Contents read are checked against their names and kept in a cache folder of
    bounded size, from which the store may be read while it cannot be reached.
    """

    def __init__(
        self,
        url: str,
        cache: Path,
        cache_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect and list what is there; a store that does not answer is listed later.

        Args:
            url: As fsspec takes it, such as ``s3://bucket/prefix``; credentials come from where the
                client library looks for them, the environment first.
            cache: Folder of the cache.
            cache_bytes: Most bytes in it; one artifact larger than that is still read.
            clock: Unix seconds.
            pause: Waits for that many seconds.

        Raises:
            ConfigError: No library speaks the URL's protocol, or the store refuses us.
            StorageError: The cache folder cannot be used.
        """
        self._url, self._clock, self._pause = url.rstrip("/"), clock, pause
        self._fs, self._root = _connect(self._url)
        self._cache, self._cache_bytes = LocalShelf(cache), cache_bytes
        self._guard = threading.Lock()
        self._known: dict[str, Entry] = {}
        self._listed = -float("inf")
        try:
            self._list()
        except StoreUnreachable as error:
            _log.warning("artifact_store_unreachable", error=error.message)
        except StorageError as error:
            raise ConfigError(f"store.artifacts {self._url}: {error.message}") from error

    def __str__(self) -> str:
        """Return the URL."""
        return self._url

    def _list(self) -> None:
        """Learn what is there.

        Raises:
            StoreUnreachable: The store does not answer.
        """

        def look() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                found: dict[str, Any] = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}  # nothing was ever stored below the prefix
            return found

        found = self._tried("list artifacts", look)
        now = self._clock()
        entries = (_entry(name, facts, now) for name, facts in found.items())
        with self._guard:
            self._known = {entry.digest: entry for entry in entries if entry is not None}
            self._listed = now

    def entries(self) -> Iterator[Entry]:
        """Yield what is there; lists the store again where the last time is long ago."""
        if self._clock() - self._listed >= RELIST_SECONDS:
            try:
                self._list()
            except StoreUnreachable as error:
                # What this process knows is still true: nobody else removes anything.
                _log.warning("artifact_store_unreachable", error=error.message)
        with self._guard:
            known = tuple(self._known.values())
        yield from known

    def find(self, digest: str) -> Entry | None:
        """Return an entry; asks the store only where it was never listed.

        Raises:
            StoreUnreachable: It was not, and does not answer.
        """
        if self._listed < 0:
            self._list()
        with self._guard:
            return self._known.get(digest)

    def write(self, digest: str, data: bytes | Path, media_type: str) -> None:
        """Put content and type; the store has both when this returns.

        Raises:
            StoreUnreachable: The store does not take them.
            StorageError: There is no such bucket, or no right to write to it.
        """
        content = data if isinstance(data, bytes) else data.read_bytes()
        place = self._place(digest)
        # The type goes first, so that content is never there without it.
        try:
            for name, part in ((place + TYPE_SUFFIX, media_type.encode()), (place, content)):
                self._tried(f"write {digest}", partial(self._pipe, name, part))
        except FileNotFoundError as error:
            raise StorageError(f"cannot write to {self._url}: {error}; make the bucket") from error
        with self._guard:
            self._known[digest] = Entry(digest, len(content), self._clock())
        self._keep(digest, content, media_type)

    def _pipe(self, name: str, part: bytes) -> None:
        self._fs.makedirs(name.rpartition("/")[0], exist_ok=True)  # object stores have no folders
        self._fs.pipe_file(name, part)

    def touch(self, digest: str, data: bytes | Path) -> None:
        """Write content anew where it is older than a day: objects keep no time but that."""
        known = self.find(digest)
        if known is not None and self._clock() - known.modified >= TOUCH_SECONDS:
            self.write(digest, data, self.media_type(digest))

    def path(self, digest: str) -> Path:
        """Return the file in the cache, fetched where it is not there.

        Raises:
            FileNotFoundError: The store has none of this name.
            CorruptState: What the store has is something else; it was set aside.
            StoreUnreachable: The store does not answer.
        """
        try:
            path = self._cache.path(digest)
        except FileNotFoundError:
            pass
        else:
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                self._cache.touch(digest, b"")
                return path
            self._cache.delete(digest)
        content = self._fetch(digest)
        self._keep(digest, content, self._read_type(digest))
        return self._cache.path(digest)

    def _fetch(self, digest: str) -> bytes:
        place = self._place(digest)
        try:
            content: bytes = self._tried(f"read {digest}", lambda: self._fs.cat_file(place))
        except FileNotFoundError:
            with self._guard:
                self._known.pop(digest, None)
            raise
        if hashlib.sha256(content).hexdigest() != digest:
            kept = self.set_aside(digest)
            _log.error("artifact_quarantined", digest=digest, kept=kept)
            raise CorruptState(f"artifact {digest} does not match its name: ask for it anew")
        return content

    def media_type(self, digest: str) -> str:
        """Return the media type, from the cache where it is there."""
        found = self._cache.media_type(digest)
        return found if found != UNKNOWN_TYPE else self._read_type(digest)

    def _read_type(self, digest: str) -> str:
        place = self._place(digest) + TYPE_SUFFIX
        try:
            text: bytes = self._tried(f"read {digest}", lambda: self._fs.cat_file(place))
        except FileNotFoundError:
            return UNKNOWN_TYPE
        return checked_type(text)

    def delete(self, digest: str) -> None:
        """Remove content and type, here and there.

        Raises:
            StoreUnreachable: The store does not answer; the entry is still there.
        """
        place = self._place(digest)
        for name in (place, place + TYPE_SUFFIX):
            self._tried(f"remove {digest}", partial(self._remove, name))
        with self._guard:
            self._known.pop(digest, None)
        self._cache.delete(digest)

    def _remove(self, name: str) -> None:
        try:
            self._fs.rm_file(name)
        except FileNotFoundError:
            return

    def set_aside(self, digest: str) -> str:
        """Copy the damaged object to ``corrupt/`` below the prefix and remove it."""
        kept = f"{self._root}/corrupt/{digest}"
        place = self._place(digest)

        def move() -> None:
            self._pipe(kept, self._fs.cat_file(place))

        self._tried(f"set {digest} aside", move)
        self.delete(digest)
        return kept

    def _keep(self, digest: str, content: bytes, media_type: str) -> None:
        """Put content into the cache; the longest unread goes to make room."""
        self._cache.write(digest, content, media_type)
        with self._guard:
            entries = sorted(self._cache.entries(), key=lambda entry: entry.modified)
            used = sum(entry.size for entry in entries)
            for entry in entries:
                if used <= self._cache_bytes:
                    break
                if entry.digest != digest:
                    self._cache.delete(entry.digest)
                    used -= entry.size

    def _place(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest[2:4]}/{digest}"

    def _tried(self, action: str, call: Callable[[], T]) -> T:
        """Make a call a few times.

        Raises:
            FileNotFoundError: There is no such object.
            StorageError: The store refuses us: no right, no bucket.
            StoreUnreachable: It did not answer, or not with sense.
        """
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise StorageError(
                    f"cannot {action} at {self._url}: {error}; check the credentials in the "
                    "environment and the rights on the bucket"
                ) from error
            except Exception as error:  # each client library raises errors of its own
                if attempt == ATTEMPTS - 1:
                    raise StoreUnreachable(
                        f"cannot {action} at {self._url}, tried {ATTEMPTS} times: "
                        f"{type(error).__name__}: {str(error)[:300]}; nothing was changed there"
                    ) from error
                self._pause(PAUSE_SECONDS * 4**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _connect(url: str) -> tuple[Any, str]:
    """Return the file system behind a URL, and the path in it.

    Raises:
        ConfigError: No library speaks its protocol.
    """
    import fsspec  # noqa: PLC0415 - only where artifacts are kept elsewhere

    protocol = url.partition("://")[0]
    options: dict[str, Any] = _S3_OPTIONS if protocol in ("s3", "s3a") else {}
    # fsspec hands out one client for each URL, with the endpoint and rights of when it was made.
    options = {**options, "use_listings_cache": False, "skip_instance_cache": True}
    try:
        found, root = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"store.artifacts {url}: {error}; install what fsspec needs for {protocol}://, such as "
            "s3fs for s3://, beside the daemon"
        ) from error
    return found, str(root).rstrip("/")


def _entry(name: str, facts: dict[str, Any], now: float) -> Entry | None:
    """Return what a listing says of one object; None where it is no content."""
    digest = name.rpartition("/")[2]
    if not DIGEST.fullmatch(digest) or name.endswith(f"/corrupt/{digest}"):
        return None
    modified = next((facts[k] for k in ("LastModified", "mtime", "created") if facts.get(k)), now)
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    return Entry(digest, int(facts.get("size") or 0), seconds)
