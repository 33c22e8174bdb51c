"""Configured models as jobs name them, and what each is made from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from sidecar.config import ModelConfig
from sidecar.errors import ModelLoadFailed, UnknownModel
from sidecar.jobs.files import FileDigests
from sidecar.jobs.spec import ModelSpec

ModelLookup = Callable[[str], ModelConfig | None]
"""Returns the configured model of a name, such as ``SidecarConfig.model``."""

_NO_SOURCE = ("name", "source", "weights", "onnx", "sibling")
"""Values of a specification that say where something lies or how it is called, not what it is."""


class ModelSources:
    """Finds models by name, and says what each is made from. Safe to use from several threads."""

    def __init__(self, models: ModelLookup) -> None:
        """Look models up with ``models``; no file is read yet."""
        self._models = models
        self._digests = FileDigests()

    def find(self, name: str) -> ModelSpec:
        """Return a model as a child must know it.

        Raises:
            UnknownModel: It is not configured.
            ModelLoadFailed: It is, but without factory or ONNX file, so there is nothing to look into.
        """
        model = self._models(name)
        if model is None:
            raise UnknownModel(f"model {name!r} is not in the configuration: add it under models")
        if not model.is_loadable:
            raise ModelLoadFailed(
                f"model {name!r} has neither factory nor onnx: name one to have pictures made"
            )
        return _spec(model)

    def read(self, name: str) -> ModelSpec:
        """Return a model with its ``source``.

        Raises:
            UnknownModel: As ``find``.
            ModelLoadFailed: As ``find``; or a file of it cannot be read.

        Complexity:
            Reads its files once a process, at the speed of the disk.
        """
        found = self.find(name)
        return replace(found, source=model_source(found, self._digests))


def model_source(spec: ModelSpec, digests: FileDigests) -> str:
    """Return the sha256 of what a model is made from: factory, files, and form of its input.

    Needs no torch, so the daemon can compute it; it is no revision. Of a factory that loads its own
    weights only the name is known: such a model should have its ``digest`` configured, which counts
    as well. Of an ONNX file those beside it count whose names begin with its own, as its weights' do.

    Raises:
        ModelLoadFailed: A file cannot be read.
    """
    said = {name: value for name, value in asdict(spec).items() if name not in _NO_SOURCE}
    try:
        said["files"] = [digests.of(path) for path in _files(spec)]
    except OSError as error:
        raise ModelLoadFailed(f"model {spec.name}: {error}") from error
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _files(spec: ModelSpec) -> list[Path]:
    if not spec.onnx:
        return [Path(spec.weights)] if spec.weights else []
    onnx = Path(spec.onnx)
    beside = (path for path in onnx.parent.iterdir() if path.name.startswith(onnx.name))
    return sorted(path for path in beside if path.is_file())


def _spec(model: ModelConfig) -> ModelSpec:
    red, green, blue = model.input.mean
    reds, greens, blues = model.input.std
    return ModelSpec(
        name=model.name,
        factory=model.factory or "",
        weights=str(model.weights.resolve()) if model.weights else "",
        input_size=max(model.input.height or 0, model.input.width or 0) or model.input.size,
        mean=(red, green, blue),
        std=(reds, greens, blues),
        onnx=str(model.onnx.resolve()) if model.onnx else "",
        gradients=model.gradients,
        digest=model.digest,
        height=model.input.height or 0,
        width=model.input.width or 0,
        top=float(model.input.range[1]),
        channels=model.input.channels,
        layout=model.input.layout,
        sibling=model.sibling or "",
    )
