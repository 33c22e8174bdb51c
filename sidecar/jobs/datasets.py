"""The configured folders of images, and what is in them when a job asks."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sidecar.config import DatasetConfig
from sidecar.errors import UnsupportedTarget
from sidecar.jobs.files import FileDigests
from sidecar.recipes import Dataset

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class Datasets:
    """Reads datasets by name; a file is read again only where its size or time has changed.

    Safe to use from several threads.
    """

    def __init__(self, configured: Sequence[DatasetConfig] = ()) -> None:
        """Take the configured datasets; nothing is read yet."""
        self._configured = {one.name: one for one in configured}
        self._digests = FileDigests()

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets there are."""
        return tuple(sorted(self._configured))

    def read(self, name: str) -> Dataset:
        """Return a dataset as it is now.

        Raises:
            UnsupportedTarget: There is none of this name, its folder cannot be read, or holds no
                image.

        Complexity:
            Reads every image once a process, at the speed of the disk.
        """
        config = self._configured.get(name)
        if config is None:
            known = ", ".join(self.names) or "none is configured: name one under datasets"
            raise UnsupportedTarget(f"dataset {name!r} is unknown: use one of {known}")
        try:
            paths = sorted(_images(config.folder))[: config.image_limit]
            files = tuple(
                (str(path.relative_to(config.folder)), self._digests.of(path)) for path in paths
            )
        except OSError as error:
            raise UnsupportedTarget(
                f"dataset {name}: cannot read {config.folder}: {error}"
            ) from error
        if not files:
            raise UnsupportedTarget(
                f"dataset {name}: no image in {config.folder}: need files that end in "
                f"{', '.join(sorted(_SUFFIXES))}"
            )
        return Dataset(name, str(config.folder.resolve()), files)


def _images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder; links that lead elsewhere are not followed."""
    for place, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.is_symlink():
                yield path


def _raise(error: OSError) -> None:
    raise error
