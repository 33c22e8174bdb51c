"""What is tapped, and how much of it."""

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.errors import InvalidInput, UnsupportedDtype
from sidecar.features import FeatureKind, View, check_name, default_view

ROOT_LAYER = "output"
"""Canonical name of the model's own output, whose module path is empty."""

_VIEWS = {
    FeatureKind.CHANNEL: (View.MAX, View.MEAN),
    FeatureKind.NEURON: (View.RAW,),
    FeatureKind.LATENT: (View.RAW,),
    FeatureKind.HEAD: (View.MEAN, View.ENTROPY),
    FeatureKind.LOGIT: (View.RAW,),
}


@dataclass(frozen=True, slots=True)
class Tap:
    """One or more modules whose outputs are sampled.

    Outputs that are tuples or mappings are searched for the first tensor of a fitting shape.

    Attributes:
        path: Module path, or a glob over module paths: ``*``, ``?`` and ``[0-9]`` stand for
            characters between two dots, so that ``blocks.*`` are the blocks and not their insides;
            ``**`` for any number of parts, none included. Empty: the model's own output, which no
            glob matches.
        kind: What the units are. ``channel``: outputs ``(N, C, *space)`` or ``(N, T, C)``, see
            ``channel_dim``, one row an item. ``neuron``: ``(N, F)`` one row an item, ``(N, T, F)`` up to ``max_rows`` rows
            of positions an item. ``latent``: as ``neuron``, of outputs or by an ``encoder``, and sent as lists of
            what is not zero. ``head``: ``(N, T, heads * d)``, or attention ``(N, H, T, T)``
            with the view ``entropy``. ``logit``: ``(N, classes)``.
        view: How positions become one number; None: the kind's default. Channels take ``max`` or
            ``mean``; heads ``mean`` (of the L2 norm of the head's slice) or ``entropy`` (in nats).
        layer: Canonical name; empty: the module path.
        heads: Number of heads; needed for ``head`` with the view ``mean``.
        channel_dim: Where the channels of a ``channel`` tap are: 1, or -1 for the last dimension.
            None: 1 after torch's convolutions, batch, instance and group norms, and in outputs of
            four or five dimensions; the last in other outputs of three, ``(N, T, C)``.
        encoder: For ``latent``: turns sampled rows, ``(N, F)`` or ``(N, rows, F)`` on the model's device, into
            ``(N, latents)`` or ``(N, rows, latents)``, as the encoder of a sparse autoencoder does. It runs
            inside the forward pass and in its threads, without gradients, and its time counts as the
            hooks'. None: the module's outputs are latents already.

    Example:
        >>> Tap("layer*").matches("layer1"), Tap("layer*").matches("layer1.0")
        (True, False)
        >>> Tap("layer*.**.conv2").matches("layer1.0.conv2")
        True
    """

    path: str
    kind: FeatureKind = FeatureKind.CHANNEL
    view: View | None = None
    layer: str = ""
    heads: int = 0
    channel_dim: int | None = None
    encoder: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse taps that could never deliver."""
        views = _VIEWS.get(self.kind, ())
        if self.resolved_view not in views:
            wanted = [f"{kind}: {'|'.join(_VIEWS[kind])}" for kind in _VIEWS]
            raise InvalidInput(
                f"tap {self.path!r}: {self.kind} with view {self.resolved_view} cannot be tapped: "
                f"use {', '.join(wanted)}"
            )
        if self.kind is FeatureKind.HEAD and self.resolved_view is View.MEAN and self.heads < 1:
            raise InvalidInput(f"tap {self.path!r}: a head tap needs heads, such as heads=12")
        if self.channel_dim is not None and self.kind is not FeatureKind.CHANNEL:
            raise InvalidInput(
                f"tap {self.path!r}: channel_dim is for channel taps, not {self.kind}"
            )
        if self.channel_dim not in (None, 1, -1):
            raise InvalidInput(f"tap {self.path!r}: channel_dim {self.channel_dim}: use 1 or -1")
        if self.encoder is not None and self.kind is not FeatureKind.LATENT:
            raise InvalidInput(f"tap {self.path!r}: encoder is for latent taps, not {self.kind}")
        if self.layer:
            check_name("layer", self.layer)

    @property
    def resolved_view(self) -> View:
        """The view asked for, or the kind's default."""
        return self.view or default_view(self.kind)

    def matches(self, path: str) -> bool:
        """Say whether a module path is this tap's, by its letters or as a glob."""
        if path == self.path:
            return True
        return bool(path) and _matches(self.path.split("."), path.split("."))


def _matches(glob: Sequence[str], path: Sequence[str]) -> bool:
    """Compare part by part; ``**`` tries every number of parts."""
    if not glob:
        return not path
    if glob[0] == "**":
        return any(_matches(glob[1:], path[start:]) for start in range(len(path) + 1))
    first = bool(path) and fnmatch.fnmatchcase(path[0], glob[0])
    return first and _matches(glob[1:], path[1:])


@dataclass(frozen=True, slots=True)
class Plan:
    """What one model's hooks measure.

    Attributes:
        model: Registry name of the model, as in the daemon's configuration.
        taps: What is tapped.
        revision: sha256 of the weights; empty: ``attach`` computes it from the state dict.
        sampling_rate: Largest share of the traffic's requests to sample, 0 to 1; the daemon and the
            overhead budget may lower it. A request is an item of the model's batch, or what
            ``current_requests`` says.
        dtype: dtype of values on the wire: ``f32``, ``f16`` or ``bf16``.
        server: Name and version of the inference server, for the capture.
        max_rows: Most positions sampled of one item of a ``(N, T, F)`` output.
        overhead_budget: Largest share of forward time that sampling may take, above 0 to 1; beyond
            it the hooks lower their own rate, down to one request in a thousand. None: no limit.
        error_limit: Exceptions after which a hook disables itself for good.
        seed: Start of the sampler's sequence; None: drawn from the operating system, so that
            replicas do not sample in step.
    """

    model: str
    taps: tuple[Tap, ...]
    revision: str = ""
    sampling_rate: float = 1.0
    dtype: str = "f32"
    server: str = ""
    max_rows: int = 64
    overhead_budget: float | None = 0.005
    error_limit: int = 10
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values no hook could work with, naming the first."""
        check_name("model", self.model)
        if self.revision:
            check_name("revision", self.revision)
        if not self.taps:
            raise InvalidInput("plan.taps is empty: name at least one Tap")
        if not (math.isfinite(self.sampling_rate) and 0.0 <= self.sampling_rate <= 1.0):
            raise InvalidInput(f"plan.sampling_rate {self.sampling_rate} is outside 0 to 1")
        if self.dtype not in ("f32", "f16", "bf16"):
            raise UnsupportedDtype(f"plan.dtype {self.dtype!r}: use f32, f16 or bf16")
        budget = self.overhead_budget
        if budget is not None and not 0.0 < budget <= 1.0:  # true for NaN too
            raise InvalidInput(
                f"plan.overhead_budget {budget}: use a share above 0 and at most 1, or None for no "
                "limit; to sample nothing, set sampling_rate=0"
            )
        if self.max_rows < 1 or self.error_limit < 1:
            raise InvalidInput("plan.max_rows and plan.error_limit must be at least 1")
