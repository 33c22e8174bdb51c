"""Small ONNX graphs, honest and crafted; every one is made in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 32
OPSET = 20


def conv_graph(
    *,
    side: int = SIDE,
    height: int | None = None,
    channels: int = 3,
    batch: int | str = "batch",
    layout: str = "nchw",
    opset: int = OPSET,
    scale: float = 0.2,
) -> onnx.ModelProto:
    """Convolution, ReLU, convolution, sum with its input, mean and logits; fixed random weights.

    Values are called ``low``, ``rectified``, ``block/out``, ``sum`` and ``logits``.
    """
    stream = np.random.default_rng(11)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = stream.normal(size=shape).astype(np.float32) * scale
        return numpy_helper.from_array(values, name)

    shape = [batch, channels, height or side, side]
    nodes = []
    image = "image"
    if layout == "nhwc":
        shape = [batch, height or side, side, channels]
        nodes.append(
            helper.make_node("Transpose", ["image"], ["planes"], "turn", perm=[0, 3, 1, 2])
        )
        image = "planes"
    nodes += [
        helper.make_node(
            "Conv", [image, "w0", "b0"], ["low"], "conv0", pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["low"], ["rectified"], "relu0"),
        helper.make_node(
            "Conv", ["rectified", "w1"], ["block/out"], "/block/conv", pads=[1, 1, 1, 1]
        ),
        helper.make_node("Add", ["rectified", "block/out"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w2"], ["logits"], "head", transB=1),
    ]
    weights = [
        weight("w0", 6, channels, 3, 3),
        weight("b0", 6),
        weight("w1", 6, 6, 3, 3),
        weight("w2", 4, 6),
    ]
    return graph_of(nodes, weights, shape, ["batch", 4], opset)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    shape: Sequence[int | str],
    output: Sequence[int | str | None] | None,
    opset: int = OPSET,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Wrap nodes into a model whose input is ``image`` and whose output is the last node's."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", kind, list(shape))],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, output)],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model as it is, unchecked."""
    path.write_bytes(proto.SerializeToString())
    return path


def with_external(location: str, **more: Any) -> onnx.ModelProto:
    """The small graph, whose first kernel lies in another file."""
    proto = conv_graph()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return proto
