"""Reads ONNX files that may be crafted, and names their layers.

A file is parsed once, checked here, and from then on only bytes travel: no runtime is ever given a path, so
none resolves the paths that a file may name.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidecar.errors import InvalidName, ModelLoadFailed
from sidecar.features import check_name
from sidecar.visualise.weight_files import regular_file

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_GRAPH_LIMIT_BYTES = (2 << 30) - 1  # what a protobuf message can hold
_ELEMENTS_LIMIT = 1 << 28  # a gibibyte of float32 that a graph may ask for by a number in it
_NODES_LIMIT = 100_000  # the deepest vision models have some thousands
_DEPTH_LIMIT = 4  # of subgraphs within each other
_DOMAINS = frozenset(
    {"", "ai.onnx", "com.microsoft"}
)  # the standard's, and quantised ones of the runtime
_MADE_OF_NUMBERS = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad"})
"""Operations whose output is as large as a number in the file says."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.:\-]+")
_SCOPES = "pkg.torch.onnx.name_scopes"
_SCOPE = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A graph that has been checked.

    Attributes:
        path: Where it was read from.
        proto: The graph with all its weights inside.
        digest: sha256 of the file; with weights in files beside it, of the digests of all of them.
        input_name: The one input.
        input_shape: Its dimensions; 0 where the graph takes any.
        taps: Value of each name a layer may be called by: the value's own name, made a legal one, the
            name of the node, and of files from ``torch.onnx`` the module path.
    """

    path: Path
    proto: "ModelProto"
    digest: str
    input_name: str
    input_shape: tuple[int, ...]
    taps: Mapping[str, str]

    def values(self) -> list[str]:
        """First outputs of all nodes, in the graph's order."""
        return [node.output[0] for node in self.proto.graph.node]


def read_onnx(path: Path) -> OnnxFile:
    """Read and check an ONNX file; runs nothing in it.

    Raises:
        ModelLoadFailed: It is no file, no graph of ONNX, holds weights of another size than it says, NaN
            or infinities, names files outside its folder, asks for arrays of absurd sizes or for
            operations that are not ONNX's, or takes anything but one batch of images.
    """
    try:
        import onnx  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise ModelLoadFailed(f"onnx {path}: reading it needs: pip install onnx") from error
    if regular_file(path, "onnx") > _GRAPH_LIMIT_BYTES:
        raise _refused(path, "has more than 2 GiB: export the weights as files beside it")
    content = path.read_bytes()
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:  # the parser's own class is not exported
        raise _refused(path, f"is no ONNX file: {_words(error)}") from error
    _check_graph(path, proto.graph)
    digests = [hashlib.sha256(content).hexdigest(), *_take_in(path, proto)]
    # An attention mask may be infinite on purpose, a kernel may not.
    weights = frozenset(
        name for node in proto.graph.node if node.op_type in _WEIGHTED for name in node.input
    )
    for tensor in _tensors(proto.graph):
        _check_tensor(path, tensor, weights)
    _check_numbers(path, proto.graph)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # of several classes
        raise _refused(path, f"breaks the rules of ONNX: {_words(error)}") from error
    name, shape = _the_input(path, proto.graph)
    digest = hashlib.sha256("".join(digests).encode()).hexdigest() if digests[1:] else digests[0]
    return OnnxFile(path, proto, digest, name, shape, _taps(proto.graph))


def check_input(
    file: OnnxFile, height: int, width: int, layout: str, what: str = "models[].input"
) -> None:
    """Refuse a graph whose input has another shape than is configured.

    Raises:
        ModelLoadFailed: The message names both.
    """
    wanted = (0, 3, height, width) if layout == "nchw" else (0, height, width, 3)
    if len(file.input_shape) != len(wanted) or any(
        have not in (0, want) for have, want in zip(file.input_shape[1:], wanted[1:], strict=True)
    ):
        shown = " x ".join(str(n or "any") for n in file.input_shape)
        raise _refused(
            file.path,
            f"takes {file.input_name!r} of shape {shown}, and {what} says {height} x {width} pixels in "
            f"layout {layout}: mend size, height, width or layout",
        )


