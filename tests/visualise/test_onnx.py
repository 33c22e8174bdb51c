"""ONNX models: names, gradients that agree with ONNX Runtime, and graphs that only run forward."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from sidecar.errors import DigestMismatch, ModelLoadFailed, UnknownLayer, UnsupportedTarget
from sidecar.features import FeatureKey, LayerKey, View
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import (
    ForwardModel,
    ImageModel,
    InputForm,
    load_onnx,
    maximise,
    with_gradients,
)
from sidecar.visualise.onnx_files import read_onnx
from sidecar.visualise.onnx_forward import CPU, CUDA, open_forward, open_session
from sidecar.visualise.onnx_torch import PARITY_LIMIT, check_parity, convert
from tests import onnx_graphs as graphs

pytestmark = pytest.mark.service

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
FORM = InputForm(graphs.SIDE, graphs.SIDE)


def load(path: Path, form: InputForm = FORM, **more: object) -> ImageModel | ForwardModel:
    """Load on the CPU."""
    return load_onnx(path, form=form, mean=MEAN, std=STD, device="cpu", **more)  # type: ignore[arg-type]  # passed on


def images(count: int = 3) -> torch.Tensor:
    """Colours from 0 to 1."""
    stream = torch.Generator().manual_seed(2)
    return torch.rand((count, 3, graphs.SIDE, graphs.SIDE), generator=stream)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The small graph as a file."""
    return graphs.save(graphs.conv_graph(), tmp_path / "m.onnx")


def quantised(folder: Path) -> Path:
    """The small graph in eight bits, calibrated on random images."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static  # noqa: PLC0415 - slow

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            ready = FORM.apply(images(4), MEAN, STD).numpy()
            self.batches = [{"image": ready}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.batches.pop() if self.batches else None

    plain = graphs.save(graphs.conv_graph(), folder / "plain.onnx")
    quantize_static(plain, folder / "int8.onnx", Reader())
    return folder / "int8.onnx"


@pytest.mark.parametrize("layer", ["low", "rectified", "block.out", "sum", "logits"])
def test_both_kinds_give_the_same_maps_under_the_same_names(path: Path, layer: str) -> None:
    """With gradients and without: one graph, one answer."""
    torch_model, forward = load(path), load(path, gradients=False)

    one, other = torch_model.maps(layer, images()), forward.maps(layer, images())

    assert (True, False) == (torch_model.differentiable, forward.differentiable)
    assert one.shape == other.shape
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_graph_computes_what_its_arithmetic_says(path: Path) -> None:
    """Against the same layers written in torch."""
    weights = {
        t.name: torch.tensor(numpy_helper.to_array(t))
        for t in graphs.conv_graph().graph.initializer
    }
    ready = FORM.apply(images(), MEAN, STD)

    low = nn.functional.conv2d(ready, weights["w0"], weights["b0"], 2, 1).relu()
    total = low + nn.functional.conv2d(low, weights["w1"], None, 1, 1)

    assert torch.allclose(total, load(path).maps("sum", images()), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_image(path: Path) -> None:
    """As finite differences have them."""
    model = load(path)
    given = images(1).double().requires_grad_()
    double = ImageModel(
        model.module.double(), "d", graphs.SIDE, MEAN, STD, model.device, model.form, model.sites
    )

    def value(one: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        handle = double.find("sum").register_forward_hook(lambda _m, _i, o: found.append(o))
        double.module(double.normalise(one))
        handle.remove()
        return found[0][:, 2].mean()

    (gradient,) = torch.autograd.grad(value(given), given)
    step = torch.zeros_like(given)
    step[0, 1, 5, 7] = 1e-5
    slope = (value(given + step) - value(given - step)) / 2e-5

    assert gradient[0, 1, 5, 7].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["block.out", "block.conv"])
def test_a_value_is_found_by_its_name_made_legal_and_by_its_nodes(path: Path, name: str) -> None:
    """``block/out`` of node ``/block/conv``: a feature key has no slashes in its layer."""
    model = load(path)
    key = FeatureKey.parse(f"m@v1/{name}/channel/2")

    assert (3, 6, 16, 16) == tuple(model.maps(key.layer.layer, images()).shape)
    assert torch.equal(model.maps("block.out", images()), model.maps(name, images()))


@pytest.mark.parametrize("gradients", [True, False])
def test_an_unknown_layer_gets_suggestions(path: Path, *, gradients: bool) -> None:
    """The nearest names of the graph."""
    with pytest.raises(UnknownLayer, match=r"did you mean .*block\.out"):
        load(path, gradients=gradients).maps("blocks.out", images())


def test_the_digest_is_that_of_the_file_and_is_held_against_what_is_expected(path: Path) -> None:
    """``sha256sum`` gives the same."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest == load(path, expected_digest=digest).digest
    with pytest.raises(DigestMismatch, match=digest):
        load(path, expected_digest="0" * 64)


