"""Model files that lie, bomb or carry code, by name; each is written where it is told to."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from tests import onnx_graphs as graphs


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[object, ...]:
        """Ask the unpickler to call a function."""
        return (Path.touch, (self.fuse,))


def safetensors(path: Path, header: object, data: bytes = b"", claimed: int | None = None) -> None:
    """Write a file of that format, whatever the header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    path.write_bytes(struct.pack("<Q", length) + text + data)


def _entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def _zip_pickle(path: Path, fuse: Path, protocol: int = 2) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(fuse), protocol=protocol))
        archive.writestr("archive/version", "3")


def _programme(path: Path) -> None:
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, path)


def _zip_swollen(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", bytes(1 << 24))


def _nan_state(path: Path) -> None:
    torch.save({"weight": torch.full((4, 3, 3, 3), torch.nan)}, path)


WEIGHTS: Mapping[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "pickle": ("w.pt", lambda p, f: p.write_bytes(pickle.dumps(Bomb(f))), "pickled objects"),
    "pickle-of-protocol-2": (
        "w.pt",
        lambda p, f: p.write_bytes(pickle.dumps(Bomb(f), protocol=2)),
        "pickled objects",
    ),
    "zip-pickle": ("w.pt", _zip_pickle, "pickled objects"),
    "zip-pickle-of-protocol-4": ("w.bin", lambda p, f: _zip_pickle(p, f, 4), "pickled objects"),
    "bomb-beside-tensors": (
        "w.pt",
        lambda p, f: torch.save({"w": torch.ones(1), "more": Bomb(f)}, p),
        "pickled objects",
    ),
    "exported-programme": ("w.pt2", lambda p, _: _programme(p), "hold a programme"),
    "zip-bomb": ("w.pt", lambda p, _: _zip_swollen(p), "unpacks to more"),
    "header-too-long": (
        "w.safetensors",
        lambda p, _: safetensors(p, {}, claimed=1 << 60),
        "claims a header",
    ),
    "header-no-json": ("w.safetensors", lambda p, _: safetensors(p, b"{{{{"), "no JSON"),
    "header-too-deep": ("w.safetensors", lambda p, _: safetensors(p, b"[" * 100_000), "no JSON"),
    "header-a-list": ("w.safetensors", lambda p, _: safetensors(p, []), "need a mapping"),
    "twice-the-same-name": (
        "w.safetensors",
        lambda p, _: safetensors(p, b'{"a":1,"a":2}'),
        "twice",
    ),
    "overlapping": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, bytes(12)),
        "overlaps",
    ),
    "gap": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, bytes(12)),
        "gap",
    ),
    "beyond-the-end": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 4 << 40, [1 << 40])}, bytes(12)),
        "describes",
    ),
    "huge-shape": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 12, [1 << 62, 1 << 62])}, bytes(12)),
        "takes",
    ),
    "negative-shape": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 12, [-1, -3])}, bytes(12)),
        "takes",
    ),
    "unknown-type": (
        "w.safetensors",
        lambda p, _: safetensors(p, {"a": _entry(0, 12, [3], "F3")}, bytes(12)),
        "described",
    ),
    "nothing": ("w.pt", lambda p, _: p.write_bytes(b""), "has 0 bytes"),
}
"""Weights: file name, how it is written, given the file and what must not be made, and words."""


def _graph(path: Path, change: Callable[..., object]) -> None:
    proto = graphs.conv_graph()
    change(proto.graph)
    graphs.save(proto, path)


def _huge_initialiser(graph: object) -> None:
    graph.initializer[0].dims[:] = [1 << 20, 1 << 20]  # type: ignore[attr-defined]  # a GraphProto


def _broken_number(value: float) -> Callable[..., object]:
    def change(graph: object) -> None:
        kernel = numpy_helper.to_array(graph.initializer[0]).copy()  # type: ignore[attr-defined]  # a GraphProto
        kernel.flat[5] = value
        graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "w0"))  # type: ignore[attr-defined]  # as above

    return change


