"""What an interrupted run had reached, as bytes, and going on from there.

The bytes hold the state of every batch begun, bound to the request and the model they belong to: those
of another are passed over, never mixed in. Pictures of a run that was interrupted are bit for bit those
of one that was not, on one machine and number of threads.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import JobCancelled
from sidecar.visualise.method import Checkpoint

SAVE_SECONDS = 10.0
"""Between checkpoints: the most that an interruption costs, for some milliseconds of writing."""

State = Mapping[str, NDArray[np.generic]]
"""Arrays by name, without objects in them."""

_KEPT_BYTES = 256 << 20
"""Most memory for the states of finished batches; those beyond it would be made anew."""


class Resumption:
    """The states of a run's batches: those found, and those on their way to the checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        content_keys: Sequence[str],
        model_digest: str,
        device: str,
        clock: Callable[[], float],
    ) -> None:
        """Look for what an earlier attempt left.

        Args:
            checkpoint: Where it is kept; None keeps nothing.
            content_keys: What is being made, in order.
            model_digest: Of the weights.
            device: Kind of device; the bits differ from one to another.
            clock: Seconds from any start.
        """
        words = "\n".join([*content_keys, model_digest, device, torch.__version__])
        self._identity = hashlib.sha256(words.encode()).hexdigest()
        self._checkpoint, self._clock = checkpoint, clock
        self._states = self._load()
        self._saved_at = clock()

    def state(self, batch: int) -> State | None:
        """Return what was reached of a batch, counted from 0; None where it was not begun."""
        return self._states.get(batch)

    def note(self, batch: int, state: Callable[[], State], *, now: bool = False) -> None:
        """Save where it is time to, or ``now``: what is reached of this batch and those before."""
        if self._checkpoint is None:
            return
        if now or self._clock() - self._saved_at >= SAVE_SECONDS:
            self._states[batch] = state()
            self._checkpoint.save(self._pack())
            self._saved_at = self._clock()

    def finished(self, batch: int, state: State) -> None:
        """Keep what a batch has come to for the checkpoints of those after it."""
        others = sum(array.nbytes for kept in self._states.values() for array in kept.values())
        self._states.pop(batch, None)
        if (
            self._checkpoint is not None
            and others + sum(array.nbytes for array in state.values()) <= _KEPT_BYTES
        ):
            self._states[batch] = state

    @contextmanager
    def saving(self, batch: int, state: Callable[[], State]) -> Iterator[None]:
        """Save what is reached of a batch where it is cancelled within the block."""
        try:
            yield
        except JobCancelled:
            self.note(batch, state, now=True)
            raise

    def _pack(self) -> bytes:
        arrays: dict[str, Any] = {
            f"{batch}/{name}": array
            for batch, state in self._states.items()
            for name, array in state.items()
        }
        file = io.BytesIO()
        np.savez(file, identity=np.array(self._identity), **arrays)
        return file.getvalue()

    def _load(self) -> dict[int, State]:
        content = self._checkpoint.load() if self._checkpoint is not None else None
        if content is None:
            return {}
        found: dict[int, dict[str, NDArray[np.generic]]] = {}
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                if str(arrays["identity"]) != self._identity:
                    return {}
                for path in arrays.files:
                    batch, slash, name = path.partition("/")
                    if slash:
                        found.setdefault(int(batch), {})[name] = arrays[path]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}  # of another release, or damaged: the run begins anew
        return dict(found)
