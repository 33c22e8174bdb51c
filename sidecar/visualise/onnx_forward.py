"""Models that only run forward, in ONNX Runtime: quantised graphs, and any other that torch cannot run."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import ModelLoadFailed, UnsupportedTarget
from sidecar.features import View
from sidecar.visualise.model import InputForm, as_maps, unknown_layer
from sidecar.visualise.onnx_files import OnnxFile

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

_REDUCTIONS: Mapping[View, tuple[str, ...]] = {
    View.MAX: ("ReduceMax",),
    View.MEAN: ("ReduceMean",),
    View.ABS: ("ReduceMean", "Abs"),
    View.RELU: ("ReduceMean", "Relu"),
    View.RAW: ("ReduceMean",),
}
"""What a graph is given to do at a tap, so that one number a unit leaves it and not a map; as
``units.Units.all_values`` of channels."""

_OPSET_OF_AXES_INPUT = 18  # since when reductions take their axes as an input


@dataclass(frozen=True, slots=True)
class ForwardModel:
    """A checked graph, run by ONNX Runtime; has no gradients.

    Attributes:
        file: The graph.
        digest: sha256 of its file.
        input_size: Side in pixels of the square images it is given; the longer one of its input.
        mean: Subtracted from each colour, in units of ``form.top``.
        std: Divides each colour after that.
        form: What else the graph wants of its input.
        providers: What was asked of ONNX Runtime, in order of preference.
        active: What its session really runs on, first to last.
        device: The CPU: that is where its maps are, wherever they were computed.
        differentiable: Never.
    """

    file: OnnxFile
    digest: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    form: InputForm
    providers: tuple[str, ...]
    active: tuple[str, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    differentiable: Literal[False] = False
    _sessions: dict[tuple[str, ...], "InferenceSession"] = field(default_factory=dict, repr=False)

    @property
    def fallback(self) -> str:
        """What was asked for and is not in use, in words; empty if nothing."""
        missing = [name for name in self.providers if name not in self.active]
        if not missing:
            return ""
        return f"{', '.join(missing)} asked for, but ONNX Runtime runs on {', '.join(self.active)}"

    def layers(self) -> Sequence[str]:
        """Names of the layers that may be asked for."""
        return list(self.file.taps)

    def maps(self, path: str, images: torch.Tensor) -> torch.Tensor:
        """Return a layer's output, see ``model.VisionModel.maps``."""
        session = self._session(path, ())
        output = torch.from_numpy(self._run(session, self._value(path), images))
        return as_maps(path, output, len(images))

    def values(self, path: str, view: View, images: torch.Tensor) -> torch.Tensor:
        """Return a number for each unit of a layer, reduced over positions inside the graph.

        A layer of 112 channels of 14 x 14 leaves the graph as 448 bytes an image instead of 88 kB.

        Args:
            path: Name of the layer.
            view: How positions become one number, as in ``units.Units.all_values``.
            images: Colours from 0 to 1, shape ``(n, 3, input_size, input_size)``.

        Returns:
            Shape ``(n, width)``, float32.

        Raises:
            UnknownLayer: The graph has no such layer.
            UnsupportedTarget: It is no map; or no graph reduces to this view.
        """
        if view not in _REDUCTIONS:
            known = ", ".join(sorted(_REDUCTIONS))
            raise UnsupportedTarget(f"view {view} is not taken inside a graph: use {known}")
        operations = _REDUCTIONS[view]
        session = self._session(path, operations)
        name = self._value(path) + "".join(f"/{operation}" for operation in operations)
        reduced = self._run(session, name, images)
        return as_maps(path, torch.from_numpy(reduced), len(images))[:, :, 0, 0]

    def _value(self, path: str) -> str:
        if path not in self.file.taps:
            unknown_layer(path, self.layers())
        return self.file.taps[path]

    def _session(self, path: str, operations: tuple[str, ...]) -> "InferenceSession":
        """Return a session that gives a layer, with operations after it; made once for each."""
        key = (self._value(path), *operations)
        if key not in self._sessions:
            graph = tapped(self.file, [key[0]], operations)
            try:
                self._sessions[key] = open_session(graph, self.providers)
            except ModelLoadFailed as error:
                raise UnsupportedTarget(f"layer {path}: {error.message}") from error
        return self._sessions[key]

    def _run(
        self, session: "InferenceSession", name: str, images: torch.Tensor
    ) -> NDArray[np.float32]:
        with torch.no_grad():
            ready = self.form.apply(images.cpu().float(), self.mean, self.std)
        given = np.ascontiguousarray(ready.numpy())
        # A graph that was exported for one batch size only is fed that many at a time.
        at_once = self.file.input_shape[0] or len(given)
        parts = [
            run_once(session, self.file.input_name, given[first : first + at_once], [name])[0]
            for first in range(0, len(given), at_once)
        ]
        return np.concatenate(parts)