def test_weights_in_a_file_beside_it_are_read_and_change_the_digest(tmp_path: Path) -> None:
    """The same maps as with the weights inside; another byte, another revision."""
    kernel = graphs.conv_graph().graph.initializer[0].raw_data
    (tmp_path / "kernel.bin").write_bytes(b"....." + kernel)
    proto = graphs.with_external("kernel.bin", offset=5, length=len(kernel))
    beside = graphs.save(proto, tmp_path / "beside.onnx")
    inside = graphs.save(graphs.conv_graph(), tmp_path / "inside.onnx")

    one = load(beside)
    (tmp_path / "kernel.bin").write_bytes(b"....!" + kernel)

    assert torch.equal(load(inside).maps("sum", images()), one.maps("sum", images()))
    assert one.digest != load(beside).digest


def test_a_conversion_that_computes_something_else_is_refused_by_its_worst_value(
    path: Path,
) -> None:
    """One changed weight: the first value it reaches beyond the limit is named."""
    file = read_onnx(path)
    module, sites = convert(file)
    fine = check_parity(file, module, FORM, MEAN, STD)
    with torch.no_grad():
        module.get_submodule(sites["logits"]).weight[1] += 1.0

    with pytest.raises(ModelLoadFailed, match="at logits"):
        check_parity(file, module, FORM, MEAN, STD)

    assert fine.ratio < PARITY_LIMIT / 10
    assert 7 == fine.taps


def test_operations_that_are_functions_can_be_tapped_too(tmp_path: Path) -> None:
    """A concatenation, of which the converter makes no module."""
    nodes = [
        helper.make_node("Concat", ["image", "image"], ["both"], "join", axis=1),
        helper.make_node("Sigmoid", ["both"], ["out"], "squash"),
    ]
    proto = graphs.graph_of(nodes, [], ["batch", 3, 32, 32], ["batch", 6, 32, 32])

    model = load(graphs.save(proto, tmp_path / "m.onnx"))

    assert (3, 6, 32, 32) == tuple(model.maps("both", images()).shape)


def test_a_quantised_graph_is_refused_gradients_and_runs_forward(tmp_path: Path) -> None:
    """And close to the model it was made of."""
    path = quantised(tmp_path)
    plain = load(tmp_path / "plain.onnx", gradients=False)

    with pytest.raises(ModelLoadFailed, match=r"quantised.*gradients: false"):
        load(path)
    forward = load(path, gradients=False)
    wanted, found = plain.maps("logits", images()), forward.maps("logits", images())

    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("view", [View.MAX, View.MEAN, View.ABS, View.RELU])
def test_reduced_in_the_graph_is_reduced_outside(tmp_path: Path, view: View, opset: int) -> None:
    """Before and after reductions got their axes as an input."""
    path = graphs.save(graphs.conv_graph(opset=opset), tmp_path / "m.onnx")
    model = load(path, gradients=False)
    assert isinstance(model, ForwardModel)
    maps = model.maps("low", images())

    found = model.values("low", view, images())

    mean = maps.mean((2, 3))
    wanted = {View.MAX: maps.amax((2, 3)), View.MEAN: mean, View.ABS: mean.abs()}
    assert torch.allclose(wanted.get(view, mean.relu()), found, atol=1e-6)


