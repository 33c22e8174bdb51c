"""Kinds of values that sections are made of, and what is checked of each."""

import ipaddress
import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sidecar.errors import SidecarError
from sidecar.features import FeatureSelector, Slice, check_name, is_digest
from sidecar.recipes import recipe_of

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9_.\-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DICTIONARY_SUFFIXES = (".npy", ".safetensors")
_PORT_LIMIT = 65535
_SOCKET_PATH_LIMIT = 107  # what struct sockaddr_un holds on Linux


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, and it never changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _check_address(value: str) -> str:
    if value.startswith("unix://"):
        if not value.removeprefix("unix://").startswith("/"):
            raise ValueError(f"{value!r} needs an absolute path, such as unix:///run/sidecar.sock")
        return value
    match = _ADDRESS.fullmatch(value)
    if not match or int(match["port"]) > _PORT_LIMIT:
        raise ValueError(f"{value!r} is neither host:port nor unix:///path")
    if not _is_loopback(match["host"]):
        raise ValueError(
            f"{value!r} is reachable from other machines, and this version has neither TLS nor "
            "authentication: listen on 127.0.0.1 or a unix socket"
        )
    return value


def _check_socket(value: str) -> str:
    """Check the address of a lane."""
    path = value.removeprefix("unix://")
    if path == value or not path.startswith("/") or path.endswith("/"):
        raise ValueError(
            f"{value!r}: the lane is a unix socket, such as unix:///run/sidecar/lane.sock"
        )
    if len(path.encode()) > _SOCKET_PATH_LIMIT:
        raise ValueError(f"{value!r}: a socket's path has at most {_SOCKET_PATH_LIMIT} bytes")
    return value


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine alone; other names than localhost may resolve to anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_web_address(value: str) -> str:
    if value.startswith("unix://"):
        raise ValueError(f"{value!r}: browsers and Prometheus need host:port")
    return _check_address(value)


def check_folder(value: Path) -> Path:
    """Return a path that is a folder, or raise ``ValueError``."""
    if not value.is_dir():
        raise ValueError(f"{value} is not a folder")
    return value


def check_place(value: str) -> str:
    """Return where artifacts are kept: a folder, or a URL without secrets, for it stands in logs."""
    protocol, slashes, rest = value.partition("://")
    if slashes and ("@" in rest or not (protocol.isalnum() and rest.strip("/"))):
        raise ValueError(
            "need a URL such as s3://bucket/prefix, with credentials in the environment"
        )
    return value


def check_file(value: Path) -> Path:
    """Return a path that is a file, or raise ``ValueError``."""
    if not value.is_file():
        raise ValueError(f"{value} does not exist")
    return value


def check_labels(value: Path) -> Path:
    """Return the path of a file of class names, or raise ``ValueError``."""
    read_labels(check_file(value))
    return value


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a file.

    Raises:
        ValueError: It cannot be read, or is no JSON list of names.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: need a JSON list of names")
    return tuple(names)


def check_direction_labels(value: Path) -> Path:
    """Return the path of a file of names of directions, or raise ``ValueError``."""
    names = check_no_doubles(list(read_labels(check_file(value))))
    for name in names:
        try:
            check_name("direction", name)
        except SidecarError as error:
            raise ValueError(f"{value}: {error.message}") from error
        if name.isdigit():
            raise ValueError(f"{value}: direction {name!r} would be taken for a row: add a letter")
    return value


def check_dictionary_file(value: Path) -> Path:
    """Return the path of a file of vectors that is there, or raise ``ValueError``."""
    if value.suffix not in _DICTIONARY_SUFFIXES:
        raise ValueError(f"{value} ends in none of {', '.join(_DICTIONARY_SUFFIXES)}: convert it")
    return check_file(value)


def check_factory(value: str) -> str:
    """Return text of the form ``package.module:function``, or raise ``ValueError``."""
    if not _FACTORY.fullmatch(value):
        raise ValueError(f"{value!r} is not 'package.module:function'")
    return value


def check_digest(value: str) -> str:
    """Check a sha256 that may be left out."""
    if value and not is_digest(value):
        raise ValueError(f"{value!r} is no sha256: need 64 hexadecimal digits in lower case")
    return value


def check_range(value: list[int]) -> list[int]:
    """Check what black and white are."""
    if value not in ([0, 1], [0, 255]):
        raise ValueError(f"{value} is neither [0, 1] nor [0, 255]")
    return value


def check_selector(value: str) -> str:
    """Return text that selects a feature, or raise ``ValueError``."""
    try:
        FeatureSelector.parse(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def check_slice(value: dict[str, str]) -> dict[str, str]:
    """Return pairs that are a slice of the traffic, or raise ``ValueError``."""
    try:
        Slice.of(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def check_model_name(value: str) -> str:
    """Return a name that a model may have, or raise ``ValueError``."""
    try:
        return check_name("model", value)
    except SidecarError as error:
        raise ValueError(error.message) from error


def check_layer_name(value: str) -> str:
    """Return a name that a layer may have, or raise ``ValueError``."""
    try:
        return check_name("layer", value)
    except SidecarError as error:
        raise ValueError(error.message) from error


def check_recipe(value: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, or raise ``ValueError``; what it lacks has defaults."""
    try:
        recipe_of(value)
    except SidecarError as error:
        raise ValueError(error.message) from error
    return value


def check_no_doubles(values: list[Any]) -> list[Any]:
    """Return a list in which nothing is twice, or raise ``ValueError``."""
    doubled = [value for value, count in Counter(values).items() if count > 1]
    if doubled:
        shown = ", ".join(f"{value!r}" for value in doubled)
        raise ValueError(f"{shown} is there twice: name each once")
    return values


Address = Annotated[str, AfterValidator(_check_address)]
SocketAddress = Annotated[str, AfterValidator(_check_socket)]
WebAddress = Annotated[str, AfterValidator(_check_web_address)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Windows = Annotated[int, Field(ge=1, le=8640)]  # a day of the default length
Bytes = Annotated[int, Field(ge=1024)]
