"""From a layer's name to numbers: finds sites, cuts the forward pass off, reads units.

Everything above the target layer is wasted work, so the forward pass is ended there by an exception
that nobody else can mistake for one of theirs.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from sidecar.errors import UnknownFeature, UnsupportedTarget
from sidecar.features import FeatureKind, LayerKey, View
from sidecar.recipes import Side, Target
from sidecar.visualise.model import ImageModel, Reached, VisionModel, as_maps, never_ran
from sidecar.visualise.sheets import weights_of

_OVER_POSITIONS = frozenset({View.MAX, View.MEAN})
"""Views that turn a map of several positions into one number."""

_OF_ONE_NUMBER = frozenset(View) - {View.ENTROPY}
"""Views of a unit with one position; over a single number max and mean are the number itself."""


_UNIT_NAMES = {FeatureKind.DIRECTION: "directions", FeatureKind.NORM: "norm"}


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
        pull: How much each unit of the layer counts in what is maximised, shape ``(n, width)``;
            negative to push away. Of a norm only the width counts.
        vectors: The layer's named directions, shape ``(directions, width)``; of other kinds empty.
        cosine: Whether the angle to ``pull`` is what counts, and not the dot product.
    """

    layer: LayerKey
    indices: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    pull: torch.Tensor
    vectors: torch.Tensor
    cosine: bool = False

    @classmethod
    def of(
        cls,
        targets: Sequence[Target],
        site: Site,
        device: torch.device,
        vectors: torch.Tensor | None = None,
        *,
        weights: Sequence[Sequence[float]] | None = None,
        cosine: bool = False,
    ) -> "Units":
        """Place targets of one layer in it; a neuron without a position sits at the centre.

        Args:
            targets: Of one layer; checked by ``check_target``.
            site: Its shape.
            device: Where the model lives.
            vectors: The layer's directions, for targets that are of one.
            weights: How much each target's unit and terms count; None: as the target says.
            cosine: Compare directions by angle.
        """
        centre = (site.rows // 2, site.columns // 2)
        places = [target.position or centre for target in targets]
        basis = torch.eye(site.width) if vectors is None else vectors
        counted = weights or [weights_of(target) for target in targets]
        pull = torch.stack(
            [_pull(target, own, basis) for target, own in zip(targets, counted, strict=True)]
        )
        return cls(
            layer=targets[0].feature.layer,
            indices=torch.tensor([target.feature.index for target in targets], device=device),
            rows=torch.tensor([row for row, _ in places], device=device),
            columns=torch.tensor([column for _, column in places], device=device),
            pull=pull.to(device),
            vectors=torch.empty(0, site.width) if vectors is None else vectors.to(device),
            cosine=cosine,
        )

    def repeated(self, times: int) -> "Units":
        """The same targets over and over, for that many crops of each in one batch."""
        return replace(
            self,
            indices=self.indices.repeat(times),
            rows=self.rows.repeat(times),
            columns=self.columns.repeat(times),
            pull=self.pull.repeat(times, 1),
        )

    def only(self, which: Sequence[int]) -> "Units":
        """Some of the targets, by their place."""
        chosen = torch.tensor(which, device=self.indices.device)
        return replace(
            self,
            indices=self.indices[chosen],
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            pull=self.pull[chosen],
        )

    def objective(self, maps: torch.Tensor) -> torch.Tensor:
        """What is maximised, whatever the live view is.

        Of channels and directions the mean over positions, which makes every part of the picture
        show them; of a neuron or logit its value; of a norm the mean square of the layer, as in
        DeepDream. Several units are added up with their weights; a negative side counts -1.

        Args:
            maps: Shape ``(n, width, rows, columns)``.

        Returns:
            Shape ``(n,)``.
        """
        if self.layer.kind is FeatureKind.NORM:
            return maps.square().mean((1, 2, 3))  # (n,)
        if self.layer.kind is FeatureKind.NEURON:
            everyone = torch.arange(len(maps), device=maps.device)
            return (maps[everyone, :, self.rows, self.columns] * self.pull).sum(1)  # (n,)
        if self.cosine:
            wanted = self.pull[:, :, None, None]  # (n, width, 1, 1)
            return functional.cosine_similarity(maps, wanted, dim=1).mean((1, 2))  # (n,)
        return (maps.mean((2, 3)) * self.pull).sum(1)  # (n,)

    def all_values(self, maps: torch.Tensor) -> torch.Tensor:
        """Every unit of the layer as the live statistics see it, shape ``(n, units)``.

        A norm is the length of the whole layer's output, a direction the dot product with it.
        """
        if self.layer.kind is FeatureKind.NORM:
            length: torch.Tensor = torch.linalg.vector_norm(maps, dim=(1, 2, 3))
            return length[:, None]  # (n, 1)
        if self.layer.kind is FeatureKind.DIRECTION:
            maps = torch.einsum(
                "nwrc,dw->ndrc", maps, self.vectors
            )  # (n, directions, rows, columns)
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


def _pull(target: Target, weights: Sequence[float], basis: torch.Tensor) -> torch.Tensor:
    """Weigh the units of a target; ``basis`` has what each stands for, shape ``(units, width)``."""
    total = torch.zeros(basis.shape[1])
    if target.feature.layer.kind is FeatureKind.NORM:
        return total
    features = (target.feature, *(term.feature for term in target.terms))
    for feature, weight in zip(features, weights, strict=True):
        total += weight * basis[feature.index]
    return -total if target.side is Side.NEGATIVE else total


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


def check_target(target: Target, site: Site, directions: int | None = None) -> None:
    """Refuse a target that its layer does not have.

    Args:
        target: What a picture is wanted of.
        site: Its layer's shape.
        directions: How many named directions the layer has; None: no dictionary was handed over.

    Raises:
        UnknownFeature: The index, or a term's, is not below the number of units.
        UnsupportedTarget: The position is outside the layer's grid; a logit has several positions;
            the view is not one a single picture has; there are no directions.
    """
    key = target.feature
    layer = key.layer
    units = _unit_count(layer, site, directions)
    for feature in (key, *(term.feature for term in target.terms)):
        if feature.index >= units:
            raise UnknownFeature(
                f"{feature}: layer {layer.layer} has {units} {_UNIT_NAMES.get(layer.kind, 'units')}: "
                f"use 0 to {units - 1}"
            )
    views = _views(layer.kind, site)
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


def _unit_count(layer: LayerKey, site: Site, directions: int | None) -> int:
    if layer.kind is FeatureKind.NORM:
        return 1
    if layer.kind is not FeatureKind.DIRECTION:
        return site.width
    if directions is None:
        raise UnsupportedTarget(
            f"layer {layer.layer} has no directions that this method takes: name a file of vectors for it "
            "under dictionaries, and method activation_maximisation, feature_accentuation or deep_dream"
        )
    return directions


def _views(kind: FeatureKind, site: Site) -> frozenset[View]:
    if kind is FeatureKind.NORM:
        return frozenset({View.RAW})
    pooled = kind in {FeatureKind.CHANNEL, FeatureKind.DIRECTION}
    return _OVER_POSITIONS if pooled and site.rows * site.columns > 1 else _OF_ONE_NUMBER


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
