import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sidecar.errors import DigestMismatch, ModelLoadFailed
from sidecar.visualise import ImageModel, load_model
from sidecar.weights import module_digest

pytestmark = pytest.mark.service

Load = Callable[..., ImageModel]

_FACTORIES = """
import torch
from torch import nn

def small():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9))

def small_bfloat16():
    return small().bfloat16()

def small_float16():
    return small().half()

def needs_argument(size):
    return nn.Conv2d(3, size, 3)

def fails():
    raise RuntimeError("no licence server")

def leaves():
    raise SystemExit(3)

def a_dictionary():
    return {}

def scripted():
    return torch.jit.script(nn.Conv2d(3, 4, 3))

number = 4
"""


def _small(seed: int = 5) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9))
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    return module


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load with a module of factories on the import path."""
    (tmp_path / "some_factories.py").write_text(_FACTORIES)
    (tmp_path / "broken_factories.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)

    def run(
        factory: str = "some_factories:small", weights: Path | None = None, **more: str
    ) -> ImageModel:
        return load_model(
            factory, weights, input_size=8, mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu", **more
        )

    return run


def test_a_state_dict_is_loaded_strictly_and_the_model_made_ready(
    load: Load, tmp_path: Path
) -> None:
    """Weights, digest, evaluation mode and frozen parameters are those of the file."""
    torch.save(_small().state_dict(), tmp_path / "w.pt")

    model = load(weights=tmp_path / "w.pt")

    assert module_digest(_small()) == model.digest
    assert not any(inner.training for inner in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("casts", [False, True])
def test_a_model_served_in_half_precision_is_found_and_drawn_in_float32(
    load: Load, tmp_path: Path, dtype: torch.dtype, *, casts: bool
) -> None:
    """Its revision is that of the cast weights; the values are those, the arithmetic is not."""
    torch.save(_small().state_dict(), tmp_path / "w.pt")
    served = _small().to(dtype)
    name = f"small_{str(dtype).removeprefix('torch.')}" if casts else "small"

    model = load(f"some_factories:{name}", tmp_path / "w.pt", expected_digest=module_digest(served))

    assert module_digest(served) == model.digest
    assert torch.float32 is model.module[0].weight.dtype
    assert torch.equal(served[0].weight.float(), model.module[0].weight)
    assert model.module(model.normalise(torch.rand(1, 3, 8, 8))).isfinite().all()


def test_safetensors_and_torch_files_of_equal_weights_have_equal_digests(
    load: Load, tmp_path: Path
) -> None:
    """The revision is in the numbers, not in the file format."""
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(_small().state_dict(), tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": _small().state_dict()}, tmp_path / "w.ckpt")

    one = load(weights=tmp_path / "w.safetensors")
    two = load(weights=tmp_path / "w.ckpt")

    assert one.digest == two.digest


def test_a_factory_may_bring_its_own_weights(load: Load) -> None:
    """Without a file, what the factory returns is the model."""
    assert module_digest(load().module) == load().digest


def test_the_expected_revision_is_accepted_and_any_other_refused(load: Load) -> None:
    """A picture is never made with weights other than those it is shown beside."""
    digest = load().digest

    assert digest == load(expected_digest=digest).digest
    with pytest.raises(DigestMismatch, match=digest):
        load(expected_digest="0" * 64)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("some_factories", "package.module:function"),
        (":small", "package.module:function"),
        ("no_such_module_anywhere:small", "python_path"),
        ("broken_factories:small", "a_package_that_is_not_there"),
        ("some_factories:absent", "has no function absent"),
        ("some_factories:number", "has no function number"),
        ("some_factories:fails", "no licence server"),
        ("some_factories:leaves", "SystemExit"),
        ("some_factories:needs_argument", "without arguments"),
        ("some_factories:a_dictionary", "returned dict"),
    ],
)
def test_every_way_a_factory_fails_names_it_and_says_what_to_do(
    load: Load, factory: str, words: str
) -> None:
    """The operator reads what to mend, not a traceback."""
    with pytest.raises(ModelLoadFailed, match=words) as caught:
        load(factory)

    assert factory in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_because_it_takes_no_hooks(load: Load) -> None:
    """The message asks for the eager module."""
    with pytest.raises(ModelLoadFailed, match="eager"):
        load("some_factories:scripted")


def _truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("damage", [_truncated, lambda _: b"", lambda _: b"\0" * 4096])
def test_a_damaged_file_is_refused_by_name(
    load: Load, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Half a file, nothing, and zeros."""
    out = io.BytesIO()
    torch.save(_small().state_dict(), out)
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(damage(out.getvalue()))

        with pytest.raises(ModelLoadFailed, match=name):
            load(weights=tmp_path / name)


def test_a_missing_file_is_refused_by_name(load: Load, tmp_path: Path) -> None:
    """It may have gone since the daemon started."""
    with pytest.raises(ModelLoadFailed, match=r"gone\.pt"):
        load(weights=tmp_path / "gone.pt")


class _Bomb:
    """Touches a file when unpickled."""

    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[object, ...]:
        """Ask the unpickler to call a function."""
        return (Path.touch, (self.fuse,))


