"""What every recipe is: named values with limits, whatever the method."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

from sidecar.errors import UnsupportedTarget

_Number = TypeVar("_Number", int, float)

_TEXT_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """What a number of a recipe may be.

    Attributes:
        least: The smallest value.
        most: The greatest; these keep one job's time and memory within reach of the default time
            limit on a CPU.
    """

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Choices:
    """What a word of a recipe may be."""

    words: tuple[str, ...]


def number(default: _Number, least: float, most: float) -> _Number:
    """Declare a number with its limits as a field of a recipe."""
    return field(default=default, metadata={"limits": Limits(least, most)})


def choice(default: str, *others: str) -> str:
    """Declare one of several words as a field of a recipe."""
    return field(default=default, metadata={"choices": Choices((default, *others))})


@dataclass(frozen=True, slots=True)
class Text:
    """What other text of a recipe may be.

    Attributes:
        pattern: Regular expression of the whole text; empty text is always right.
        wanted: What it must be, in words.
    """

    pattern: str
    wanted: str


def word(default: str = "") -> str:
    """Declare any text, such as a configured name, as a field of a recipe."""
    wanted = Text(rf"(?s:.{{0,{_TEXT_LIMIT}}})", f"text of at most {_TEXT_LIMIT} characters")
    return field(default=default, metadata={"text": wanted})


def digest() -> str:
    """Declare the sha256 of an artifact as a field of a recipe; empty: none."""
    return field(default="", metadata={"text": Text("[0-9a-f]{64}", "64 hexadecimal digits")})


def layer_path() -> str:
    """Declare a layer's module path as a field of a recipe; empty: none."""
    pattern = r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,199}"
    return field(default="", metadata={"text": Text(pattern, "a layer's module path")})


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a picture is made: one frozen dataclass a method.

    Fields are declared with ``number``, ``choice``, ``digest`` and ``layer_path``, and checked when a
    recipe is built.

    Attributes:
        seed: Seed of every random number.
    """

    method: ClassVar[str]
    """Name of the method, unique among recipes."""

    version: ClassVar[int]
    """Raised whenever the method's pictures change; part of every content key, so old answers age
    out."""

    random: ClassVar[bool] = True
    """Whether the seed matters."""

    seed: int = number(0, 0, 2**63 - 1)

    def __post_init__(self) -> None:
        """Refuse values no picture can be made with, naming the first one."""
        for item in fields(self):
            _check(item.name, getattr(self, item.name), item.type, item.metadata)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what else the answer depends on, see ``content_key``."""
        return ()

    @property
    def images(self) -> tuple[str, ...]:
        """Digests of the artifacts that are looked at."""
        return ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that are looked at; each is an input ``dataset:NAME``."""
        return ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of other models that are looked at; each is an input ``model:NAME``."""
        return ()

    def values(self) -> dict[str, Any]:
        """Return every value by name, and the method's."""
        return {"method": self.method, **asdict(self)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe of this method from named values; what is not named keeps its default.

        Raises:
            UnsupportedTarget: A name is unknown, or a value has the wrong type or range.
        """
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise UnsupportedTarget(
                    f"recipe.{name} is unknown: use one of {', '.join(sorted(known))}"
                )
        return cls(**values)


def _check(name: str, value: Any, wanted: object, metadata: Mapping[str, Any]) -> None:
    limits, choices = metadata.get("limits"), metadata.get("choices")
    text = metadata.get("text")
    if text is not None and (
        not isinstance(value, str) or (value and not re.fullmatch(text.pattern, value))
    ):
        raise UnsupportedTarget(f"recipe.{name} {value!r:.80} is not {text.wanted}")
    if choices is not None and value not in choices.words:
        raise UnsupportedTarget(
            f"recipe.{name} {value!r} is unknown: use one of {', '.join(choices.words)}"
        )
    if limits is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnsupportedTarget(f"recipe.{name} {value!r} is not a number")
    if wanted is int and not isinstance(value, int):
        raise UnsupportedTarget(f"recipe.{name} {value!r} is not a whole number")
    if not limits.least <= value <= limits.most:
        raise UnsupportedTarget(
            f"recipe.{name} {value} is outside {limits.least:g} to {limits.most:g}"
        )
