"""What a request asks for in its query: filters, pages, windows."""

import re
from dataclasses import dataclass, replace
from typing import Self

from starlette.datastructures import QueryParams

from sidecar.detect import State
from sidecar.errors import InvalidInput, UnknownArtifact
from sidecar.monitor import Window

PAGE_ROWS = 50
"""Features on one page: what a reader scrolls through."""

LIST_LIMIT = 1000
"""Most features or jobs in one answer of the API."""

_TEXT_LIMIT = 200
_OFFSET_LIMIT = 1 << 40  # beyond any model; keeps arithmetic and databases out of trouble
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Filters:
    """The feature list's filters, as they stand in its URL.

    Attributes:
        model: Only of this model.
        revision: Only of revisions that start with this.
        layer: Only of this layer.
        state: Only those in this state.
        flagged_only: Only those somebody watches.
        query: Only those whose key, name or owner holds this.
        page: From 1.
    """

    model: str = ""
    revision: str = ""
    layer: str = ""
    state: State | None = None
    flagged_only: bool = True
    query: str = ""
    page: int = 1

    @classmethod
    def of(cls, params: QueryParams) -> Self:
        """Read the list page's query.

        Raises:
            InvalidInput: A state, page or ``show`` that does not exist.
        """
        return cls(
            model=text(params, "model"),
            revision=text(params, "revision"),
            layer=text(params, "layer"),
            state=state(params),
            flagged_only=one_of(params, "show", ("flagged", "all")) == "flagged",
            query=text(params, "q"),
            page=whole(params, "page", 1, 1, _OFFSET_LIMIT // PAGE_ROWS),
        )

    @property
    def narrowed(self) -> bool:
        """Whether anything but the page is filtered for."""
        return replace(self, page=1, flagged_only=True) != Filters()

    @property
    def query_values(self) -> dict[str, str]:
        """The filters as the URL holds them, without the page."""
        return {
            "q": self.query,
            "model": self.model,
            "revision": self.revision,
            "layer": self.layer,
            "state": str(self.state or ""),
            "show": "" if self.flagged_only else "all",
        }


def text(params: QueryParams, name: str) -> str:
    """Return a text of the query; InvalidInput where it is too long."""
    value = params.get(name, "").strip()
    if len(value) > _TEXT_LIMIT:
        raise InvalidInput(f"{name} has {len(value)} characters: use at most {_TEXT_LIMIT}")
    return value


def whole(params: QueryParams, name: str, default: int, low: int, high: int) -> int:
    """Return a whole number of the query; InvalidInput outside ``low`` to ``high``."""
    value = params.get(name, "").strip() or str(default)
    digits = len(value) <= 15 and value.isascii() and value.isdigit()  # noqa: PLR2004 - above 2**40
    if not digits or not low <= int(value) <= high:
        raise InvalidInput(f"{name} {value[:40]!r} is not a whole number from {low} to {high}")
    return int(value)


def one_of(params: QueryParams, name: str, choices: tuple[str, ...]) -> str:
    """Return one of ``choices``, the first where the query is silent; else InvalidInput."""
    value = params.get(name, "") or choices[0]
    if value not in choices:
        names = ", ".join(choice for choice in choices if choice)
        raise InvalidInput(f"{name} {value[:40]!r} is unknown: use one of {names}")
    return value


def state(params: QueryParams) -> State | None:
    """Return the state asked for, None for all; InvalidInput where there is no such state."""
    names = tuple(str(member) for member in State)
    value = one_of(params, "state", ("", *names))
    return State(value) if value else None


def window(params: QueryParams) -> Window:
    """Return the window asked for, the current one where the query is silent; else InvalidInput."""
    return Window(one_of(params, "window", tuple(str(member) for member in Window)))


def picture(params: QueryParams, name: str) -> str:
    """Return the digest of a picture or manifest in the query, empty where it is silent; else InvalidInput."""
    value = params.get(name, "").strip()
    if value and not _DIGEST.fullmatch(value):
        raise InvalidInput(f"{name} {value[:80]!r} is no sha256 in hexadecimal")
    return value


def digest(value: str) -> str:
    """Return an artifact's digest; UnknownArtifact where it cannot be one."""
    if not _DIGEST.fullmatch(value):
        raise UnknownArtifact(f"artifact {value[:80]!r} is no sha256 in hexadecimal")
    return value