def _plain(bomb: _Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def _in_torch_file(bomb: _Bomb, path: Path) -> None:
    torch.save({"weight": torch.ones(1), "more": bomb}, path)


def _in_legacy_torch_file(bomb: _Bomb, path: Path) -> None:
    torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=False)


def _in_zip(bomb: _Bomb, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb, protocol=2))
        archive.writestr("archive/version", "3")


@pytest.mark.parametrize("craft", [_plain, _in_torch_file, _in_legacy_torch_file, _in_zip])
def test_a_crafted_pickle_is_refused_and_not_run(
    load: Load, tmp_path: Path, craft: Callable[[_Bomb, Path], None]
) -> None:
    """Whatever it is wrapped in, the code in it stays asleep, and nobody is told to wake it."""
    fuse = tmp_path / "it-ran"
    craft(_Bomb(fuse), tmp_path / "w.pt")

    with pytest.raises(ModelLoadFailed, match=r"w\.pt") as caught:
        load(weights=tmp_path / "w.pt")

    assert not fuse.exists()
    assert "weights_only" not in str(caught.value)


def test_a_pickled_module_gets_the_advice_to_save_a_state_dict(load: Load, tmp_path: Path) -> None:
    """The commonest honest mistake."""
    torch.save(_small(), tmp_path / "w.pt")

    with pytest.raises(ModelLoadFailed, match=r"save model\.state_dict\(\)"):
        load(weights=tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.ones(3), "holds Tensor"),
        ([torch.ones(3)], "holds list"),
        ({"0.weight": 3}, "entry '0.weight' is int"),
        ({}, "do not fit"),
        ({"0.weight": torch.ones(4, 3, 3, 3)}, "do not fit"),
    ],
)
def test_what_is_not_the_state_dict_of_the_module_is_refused(
    load: Load, tmp_path: Path, state: object, words: str
) -> None:
    """Other contents, and missing tensors."""
    torch.save(state, tmp_path / "w.pt")

    with pytest.raises(ModelLoadFailed, match=words):
        load(weights=tmp_path / "w.pt")


def test_another_shape_or_an_extra_tensor_is_refused(load: Load, tmp_path: Path) -> None:
    """Strict means strict."""
    good = _small().state_dict()
    for more in ({"0.weight": torch.ones(9, 3, 3, 3)}, {"7.weight": torch.ones(1)}):
        torch.save({**good, **more}, tmp_path / "w.pt")

        with pytest.raises(ModelLoadFailed, match="do not fit"):
            load(weights=tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_with_nan_are_refused_by_tensor(load: Load, tmp_path: Path, name: str) -> None:
    """A diverged checkpoint makes no pictures, whether parameter or buffer."""
    state = _small().state_dict()
    state[name].view(-1)[1] = float("nan")
    torch.save(state, tmp_path / "w.pt")

    with pytest.raises(ModelLoadFailed, match=f"{name} holds NaN"):
        load(weights=tmp_path / "w.pt")


def test_infinite_parameters_are_refused_but_buffers_may_be(load: Load, tmp_path: Path) -> None:
    """Masks of minus infinity are honest; infinite weights are not."""
    state = _small().state_dict()
    state["1.running_var"][0] = torch.inf
    torch.save(state, tmp_path / "buffer.pt")
    state["0.bias"][0] = -torch.inf
    torch.save(state, tmp_path / "parameter.pt")

    assert load(weights=tmp_path / "buffer.pt").digest
    with pytest.raises(ModelLoadFailed, match=r"0\.bias is infinite"):
        load(weights=tmp_path / "parameter.pt")


def test_a_device_that_is_not_there_is_refused(load: Load, tmp_path: Path) -> None:
    """A wrong name and an absent accelerator alike."""
    for device in ("gpu", "cuda:97", "meta:x"):
        with pytest.raises(ModelLoadFailed, match=device):
            load_model(
                "some_factories:small",
                None,
                input_size=8,
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                device=device,
            )


@pytest.mark.parametrize(("size", "std"), [(0, 0.5), (8, 0.0), (8, float("nan"))])
def test_an_input_no_image_can_have_is_refused(load: Load, size: int, std: float) -> None:
    """The configuration checks it too, but the worker trusts nobody."""
    with pytest.raises(ModelLoadFailed, match="makes no sense"):
        load_model(
            "some_factories:small",
            None,
            input_size=size,
            mean=(0.5,) * 3,
            std=(std,) * 3,
            device="cpu",
        )


def test_a_picture_is_made_without_torchs_compiler() -> None:
    """Loading it would cost every job a second and 70 MB."""
    script = """
import sys, torch
from torch import nn
from sidecar.features import FeatureKey, LayerKey
from sidecar.recipes import Maximisation, Target
from sidecar.visualise import ImageModel, maximise
net = nn.Sequential(nn.Conv2d(3, 2, 3)).eval().requires_grad_(False)
model = ImageModel(net, "d", 16, (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
maximise(model, [Target(FeatureKey(LayerKey("m", "r", "0"), 1))], Maximisation(steps=2, canvas=32))
print("torch._dynamo" in sys.modules)
"""

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )

    assert "False" == done.stdout.strip()