def _check_graph(path: Path, graph: "GraphProto", depth: int = 0) -> None:
    if not graph.node and not depth:
        raise _refused(path, "holds no graph")
    if len(graph.node) > _NODES_LIMIT or depth > _DEPTH_LIMIT:
        raise _refused(
            path,
            f"has {len(graph.node)} nodes at depth {depth} of subgraphs, limits {_NODES_LIMIT} and "
            f"{_DEPTH_LIMIT}",
        )
    for node in graph.node:
        if node.domain not in _DOMAINS:
            raise _refused(path, f"asks for {node.op_type} of {node.domain!r}, which is not ONNX's")
        if not node.output:
            raise _refused(path, f"has a node {node.name or node.op_type!r} without output")
        for inner in _subgraphs(node):
            _check_graph(path, inner, depth + 1)


def _subgraphs(node: "NodeProto") -> Iterator["GraphProto"]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    """Every tensor in a graph: weights, constants, and those of its subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in _subgraphs(node):
            yield from _tensors(inner)


def _take_in(path: Path, proto: "ModelProto") -> list[str]:
    """Read weights that lie in files beside a graph into it; return those files' sha256."""
    import onnx  # noqa: PLC0415 - loaded by now

    digests: dict[Path, str] = {}
    for tensor in _tensors(proto.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        beside = _beside(path, tensor.name, said.get("location", ""))
        size = regular_file(beside, f"onnx {path}: weights")
        try:
            offset, length = int(said.get("offset", 0)), int(said.get("length", -1))
        except ValueError as error:
            raise _refused(path, f"tensor {tensor.name[:100]!r} lies at {said}") from error
        length = size - offset if length < 0 else length
        if not 0 <= offset <= offset + length <= size or length != _bytes_of(path, tensor):
            raise _refused(
                path,
                f"tensor {tensor.name[:100]!r} of shape {list(tensor.dims)} is said to have {length} bytes "
                f"at {offset} of {beside.name}, which has {size}",
            )
        with beside.open("rb") as file:
            if beside not in digests:
                digests[beside] = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(offset)
            tensor.raw_data = file.read(length)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return [digests[beside] for beside in sorted(digests)]


def _beside(path: Path, tensor: str, location: str) -> Path:
    """Return the file a tensor lies in: an ordinary one in the folder of the graph, by its plain name."""
    beside = path.parent / location
    if not location or Path(location).name != location or location in {".", ".."}:
        raise _refused(
            path,
            f"tensor {tensor[:100]!r} lies in {location[:200]!r}: only files in the same folder are read",
        )
    if beside.is_symlink():
        raise _refused(
            path,
            f"tensor {tensor[:100]!r} lies in {location[:200]!r}, a symbolic link: put the file there",
        )
    return beside


def _bytes_of(path: Path, tensor: "TensorProto") -> int:
    """Bytes that a tensor's shape and type take."""
    from onnx import helper  # noqa: PLC0415 - loaded by now

    if any(dim < 0 for dim in tensor.dims):
        raise _refused(path, f"tensor {tensor.name[:100]!r} has shape {list(tensor.dims)}")
    try:
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise _refused(
            path, f"tensor {tensor.name[:100]!r} has type {tensor.data_type}, which is none"
        ) from error
    bits = 4 if str(item) in {"int4", "uint4", "float4_e2m1fn"} else 8 * item.itemsize
    return math.ceil(math.prod(tensor.dims) * bits / 8)


def _check_tensor(path: Path, tensor: "TensorProto", weights: frozenset[str]) -> None:
    """Refuse a tensor that is not as large as it says, holds NaN, or is an infinite weight."""
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 - loaded by now

    if tensor.data_type == TensorProto.STRING:
        return
    wanted = _bytes_of(path, tensor)
    # Without raw bytes the values lie in one of several lists, of which each takes a byte or more.
    given = len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()
    if given != wanted if tensor.HasField("raw_data") else math.prod(tensor.dims) > 2 * given:
        raise _refused(
            path,
            f"tensor {tensor.name[:100]!r} of shape {list(tensor.dims)} takes {wanted} bytes and has {given}",
        )
    try:
        values = numpy_helper.to_array(tensor)
    except Exception as error:  # of several classes
        raise _refused(path, f"tensor {tensor.name[:100]!r}: {_words(error)}") from error
    if values.dtype.kind != "f":
        return
    broken = np.isnan(values).any() or (tensor.name in weights and np.isinf(values).any())
    if broken:
        raise _refused(
            path, f"tensor {tensor.name[:100]!r} holds NaN or infinity: use an intact checkpoint"
        )


def _check_numbers(path: Path, graph: "GraphProto") -> None:
    """Refuse sizes in the file that no image model asks for."""
    from onnx import TensorProto, numpy_helper  # noqa: PLC0415 - loaded by now

    # Sizes are short lists of whole numbers; what is computed from the input cannot be told here.
    sizes = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= 2 * _DEPTH_LIMIT
    }
    for node in graph.node:
        for name in node.input if node.op_type in _MADE_OF_NUMBERS else ():
            asked = math.prod(max(1, abs(int(n))) for n in sizes.get(name, np.ones(1)).flat)
            if asked > _ELEMENTS_LIMIT:
                raise _refused(
                    path,
                    f"{node.op_type} {node.name!r} asks for {asked} values, limit {_ELEMENTS_LIMIT}",
                )


