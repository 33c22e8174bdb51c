"""Looks through a weights file before any loader does, and refuses what no honest file holds.

Loaders are written for speed and for their friends. What is checked here first is cheap and needs no
trust: that the file is a file, that what it says of its own size is true, and that nothing in it asks
for code.
"""

import json
import math
import pickletools
import stat
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sidecar.errors import ModelLoadFailed

FILE_LIMIT_BYTES = 16 << 30
"""Of one model file: the largest open vision model has 22 billion parameters, 44 GB in half precision,
and no worker of this kind could hold half of it."""

_HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own limit
_PICKLE_LIMIT_BYTES = 64 << 20  # names and shapes of a million tensors
_HEADER_PREFIX_BYTES = 8
_LEGACY_PICKLES = 5  # magic number, protocol, system, state dict, storage keys

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of a value of each dtype that safetensors names."""

_TENSOR_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch.serialization _get_layout",
        "torch.storage UntypedStorage",
        *(
            f"torch {kind}Storage"
            for kind in (
                *("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long"),
                *("Bool", "ComplexFloat", "ComplexDouble", "Untyped"),
            )
        ),
        *(
            f"torch {name}"
            for name in (
                *("float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32"),
                *("int64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2"),
            )
        ),
    }
)
"""All that a pickled state dict needs; a subset of what ``torch.load(weights_only=True)`` lets by."""

_EXPORTED = frozenset({"code", "models", "constants.pkl", "model.json", "archive_format"})
"""Parts of a torch archive that hold a programme: TorchScript's and ``torch.export``'s."""


def scan_weights(path: Path) -> None:
    """Refuse a weights file that is not tensors and nothing else; loads and runs nothing.

    Raises:
        ModelLoadFailed: It is no file, too large, contradicts itself, or holds code.

    Complexity:
        Reads headers and pickles, not the tensors.
    """
    regular_file(path, "weights")
    try:
        if path.suffix == ".safetensors":
            _scan_safetensors(path)
        elif zipfile.is_zipfile(path):
            _scan_archive(path)
        else:
            _scan_legacy(path)
    except OSError as error:
        raise ModelLoadFailed(f"weights {path} cannot be read: {error.strerror}") from error


def regular_file(path: Path, what: str) -> int:
    """Return the size in bytes of an ordinary file.

    Raises:
        ModelLoadFailed: There is none, it is a device, a pipe or a folder, empty, or too large.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ModelLoadFailed(f"{what} {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelLoadFailed(f"{what} {path} is no ordinary file: name the model's file itself")
    if not 0 < found.st_size <= FILE_LIMIT_BYTES:
        raise ModelLoadFailed(
            f"{what} {path} has {found.st_size} bytes, need 1 to {FILE_LIMIT_BYTES}: use an intact file"
        )
    return found.st_size


def _scan_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(_HEADER_PREFIX_BYTES), "little")
        rest = size - _HEADER_PREFIX_BYTES
        if rest < 0 or claimed > min(rest, _HEADER_LIMIT_BYTES):
            raise _lies(path, f"claims a header of {claimed} bytes in a file of {size}")
        text = file.read(claimed)
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _lies(path, f"has a header that is no JSON: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise _lies(path, f"has a header of type {type(header).__name__}, need a mapping")
    header.pop("__metadata__", None)
    spans = sorted(_span(path, name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            how = "overlaps the tensor before it" if start < end else "leaves a gap before it"
            raise _lies(path, f"tensor {name!r} at bytes {start} to {stop} {how}")
        end = stop
    if end != rest - claimed:
        raise _lies(path, f"holds {rest - claimed} bytes of tensors and describes {end}")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Return where a tensor lies, having checked that its shape fills exactly that."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        wanted = _ITEM_BYTES[dtype] * math.prod(shape)
    except (TypeError, KeyError, ValueError) as error:
        raise _lies(path, f"tensor {name[:100]!r} is described by {str(entry)[:100]}") from error
    if not whole or stop - start != wanted:
        raise _lies(
            path,
            f"tensor {name[:100]!r} of {dtype} and shape {shape} takes {wanted} bytes, and is said to "
            f"lie at {start} to {stop}",
        )
    return start, stop, name


def _scan_archive(path: Path) -> None:
    """Scan what ``torch.save`` writes: a zip of one pickle and the tensors' bytes, uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_programme(path, entries)
            _refuse_swollen(path, entries)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    with archive.open(entry) as file:
                        _scan_pickle(path, file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _lies(path, f"is a broken archive: {str(error)[:100]}") from error


def _refuse_programme(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    for entry in entries:
        parts = entry.filename.split("/")[:2]
        code = _EXPORTED.intersection(parts)
        if code:
            raise ModelLoadFailed(
                f"weights {path} hold a programme ({entry.filename[:100]}), as TorchScript and "
                "torch.export write it, and it was not run: save model.state_dict() instead"
            )
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise _lies(path, "is an archive without data.pkl, so it is not from torch.save")


def _refuse_swollen(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > size:
        raise _lies(path, "unpacks to more than its own size, which torch.save never writes")


def _scan_legacy(path: Path) -> None:
    """Scan what torch wrote before 1.6: pickles one after another, then the tensors' bytes."""
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            if not _scan_pickle(path, file):
                return  # no pickle, or the end: torch says what it is


def _scan_pickle(path: Path, file: IO[bytes]) -> bool:
    """Look at what a pickle would import, without running it; whether it ended as one.

    Raises:
        ModelLoadFailed: It would import anything but tensors, or is too large.
    """
    start, last = file.tell(), ""
    for opcode, imported, position in _instructions(file):
        if position - start > _PICKLE_LIMIT_BYTES:
            raise _lies(path, f"holds a pickle of more than {_PICKLE_LIMIT_BYTES} bytes")
        if imported and imported not in _TENSOR_GLOBALS:
            raise ModelLoadFailed(
                f"weights {path} hold pickled objects ({imported[:100]}), not just tensors, and were not "
                "run: save model.state_dict() with safetensors or torch.save"
            )
        last = opcode
    return last == "STOP"


def _instructions(file: IO[bytes]) -> Iterator[tuple[str, str, int]]:
    """Yield instruction, what it imports, and position, as far as the bytes are a pickle."""
    with suppress(Exception):  # genops raises anything on bytes that are none
        for opcode, argument, position in pickletools.genops(file):
            yield opcode.name, _imported(opcode.name, argument), position or 0


def _imported(opcode: str, argument: Any) -> str:
    """Return what an instruction of a pickle imports; empty if nothing."""
    if opcode in {"GLOBAL", "INST"}:
        return str(argument)
    # Names made up on the stack, of protocol 4 and later, and registered numbers: torch.save writes
    # neither, and what they stand for cannot be told without running the pickle.
    return opcode if opcode in {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"} else ""


def _lies(path: Path, what: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"weights {path}: the file {what}: use an intact file")