def test_a_graph_of_a_fixed_batch_is_fed_that_many(tmp_path: Path) -> None:
    """Three images through a graph that takes one."""
    fixed = graphs.save(graphs.conv_graph(batch=1), tmp_path / "fixed.onnx")
    free = graphs.save(graphs.conv_graph(), tmp_path / "free.onnx")

    one, other = load(fixed, gradients=False), load(free, gradients=False)

    assert torch.allclose(other.maps("sum", images()), one.maps("sum", images()), atol=1e-6)
    assert (3, 6) == tuple(one.values("sum", View.MAX, images()).shape)


def test_images_arrive_as_the_graph_wants_them(tmp_path: Path) -> None:
    """Rows before colours, blue first, up to 255, and not square."""
    proto = graphs.conv_graph(layout="nhwc", height=16)
    form = InputForm(16, 32, 255.0, "bgr", "nhwc")
    path = graphs.save(proto, tmp_path / "m.onnx")
    model = load_onnx(
        path, form=form, mean=(104.0, 117.0, 123.0), std=(1.0, 2.0, 4.0), device="cpu"
    )
    flat = torch.zeros(1, 3, 32, 32)
    flat[:, 0], flat[:, 1], flat[:, 2] = 1.0, 0.5, 0.0  # orange

    ready = model.normalise(flat)

    assert (1, 16, 32, 3) == tuple(ready.shape)
    assert [-104.0, (127.5 - 117) / 2, (255 - 123) / 4] == pytest.approx(ready[0, 3, 3].tolist())
    assert (1, 6, 8, 16) == tuple(model.maps("sum", flat).shape)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_what_a_session_runs_on_is_asked_of_the_session(path: Path, device: str) -> None:
    """Here that is the CPU, and nothing else was wanted."""
    model = open_forward(read_onnx(path), MEAN, STD, FORM, device)

    assert CPU == model.active[-1]
    assert "" == model.fallback or CUDA in model.fallback


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to fall back from")
def test_a_silent_fallback_from_cuda_is_an_error_with_words(path: Path) -> None:
    """ONNX Runtime itself opens the session on the CPU and says nothing."""
    session = open_session(path.read_bytes(), [CUDA, CPU])

    assert [CPU] == session.get_providers()
    with pytest.raises(ModelLoadFailed, match=f"fell back to {CPU}.*onnxruntime-gpu"):
        open_forward(read_onnx(path), MEAN, STD, FORM, "cuda")


def test_a_method_of_gradients_refuses_a_model_that_only_runs_forward(path: Path) -> None:
    """In words that name what works instead, and what to configure."""
    forward, differentiable = load(path, gradients=False), load(path)

    assert differentiable is with_gradients(differentiable, "some_method")
    with pytest.raises(UnsupportedTarget, match=r"some_method needs gradients.*gradients: true"):
        with_gradients(forward, "some_method")
    with pytest.raises(UnsupportedTarget, match="use this, that, or configure"):
        with_gradients(forward, "some_method", ["this", "that"])


def test_a_converted_graph_makes_a_picture(path: Path) -> None:
    """The optimiser needs nothing else of it than of a torch model."""
    target = Target(FeatureKey(LayerKey("m", "v1", "block.out"), 1))

    model = load(path)
    assert isinstance(model, ImageModel)

    picture = maximise(model, [target], Maximisation(steps=12, canvas=32, noise=0.02))[0]

    assert picture.activation > picture.first_activation


def test_modules_of_an_export_are_names_of_what_they_return(tmp_path: Path) -> None:
    """A module that runs twice has no name: which time would be meant?"""
    proto = graphs.conv_graph()
    scopes = (
        "['', 'body', 'body.act', 'relu']",
        "['', 'body', 'body.act', 'relu']",
        "['', 'body', 'add']",
        "['', 'twice', 'x']",
        "['', 'mid', 'x']",
        "['', 'twice', 'x']",
        "['', 'head', 'x']",
    )
    for node, text in zip(proto.graph.node, scopes, strict=True):
        node.metadata_props.append(
            onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=text)
        )

    noteless = helper.make_node("Identity", ["rectified"], ["quantised"])
    proto.graph.node.insert(2, noteless)  # as quantisers put nodes in the midst of modules

    taps = read_onnx(graphs.save(proto, tmp_path / "m.onnx")).taps

    assert ("rectified", "block/out", "logits") == (taps["body.act"], taps["body"], taps["head"])
    assert "twice" not in taps
