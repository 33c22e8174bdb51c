"""Reads a file: YAML to sections, and every problem to a line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sidecar.config.detection import SpikeConfig
from sidecar.config.file import PolicyConfig, SidecarConfig, disagreements
from sidecar.errors import ConfigError

_GONE_FROM_SPIKE = {
    "long_windows": "level_windows says over how many windows the recent level forgets",
    "long_factor": "factor is the least over the recent level, baseline_factor that over the baseline",
    "min_exceedances": "evidence weighs few requests by itself",
    "false_alarm_probability": "false_alarms_per_1000_days sets how many to expect",
    "pending_windows": "a spike fires as soon as there is evidence enough, without a wait",
}
"""Keys of earlier builds, and what took their place."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which otherwise lets the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is there twice: join the two", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path) -> SidecarConfig:
    """Read and check a configuration file.

    Args:
        path: A YAML file. Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: The file cannot be read, is no YAML mapping, or holds unknown keys, wrong types,
            values out of range, or paths that do not exist; the message lists every problem with
            its line.
    """
    document, tree = _read(path)
    try:
        return SidecarConfig.model_validate(_absolute(document, path.resolve().parent))
    except ValidationError as error:
        # With a wrong field anywhere pydantic does not come to what the sections say of each other.
        said = [] if _is_whole(error) else disagreements(*_named(document))
        lines = [f"{path}:{_line(tree, (section,))}: {section}: {what}" for section, what in said]
        raise ConfigError("\n".join(sorted([*_problems(error, path, tree), *lines]))) from error


def load_policy(path: Path) -> PolicyConfig:
    """Read when features fire: from the settings of ``spike`` alone, or from a whole configuration.

    Sections beside ``spike`` and ``flags`` are not looked into, so that the configuration of another
    machine can be read where its weights and folders are not.

    Raises:
        ConfigError: The file cannot be read, or what it says of these is wrong; the message lists
            every problem with its line.
    """
    document, tree = _read(path)
    bare = bool(document) and not set(document) & set(SidecarConfig.model_fields)
    inside: tuple[str, ...] = ("spike",) if bare else ()
    known = SpikeConfig.model_fields if bare else SidecarConfig.model_fields
    problems = [
        f"{path}:{_line(tree, (str(key),))}: {key}: {_unknown((*inside, str(key)), _UNKNOWN_IN_POLICY)}"
        for key in document
        if key not in known
    ]
    rest = {key: value for key, value in document.items() if key in known}
    policy = PolicyConfig()
    try:
        policy = PolicyConfig.model_validate({"spike": rest} if bare else rest)
    except ValidationError as error:
        problems += _problems(error, path, tree, inside)
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return policy


_UNKNOWN_IN_POLICY = (
    "unknown key: check its spelling and place; a policy has the keys of spike, or the sections of a "
    "configuration"
)


def _unknown(location: tuple[int | str, ...], otherwise: str) -> str:
    """Say what became of a key that there is no more, or that there never was."""
    section, key = (*map(str, location), "", "")[:2]
    gone = _GONE_FROM_SPIKE.get(key) if section == "spike" else None
    return f"unknown key: it is gone, remove it; {gone}" if gone else otherwise


def _read(path: Path) -> tuple[dict[Any, Any], yaml.Node | None]:
    """Return the mapping in a file, and its nodes, which know their lines."""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
        tree = yaml.compose(text, Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # ValueError: text that is no UTF-8, or a scalar such as the date 2024-13-45.
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, need a mapping of settings")
    return document, tree


def _is_whole(error: ValidationError) -> bool:
    """Whether every field was right, and only the file as a whole is not."""
    return all(not item["loc"] for item in error.errors(include_url=False))


def _named(document: dict[Any, Any]) -> tuple[list[str], list[str]]:
    """Return the models' names and the flagged features of a document that may hold anything."""

    def texts(section: str, key: str) -> list[str]:
        items = document.get(section)
        entries = items if isinstance(items, list) else []
        found = [entry.get(key) for entry in entries if isinstance(entry, dict)]
        return [value for value in found if isinstance(value, str)]

    return texts("models", "name"), texts("flags", "feature")


_PATHS = {
    "models": ("weights", "onnx", "labels"),
    "datasets": ("folder",),
    "dictionaries": ("file", "labels"),
}
"""Keys of lists of mappings whose values are paths."""


def _absolute(document: dict[Any, Any], base: Path) -> dict[Any, Any]:
    """Resolve the document's relative paths against the folder of the file."""

    def resolve(value: Any) -> Any:
        return str(base / value) if isinstance(value, str) else value

    found = dict(document)
    if "state_dir" in found:
        found["state_dir"] = resolve(found["state_dir"])
    for section, keys in _PATHS.items():
        if isinstance(found.get(section), list):
            found[section] = [
                {k: resolve(v) if k in keys else v for k, v in one.items()}
                if isinstance(one, dict)
                else one
                for one in found[section]
            ]
    if isinstance(store := found.get("store"), dict):
        places = (n for n in ("shared_baselines", "artifacts") if store.get(n))
        local = {n: resolve(store[n]) for n in places if "://" not in str(store[n])}
        found["store"] = {**store, **local}
    jobs = found.get("jobs")
    if isinstance(jobs, dict) and isinstance(jobs.get("python_path"), list):
        found["jobs"] = {**jobs, "python_path": [resolve(p) for p in jobs["python_path"]]}
    return found


def _problems(
    error: ValidationError, path: Path, tree: yaml.Node | None, inside: tuple[str, ...] = ()
) -> list[str]:
    """Return what is wrong, with the lines; the file holds what is under ``inside``."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "file"
        found = item["input"]
        # A URL with somebody's password in it must not stand in a log.
        secret = isinstance(found, str) and "://" in found and "@" in found
        shown = "" if isinstance(found, dict | list) or secret else f" (found {found!r})"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown(
                item["loc"], "unknown key: check its spelling and place, or remove it"
            )
        lines.append(f"{path}:{_line(tree, item['loc'][len(inside) :])}: {key}: {message}{shown}")
    return sorted(lines)


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Return the 1-based line of the deepest node on the way to ``location``."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                break
            key, node = pairs[part]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