def open_forward(
    file: OnnxFile,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    form: InputForm,
    device: str,
) -> ForwardModel:
    """Open a graph in ONNX Runtime and make sure of what it runs on.

    Args:
        file: The graph.
        mean: Subtracted from each colour.
        std: Divides each colour after that.
        form: What else it wants; with height and width.
        device: ``auto`` (CUDA if ONNX Runtime has it, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelLoadFailed: ONNX Runtime cannot run the graph; a batch of images of its size fails in it; or
            CUDA was asked for by name and the session does not run there, which ONNX Runtime itself
            does not treat as an error.
    """
    providers = _wanted(device)
    session = open_session(file.proto.SerializeToString(), providers)
    active = tuple(session.get_providers())
    if device.startswith("cuda") and CUDA not in active:
        raise ModelLoadFailed(
            f"device {device!r}: ONNX Runtime fell back to {', '.join(active)} without an error: install "
            "onnxruntime-gpu in place of onnxruntime, with the CUDA and cuDNN that it needs, or use auto "
            "or cpu"
        )
    size = max(form.height, form.width)
    model = ForwardModel(file, file.digest, size, mean, std, form, providers, active)
    _try(model, session)
    return model


def _try(model: ForwardModel, session: "InferenceSession") -> None:
    """Run one grey batch, so that a graph that cannot run is refused while it is loaded."""
    count = model.file.input_shape[0] or 1
    grey = torch.full((count, 3, model.input_size, model.input_size), 0.5)
    ready = np.ascontiguousarray(model.form.apply(grey, model.mean, model.std).numpy())
    run_once(session, model.file.input_name, ready, None)


def _wanted(device: str) -> tuple[str, ...]:
    import onnxruntime  # noqa: PLC0415 - optional package; seen to by the caller

    if device == "cpu":
        return (CPU,)
    if device.startswith("cuda"):
        return (CUDA, CPU)
    # It may list what it then cannot load; the session says what it really uses.
    return tuple(name for name in (CUDA, CPU) if name in onnxruntime.get_available_providers())


def open_session(graph: bytes, providers: Sequence[str]) -> "InferenceSession":
    """Open a session over a graph's bytes; it is given no path, so it reads no other file.

    Raises:
        ModelLoadFailed: ONNX Runtime is not installed, or refuses the graph.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise ModelLoadFailed(
            "running ONNX models needs: pip install 'feature-sidecar[worker,cpu]', or gpu for cpu"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what it falls back to is asked of the session
    # Two threads that spin while they wait would take the cores from the model server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of providers that are not there
            return onnxruntime.InferenceSession(graph, options, providers=list(providers))
    except Exception as error:  # its classes are not exported
        raise ModelLoadFailed(f"ONNX Runtime refuses the graph: {_words(error)}") from error


def run_once(
    session: "InferenceSession", name: str, images: NDArray[np.float32], outputs: list[str] | None
) -> list[NDArray[np.float32]]:
    """Run a session on a batch that is ready.

    Raises:
        ModelLoadFailed: The graph fails on it.
    """
    try:
        return list(session.run(outputs, {name: images}))
    except Exception as error:  # its classes are not exported
        raise ModelLoadFailed(
            f"the graph fails on images of shape {images.shape}: {_words(error)}"
        ) from error


def tapped(file: OnnxFile, values: Sequence[str], operations: Sequence[str] = ()) -> bytes:
    """Return a graph that ends with some of its values, each reduced over positions if asked to.

    It takes batches of any size, if its operations do, whatever size it was exported for.

    Args:
        file: The graph; unchanged.
        values: Names of values.
        operations: Appended to each; reductions are over the last two axes.
    """
    import onnx  # noqa: PLC0415 - loaded by now

    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    del proto.graph.output[:]
    for value in proto.graph.input:
        if value.name == file.input_name and file.input_shape:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    ends = list(values)
    axes = _axes_input(proto)
    for operation in operations:
        ends = [_append(proto, operation, end, axes) for end in ends]
    proto.graph.output.extend(onnx.ValueInfoProto(name=end) for end in ends)
    return proto.SerializeToString()


def _axes_input(proto: Any) -> str:
    """Name the input that holds the axes of positions; empty where they are an attribute."""
    from onnx import numpy_helper  # noqa: PLC0415 - loaded by now

    opset = max(one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"})
    if opset < _OPSET_OF_AXES_INPUT:
        return ""
    both = np.array([2, 3], np.int64)
    proto.graph.initializer.append(numpy_helper.from_array(both, "sidecar/axes"))
    return "sidecar/axes"


def _append(proto: Any, operation: str, value: str, axes: str) -> str:
    """Append an operation to a graph; returns the name of what it gives."""
    from onnx import helper  # noqa: PLC0415 - loaded by now

    end = f"{value}/{operation}"
    inputs = [value]
    more: dict[str, Any] = {}
    if operation.startswith("Reduce"):
        inputs += [axes] if axes else []
        more = {"keepdims": 1} if axes else {"keepdims": 1, "axes": [2, 3]}
    proto.graph.node.append(helper.make_node(operation, inputs, [end], name=end, **more))
    return end


def _words(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0][:300]}" if first else type(error).__name__
