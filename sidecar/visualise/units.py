"""From a layer's name to numbers: finds sites, cuts the forward pass off, reads units.

Everything above the target layer is wasted work, so the forward pass is ended there by an exception
that nobody else can mistake for one of theirs.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sidecar.errors import UnknownFeature, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey, View
from sidecar.recipes import Target
from sidecar.visualise.model import ImageModel, Reached, VisionModel, as_maps, never_ran

_OVER_POSITIONS = frozenset({View.MAX, View.MEAN})
"""Views that turn a map of several positions into one number."""

_OF_ONE_NUMBER = frozenset(View) - {View.ENTROPY}
"""Views of a unit with one position; over a single number max and mean are the number itself."""


@dataclass(frozen=True, slots=True)
class Site:
    """The output of one layer for one image.

    Attributes:
        width: Units.
        rows: Positions down; 1 where the output is a vector.
        columns: Positions across.
    """

    width: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Dry:
    """What one forward pass of a grey image tells.

    Attributes:
        sites: The site of each layer path.
        saved_bytes: What autograd keeps for the backward pass of one image.
    """

    sites: dict[str, Site]
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class Units:
    """Targets of one layer, ready to be read from its output.

    Attributes:
        layer: The layer they share, with kind and view.
        indices: Unit of each target, shape ``(n,)``, int64.
        rows: Position of each target, shape ``(n,)``; only neurons use it.
        columns: The same across.
    """

    layer: LayerKey
    indices: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, targets: Sequence[Target], site: Site, device: torch.device) -> "Units":
        """Place targets of one layer in it; a neuron without a position sits at the centre."""
        centre = (site.rows // 2, site.columns // 2)
        places = [target.position or centre for target in targets]
        return cls(
            layer=targets[0].feature.layer,
            indices=torch.tensor([target.feature.index for target in targets], device=device),
            rows=torch.tensor([row for row, _ in places], device=device),
            columns=torch.tensor([column for _, column in places], device=device),
        )

    def repeated(self, times: int) -> "Units":
        """The same targets over and over, for that many crops of each in one batch."""
        return Units(
            self.layer,
            self.indices.repeat(times),
            self.rows.repeat(times),
            self.columns.repeat(times),
        )

    def objective(self, maps: torch.Tensor) -> torch.Tensor:
        """What is maximised: a channel's mean over positions, a neuron's or logit's value.

        The mean makes every part of the picture show the unit, whatever the live view is.

        Args:
            maps: Shape ``(n, width, rows, columns)``.

        Returns:
            Shape ``(n,)``.
        """
        everyone = torch.arange(len(maps), device=maps.device)
        if self.layer.kind is FeatureKind.NEURON:
            return maps[everyone, self.indices, self.rows, self.columns]  # (n,)
        return maps[everyone, self.indices].mean((1, 2))  # (n,)

    def all_values(self, maps: torch.Tensor) -> torch.Tensor:
        """Every unit of the layer as the live statistics see it, shape ``(n, width)``."""
        if self.layer.kind is FeatureKind.NEURON:
            everyone = torch.arange(len(maps), device=maps.device)
            values = maps[everyone, :, self.rows, self.columns]  # (n, width)
        elif self.layer.view is View.MAX:
            values = maps.amax((2, 3))  # (n, width)
        else:
            values = maps.mean((2, 3))  # (n, width)
        if self.layer.view is View.ABS:
            return values.abs()
        return values.relu() if self.layer.view is View.RELU else values

    def values(self, maps: torch.Tensor) -> torch.Tensor:
        """Each target's own unit as the live statistics see it, shape ``(n,)``."""
        return self.all_values(maps).gather(1, self.indices[:, None])[:, 0]


def forward_to(model: VisionModel, path: str, images: torch.Tensor) -> torch.Tensor:
    """Return a layer's output and run nothing above the layer, see ``VisionModel.maps``."""
    return model.maps(path, images)


