"""What the runner and its child say to each other: one JSON line in, JSON lines out.

The child reads one ``JobSpec`` from stdin and then nothing more: the end of stdin means that the
daemon died. It writes events to a pipe of its own, because model factories print to stdout. The
messages are private to one release; both ends are always of the same one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import CorruptState, SidecarError
from sidecar.jobs.protocol import Cause, JobRequest, Priority
from sidecar.recipes import Dataset, Recipe, Target, recipe_of


@dataclass(frozen=True, slots=True, eq=False)
class LiveContext:
    """What live traffic looks like for one target, so that its picture can be put beside it.

    Attributes:
        levels: Quantile levels in increasing order, shape ``(levels,)``.
        values: The feature's values at those levels, shape ``(levels,)``; NaN where there are none.
        count: Finite values the table was made from.
        minimum: The least of them; NaN when there are none.
        maximum: The greatest.
        window: Which stretch of time, such as ``baseline``.
        started: Unix seconds of the first value; 0: none.
        ended: Unix seconds of the last.
        typical_low: Lower ends of the usual range of every unit of the layer, shape ``(width,)``;
            None where there is no baseline. Only recipes with ``typical_range`` need them.
        typical_high: The upper ends, same shape.
    """

    levels: NDArray[np.float64]
    values: NDArray[np.float64]
    count: int
    minimum: float
    maximum: float
    window: str
    started: float = 0.0
    ended: float = 0.0
    typical_low: NDArray[np.float32] | None = None
    typical_high: NDArray[np.float32] | None = None

    @property
    def typical_digest(self) -> str:
        """sha256 of the typical ranges for ``recipes.content_key``; empty without them.

        Equal to ``visualise.TypicalRange.digest`` of the same ranges, which the daemon, having no
        torch, cannot ask.
        """
        if self.typical_low is None or self.typical_high is None:
            return ""
        ends = (self.typical_low, self.typical_high)
        return hashlib.sha256(b"".join(np.asarray(e, "<f4").tobytes() for e in ends)).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The model of a job, as configured.

    Attributes:
        name: Registry name.
        factory: ``package.module:function``; empty where ``onnx`` is the model.
        weights: Path of the weights file; empty where the factory loads its own.
        input_size: Side in pixels of the square pictures it is given; the longer one of its input.
        mean: Colour means, in units of ``top``.
        std: Colour standard deviations.
        onnx: Path of the ONNX file; empty where there is a factory.
        gradients: Whether an ONNX file is converted to torch.
        digest: sha256 that the configuration promises; empty: none.
        height: Rows of its input in pixels; 0: ``input_size``.
        width: Columns; 0: ``input_size``.
        top: What white is: 1 or 255.
        channels: ``rgb`` or ``bgr``.
        layout: ``nchw`` or ``nhwc``.
        source: sha256 of what it is made from, see ``sources.model_source``; empty: nobody asked.
        sibling: Name of another model with the same classes; empty: there is none.
    """

    name: str
    factory: str
    weights: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    onnx: str = ""
    gradients: bool = True
    digest: str = ""
    height: int = 0
    width: int = 0
    top: float = 1.0
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    source: str = ""
    sibling: str = ""


@dataclass(frozen=True, slots=True)
class DictionarySpec:
    """The directions of one layer of the job's model, as configured.

    Attributes:
        name: What the configuration calls them.
        layer: Module path of the layer.
        file: Path of the file of vectors.
        digest: sha256 that the file had when the job was claimed.
    """

    name: str
    layer: str
    file: str
    digest: str


@dataclass(frozen=True, slots=True)
class ReliabilitySpec:
    """How much the child does to find out how far its pictures can be believed.

    Attributes:
        seeds: Further pictures of each target.
        share: Of the optimiser steps, that those may take.
        dataset: Name of the photographs among ``JobSpec.datasets``; empty: there are none.
        sibling: Another model with the same classes.
    """

    seeds: int = 3
    share: float = 0.5
    dataset: str = ""
    sibling: ModelSpec | None = None


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """How a worker shares its GPU; see ``config.GpuConfig``.

    Attributes:
        reserve_bytes: Memory that stays free beside the job; None: nobody asks.
        memory_fraction: Most of the memory that torch takes.
    """

    reserve_bytes: int | None = None
    memory_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything the child needs to know.

    Attributes:
        job_id: Which job.
        attempt: The how-manyth start, from 1.
        origin: What asked for it.
        parent_pid: The daemon; a child with another parent has been orphaned and ends.
        targets: Pictures to make.
        recipe: How.
        model: Of what.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        live: Live distributions by text form of the feature; targets may be missing.
        images: Paths of the artifacts that the recipe looks at, by their digests.
        datasets: What it looks through, by name.
        models: Other models that it looks at, by name.
        dictionaries: Directions that targets are of, by the path of their layer.
        cause: What led to the job.
        checkpoint: Folder for what was reached so far; empty: none is kept.
        checkpoint_bytes: Largest state that is kept there.
        reliability: How much is done to find out how far the pictures can be believed.
        gpu: How its GPU is shared.
    """

    job_id: str
    attempt: int
    origin: str
    parent_pid: int
    targets: tuple[Target, ...]
    recipe: Recipe
    model: ModelSpec
    device: str = "auto"
    live: Mapping[str, LiveContext] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    dictionaries: Mapping[str, DictionarySpec] = field(default_factory=dict)
    cause: Cause = field(default_factory=Cause)
    checkpoint: str = ""
    checkpoint_bytes: int = 0
    reliability: ReliabilitySpec = field(default_factory=ReliabilitySpec)
    gpu: GpuSpec = field(default_factory=GpuSpec)


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """The child is at work."""

    step: int
    steps: int
    message: str


@dataclass(frozen=True, slots=True)
class PreviewEvent:
    """A new intermediate picture lies in the job's folder under this name."""

    file: str


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """A finished picture and its manifest lie in the job's folder; ``index`` counts targets."""

    index: int
    picture: str
    manifest: str


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """All results were announced."""


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """The job cannot be done; ``retry`` where another attempt might fare better."""

    code: str
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class HeldBackEvent:
    """The job has no room now, and ends to be started again later.

    Attributes:
        reason: What it waits for.
        needs_bytes: Memory of the GPU that it takes in all.
    """

    reason: str
    needs_bytes: int


