import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.visualise.adam import Adam

pytestmark = pytest.mark.unit


@settings(deadline=None)  # the first call of a torch kernel takes its time
@given(rate=st.floats(1e-4, 1.0), seed=st.integers(0, 1000))
def test_it_walks_where_torchs_own_adam_walks(rate: float, seed: int) -> None:
    """Fifteen steps over gradients of many sizes, zeros among them."""
    stream = torch.Generator().manual_seed(seed)
    start = torch.randn(20, generator=stream)
    size = 10.0 ** torch.linspace(-6, 6, 20)
    size[3] = 0.0
    mine, theirs = start.clone(), start.clone().requires_grad_()
    ours, twin = Adam(mine, rate), torch.optim.Adam([theirs], lr=rate)

    for _ in range(15):
        gradient = torch.randn(20, generator=stream) * size
        ours.step(gradient)
        theirs.grad = gradient.clone()
        twin.step()

    assert torch.allclose(theirs.detach(), mine, rtol=1e-4, atol=1e-5 * rate)
    assert mine[3] == start[3]