def _the_input(path: Path, graph: "GraphProto") -> tuple[str, tuple[int, ...]]:
    from onnx import TensorProto  # noqa: PLC0415 - loaded by now

    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs[:5]) or "none"
        raise _refused(path, f"takes {len(inputs)} inputs ({names}), need one batch of images")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        raise _refused(
            path,
            f"takes {inputs[0].name!r} of type {TensorProto.DataType.Name(kind.elem_type)}, need FLOAT: "
            "export it with float32 input",
        )
    return inputs[0].name, tuple(int(dim.dim_value) for dim in kind.shape.dim)


def _taps(graph: "GraphProto") -> dict[str, str]:
    """Name the first output of every node by itself, its node, and the modules that end with it."""
    found: dict[str, str] = {}
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    for node in nodes:
        _name(found, node.output[0], node.output[0])
    for node in nodes:
        _name(found, node.name, node.output[0])
    for scope, value in _modules(nodes).items():
        _name(found, scope, value)
    return found


def _modules(nodes: Sequence["NodeProto"]) -> dict[str, str]:
    """Return the last value of each module that ran once; ``torch.onnx`` notes them on the nodes.

    Nodes without a note are left out: a quantiser put them there later, in the midst of modules.
    """
    places: dict[str, list[int]] = {}
    texts = [next((p.value for p in n.metadata_props if p.key == _SCOPES), "") for n in nodes]
    noted = [node for node, text in zip(nodes, texts, strict=True) if text]
    for place, text in enumerate(filter(None, texts)):
        for scope in _SCOPE.findall(text)[:-1]:  # the last is the operation itself
            if scope:
                places.setdefault(scope, []).append(place)
    # With other nodes in between, it ran twice, and its name does not say which time is meant.
    once = {scope: at for scope, at in places.items() if at[-1] - at[0] == len(at) - 1}
    return {scope: noted[at[-1]].output[0] for scope, at in once.items()}


def _name(found: dict[str, str], name: str, value: str) -> None:
    """Add a name if it can be made a legal one and is not taken."""
    legal = _NOT_IN_NAMES.sub(".", name).strip(".:-")
    try:
        found.setdefault(check_name("layer", legal), value)
    except InvalidName:
        return  # too long, or nothing left: its other names remain


def _refused(path: Path, what: str) -> ModelLoadFailed:
    return ModelLoadFailed(f"onnx {path}: the file {what}")


def _words(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__