Event = ProgressEvent | PreviewEvent | ResultEvent | DoneEvent | FailureEvent | HeldBackEvent

_EVENTS: Mapping[str, type[Event]] = {
    "progress": ProgressEvent,
    "preview": PreviewEvent,
    "result": ResultEvent,
    "done": DoneEvent,
    "failure": FailureEvent,
    "held_back": HeldBackEvent,
}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}


def encode_event(event: Event) -> bytes:
    """Return an event as one line."""
    return json.dumps({"event": _EVENT_NAMES[type(event)], **asdict(event)}).encode() + b"\n"


def decode_event(line: bytes) -> Event:
    """Read an event back.

    Raises:
        CorruptState: The line is no event; the child is broken.
    """
    try:
        document = json.loads(line)
        kind = _EVENTS[document.pop("event")]
        event = kind(**document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptState(f"the worker wrote {line[:120]!r}, which is no event") from error
    for name, wanted in kind.__annotations__.items():
        if type(getattr(event, name)) is not wanted:
            raise CorruptState(f"the worker wrote {line[:120]!r}: {name} is no {wanted.__name__}")
    return event


def encode_spec(spec: JobSpec) -> bytes:
    """Return a job's specification as one line."""
    document = {
        "job_id": spec.job_id,
        "attempt": spec.attempt,
        "origin": spec.origin,
        "parent_pid": spec.parent_pid,
        "targets": [target.document() for target in spec.targets],
        "recipe": spec.recipe.values(),
        "model": asdict(spec.model),
        "device": spec.device,
        "live": {feature: _live_document(live) for feature, live in spec.live.items()},
        "images": dict(spec.images),
        "datasets": [one.document() for one in spec.datasets.values()],
        "models": [asdict(one) for one in spec.models.values()],
        "dictionaries": [asdict(one) for one in spec.dictionaries.values()],
        "cause": asdict(spec.cause),
        "checkpoint": spec.checkpoint,
        "checkpoint_bytes": spec.checkpoint_bytes,
        "reliability": asdict(spec.reliability),
        "gpu": asdict(spec.gpu),
    }
    return json.dumps(document).encode() + b"\n"


def decode_spec(line: bytes) -> JobSpec:
    """Read a job's specification back.

    Raises:
        CorruptState: The line is none.
    """
    try:
        document = json.loads(line)
        reliability = document.pop("reliability")
        sibling = reliability.pop("sibling")
        others = [_model(one) for one in document.pop("models")]
        directions = [DictionarySpec(**one) for one in document.pop("dictionaries")]
        return JobSpec(
            targets=tuple(Target.of(target) for target in document.pop("targets")),
            recipe=recipe_of(document.pop("recipe")),
            model=_model(document.pop("model")),
            reliability=ReliabilitySpec(
                sibling=None if sibling is None else _model(sibling), **reliability
            ),
            models={one.name: one for one in others},
            dictionaries={one.layer: one for one in directions},
            live={feature: _live(live) for feature, live in document.pop("live").items()},
            datasets={one["name"]: Dataset.of(one) for one in document.pop("datasets")},
            cause=Cause(**document.pop("cause")),
            gpu=GpuSpec(**document.pop("gpu")),
            **document,
        )
    except (ValueError, KeyError, TypeError, AttributeError, SidecarError) as error:
        raise CorruptState(f"the line on stdin is no job: {error}") from error


def _model(document: dict[str, Any]) -> ModelSpec:
    return ModelSpec(**document | {"mean": tuple(document["mean"]), "std": tuple(document["std"])})


def encode_request(request: JobRequest) -> str:
    """Return a request as JSON, for the job table."""
    return json.dumps(
        {
            "targets": [target.document() for target in request.targets],
            "recipe": request.recipe.values(),
            "origin": request.origin,
            "idempotency_key": request.idempotency_key,
            "time_limit_seconds": request.time_limit_seconds,
            "cause": asdict(request.cause),
            "deadline": request.deadline,
            "asked_priority": request.asked_priority,
        }
    )


def decode_request(text: str) -> JobRequest:
    """Read a request back.

    Raises:
        CorruptState: The text is none.
    """
    try:
        document = json.loads(text)
        asked = document.pop("asked_priority", None)  # requests of earlier releases name none
        return JobRequest(
            targets=tuple(Target.of(target) for target in document.pop("targets")),
            recipe=recipe_of(document.pop("recipe")),
            cause=Cause(**document.pop("cause", {})),  # requests of earlier releases have none
            asked_priority=Priority(asked) if asked else None,
            **document,
        )
    except (ValueError, KeyError, TypeError, AttributeError, SidecarError) as error:
        raise CorruptState(f"the stored request cannot be read: {error}") from error


def _live_document(live: LiveContext) -> dict[str, Any]:
    names = LiveContext.__slots__
    values = ((name, getattr(live, name)) for name in names)
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values}


def _live(document: dict[str, Any]) -> LiveContext:
    arrays = {
        name: None if document[name] is None else np.array(document[name], dtype)
        for name, dtype in (
            ("levels", np.float64),
            ("values", np.float64),
            ("typical_low", np.float32),
            ("typical_high", np.float32),
        )
    }
    return LiveContext(**{**document, **arrays})