def dry_run(model: VisionModel, paths: Sequence[str]) -> Dry:
    """Find the sites of layers in one forward pass of one grey image, cut off above the last.

    A model that only runs forward takes a pass for each layer.

    Raises:
        UnknownLayer: As ``forward_to``.
        UnsupportedTarget: As ``forward_to``; or the forward pass itself fails.
    """
    if not isinstance(model, ImageModel):
        return _dry_forward(model, paths)
    sites: dict[str, Site] = {}
    saved: dict[int, int] = {}
    own = {tensor.data_ptr() for tensor in model.module.state_dict(keep_vars=True).values()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
    with _watching(model, paths, sites), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        try:
            model.module(model.normalise(grey.requires_grad_()))
        except Reached:
            pass
        except UnsupportedTarget:
            raise
        except Exception as error:
            raise UnsupportedTarget(
                f"the model's forward pass fails on one image of {model.input_size} pixels with "
                f"{type(error).__name__}: {error}; check the model's input.size"
            ) from error
    for path in paths:
        if path not in sites:
            raise never_ran(path)
    return Dry(sites, sum(saved.values()))


def _dry_forward(model: VisionModel, paths: Sequence[str]) -> Dry:
    grey = torch.full((1, 3, model.input_size, model.input_size), 0.5, device=model.device)
    sites, output = {}, 0
    for path in paths:
        maps = model.maps(path, grey)
        sites[path] = Site(*maps.shape[1:])
        output += maps.nbytes
    return Dry(sites, output)


def check_targets(model: VisionModel, targets: Sequence[Target]) -> Dry:
    """Find the sites of the targets' layers, and refuse targets that their layers do not have.

    Raises:
        UnsupportedTarget: There are no targets, or as ``dry_run`` and ``check_target``.
        UnknownLayer: As ``dry_run``.
        UnknownFeature: As ``check_target``.
    """
    if not targets:
        raise UnsupportedTarget("no targets: name at least one unit to make a picture of")
    paths = list(dict.fromkeys(target.feature.layer.layer for target in targets))
    dry = dry_run(model, paths)
    for target in targets:
        check_target(target, dry.sites[target.feature.layer.layer])
    return dry


def check_target(target: Target, site: Site) -> None:
    """Refuse a target that its layer does not have.

    Raises:
        UnknownFeature: The index is not below the layer's width.
        UnsupportedTarget: The position is outside the layer's grid; a logit has several positions;
            the view is not one a single picture has.
    """
    key = target.feature
    layer = key.layer
    if key.index >= site.width:
        raise UnknownFeature(
            f"{key}: layer {layer.layer} has {site.width} units: use 0 to {site.width - 1}"
        )
    many = layer.kind is FeatureKind.CHANNEL and site.rows * site.columns > 1
    views = _OVER_POSITIONS if many else _OF_ONE_NUMBER
    if layer.view not in views:
        known = ", ".join(sorted(views))
        raise UnsupportedTarget(
            f"{key}: no picture has a {layer.kind} in view {layer.view}: use {known}"
        )
    if layer.kind is FeatureKind.LOGIT and site.rows * site.columns > 1:
        raise UnsupportedTarget(
            f"{key}: layer {layer.layer} has {site.rows} x {site.columns} positions, so it holds no "
            "logits: use kind channel or neuron"
        )
    row, column = target.position or (0, 0)
    if not (0 <= row < site.rows and 0 <= column < site.columns):
        raise UnsupportedTarget(
            f"{key}: position ({row}, {column}) is outside the layer's {site.rows} x {site.columns}"
        )


def find_layer(model: ImageModel, path: str) -> nn.Module:
    """Return the module of a layer, see ``ImageModel.find``."""
    return model.find(path)


@contextlib.contextmanager
def _watching(model: ImageModel, paths: Sequence[str], sites: dict[str, Site]) -> Iterator[None]:
    """Note the site of each path as it runs, and end the forward pass after the last of them."""
    with contextlib.ExitStack() as stack:
        for path in paths:

            def note(_m: nn.Module, _i: object, output: object, path: str = path) -> None:
                _, *shape = as_maps(path, output, 1).shape
                sites.setdefault(path, Site(*shape))
                if len(sites) == len(set(paths)):
                    raise Reached(None)

            stack.callback(find_layer(model, path).register_forward_hook(note).remove)
        yield


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