def _huge_constant(path: Path) -> None:
    size = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "size")
    node = helper.make_node("ConstantOfShape", ["size"], ["zeros"], "swell")
    add = helper.make_node("Add", ["image", "zeros"], ["sum"], "add")
    graphs.save(graphs.graph_of([node, add], [size], ["b", 3, 32, 32], None), path)


def _deep(path: Path, levels: int) -> None:
    """Branches within branches; written as bytes, because no library makes so many."""
    name = b"\x0a\x01x"  # one output or input, of node or graph, called x
    message = b""
    for _ in range(levels):
        node = b"\x12\x01y\x22\x02If" + _field(5, b"\x0a\x01b" + _field(6, message))
        message = _field(1, node)  # a graph of that node
    path.write_bytes(b"\x08\x0a" + _field(7, message + _field(11, name)))


def _field(number: int, content: bytes) -> bytes:
    """A message as a field of another, as protobuf writes it."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _link(path: Path, fuse: Path) -> None:
    del fuse
    (path.parent / "kernel.bin").symlink_to("/etc/passwd")
    graphs.save(graphs.with_external("kernel.bin", offset=0, length=648), path)


def _second_input(graph: object) -> None:
    value = helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])
    graph.input.append(value)  # type: ignore[attr-defined]  # a GraphProto


def _foreign(graph: object) -> None:
    graph.node[1].domain = "evil.example"  # type: ignore[attr-defined]  # a GraphProto


def _cycle(graph: object) -> None:
    graph.node[0].input[0] = "sum"  # type: ignore[attr-defined]  # a GraphProto


GRAPHS: Mapping[str, tuple[Callable[[Path, Path], None], str]] = {
    "not-onnx": (lambda p, _: p.write_bytes(b"\xff" * 4096), "no ONNX file"),
    "pickle": (lambda p, f: p.write_bytes(pickle.dumps(Bomb(f))), "ONNX file|no graph"),
    "climbing-path": (
        lambda p, _: graphs.save(graphs.with_external("../../../../etc/passwd"), p) and None,
        "same folder",
    ),
    "absolute-path": (
        lambda p, _: graphs.save(graphs.with_external("/etc/passwd"), p) and None,
        "same folder",
    ),
    "symbolic-link": (_link, "symbolic link"),
    "absent-weights": (
        lambda p, _: graphs.save(graphs.with_external("gone.bin"), p) and None,
        "cannot be read",
    ),
    "huge-tensor": (lambda p, _: _graph(p, _huge_initialiser), "takes"),
    "huge-constant": (lambda p, _: _huge_constant(p), "asks for"),
    "recursion": (lambda p, _: _deep(p, 8), "depth"),
    "recursion-beyond-the-parser": (lambda p, _: _deep(p, 5000), "no ONNX file"),
    "cycle": (lambda p, _: _graph(p, _cycle), "breaks the rules"),
    "nan": (lambda p, _: _graph(p, _broken_number(np.nan)), "NaN or infinity"),
    "infinity": (lambda p, _: _graph(p, _broken_number(-np.inf)), "NaN or infinity"),
    "foreign-operation": (lambda p, _: _graph(p, _foreign), "evil.example"),
    "two-inputs": (lambda p, _: _graph(p, _second_input), "takes 2 inputs"),
    "one-pixel": (
        lambda p, _: graphs.save(graphs.conv_graph(side=1), p) and None,
        "any x 3 x 1 x 1",
    ),
    "other-shape": (
        lambda p, _: graphs.save(graphs.conv_graph(side=64), p) and None,
        "64 x 64, and models",
    ),
    "one-colour": (
        lambda p, _: graphs.save(graphs.conv_graph(channels=1), p) and None,
        "any x 1 x 32 x 32",
    ),
}
"""Graphs: how each is written, and words of its refusal where the input is 32 pixels."""
