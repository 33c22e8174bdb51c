"""Adam for one tensor.

torch's own optimisers import its compiler the first time one is built: 1.2 CPU seconds and 70 MB in
every job's process, for a rule of five lines.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

_FIRST_DECAY = 0.9
_SECOND_DECAY = 0.999
_EPSILON = 1e-8


class Adam:
    """Gradient descent with a step size of its own for every coefficient.

    Source:
        Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1, with the
        constants recommended there.
    """

    def __init__(self, values: torch.Tensor, learning_rate: float) -> None:
        """Start with no memory of gradients.

        Args:
            values: What is optimised; changed in place by ``step``.
            learning_rate: Largest change of a coefficient in one step, roughly.
        """
        self._values = values
        self._rate = learning_rate
        self._first = torch.zeros_like(values, requires_grad=False)
        self._second = torch.zeros_like(values, requires_grad=False)
        self._steps = 0

    def only(self, which: list[int], values: torch.Tensor) -> "Adam":
        """Go on with some rows of the values, which have been copied to ``values``."""
        rest = Adam(values, self._rate)
        rest._first, rest._second = self._first[which], self._second[which]
        rest._steps = self._steps
        return rest

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move the values downhill along a gradient of the same shape."""
        self._steps += 1
        self._first.lerp_(gradient, 1 - _FIRST_DECAY)
        self._second.mul_(_SECOND_DECAY).addcmul_(gradient, gradient, value=1 - _SECOND_DECAY)
        # Both memories start at zero: undo their bias towards it.
        size = self._rate / (1 - _FIRST_DECAY**self._steps)
        spread = (self._second / (1 - _SECOND_DECAY**self._steps)).sqrt_().add_(_EPSILON)
        self._values.addcdiv_(self._first, spread, value=-size)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what is remembered: ``first``, ``second`` of the values' shape, and ``steps``."""
        return {
            "first": self._first.cpu().numpy(),
            "second": self._second.cpu().numpy(),
            "steps": np.array([self._steps], np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Remember what ``state`` returned."""
        self._first.copy_(torch.from_numpy(state["first"]))
        self._second.copy_(torch.from_numpy(state["second"]))
        self._steps = int(state["steps"][0])
