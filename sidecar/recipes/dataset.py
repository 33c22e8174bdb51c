"""A named folder of images, as it was when somebody asked for something from it."""

import hashlib
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images that an operator named.

    Attributes:
        name: As configured.
        folder: Where they lie.
        files: Path below the folder and sha256 of each, in order of their paths.
    """

    name: str
    folder: str
    files: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """sha256 of the sorted digests of the files: what a file is called changes nothing."""
        return hashlib.sha256("\n".join(sorted(one for _, one in self.files)).encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {"name": self.name, "folder": self.folder, "files": [list(f) for f in self.files]}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """Read a document back; what is none raises KeyError, TypeError or ValueError."""
        files = tuple((str(path), str(digest)) for path, digest in document["files"])
        return cls(document["name"], document["folder"], files)
