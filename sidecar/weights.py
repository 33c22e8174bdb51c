"""Names the revision of a torch module by its weights.

Hooks compute it in the server, the worker computes it after loading; a picture is only ever shown
beside live numbers of the same digest.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.features import weights_digest

if TYPE_CHECKING:
    import torch


def module_digest(module: "torch.nn.Module", dtype: "torch.dtype | None" = None) -> str:
    """Return the sha256 over a module's state dict, see ``features.weights_digest``.

    Tensors are hashed one at a time, so the copy on the CPU never exceeds the largest of them.

    Args:
        module: Any module; neither it nor its device is changed.
        dtype: Hash as if the module had been cast with ``module.to(dtype)``; None: as it is.

    Returns:
        64 hexadecimal digits.
    """
    return weights_digest(_tensors(module, dtype))


def _tensors(
    module: "torch.nn.Module", dtype: "torch.dtype | None"
) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    import torch  # noqa: PLC0415 - the daemon imports this file's neighbours without torch

    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue  # extra state of a module is code's business, not a weight
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        whole = tensor.detach().cpu().to(cast).contiguous()
        # numpy knows neither bfloat16 nor the float8 types: hash every tensor as plain bytes.
        raw = whole.reshape(-1).view(torch.uint8).numpy()  # (bytes,)
        yield name, str(cast).removeprefix("torch."), tuple(tensor.shape), raw.data
