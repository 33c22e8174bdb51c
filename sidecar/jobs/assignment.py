"""Works out what is left to do of a job: what the cache answers, and what the child must make."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sidecar
from sidecar.config import JobsConfig, ReliabilityConfig
from sidecar.errors import UnsupportedTarget
from sidecar.jobs.datasets import Datasets
from sidecar.jobs.dictionaries import Dictionaries
from sidecar.jobs.protocol import Job, JobRequest, Portrait
from sidecar.jobs.queue import JobQueue
from sidecar.jobs.sources import ModelSources
from sidecar.jobs.spec import (
    DictionarySpec,
    GpuSpec,
    JobSpec,
    LiveContext,
    ModelSpec,
    ReliabilitySpec,
)
from sidecar.recipes import Dataset, Target, content_key
from sidecar.store import ArtifactStore

ContextLookup = Callable[[JobRequest], Mapping[str, LiveContext]]
"""Returns the live distributions of a request's targets by text form; targets may be missing."""

_CONFINE = str(Path(__file__).with_name("confine.py"))
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_KEPT_BYTES = str(1 << 30)
"""Freed blocks up to this stay with a child: given back and asked for anew at every step, as glibc
does with those above 32 MiB, their pages cost a seventh of its CPU."""


_GPU_VARIABLES = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's: cuda:1 is its device 1
    "CUDA_MPS_CLIENT_PRIORITY": "1",  # below normal: under MPS the server's kernels go first
}
"""What a child is told about a GPU unless somebody has said otherwise."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job, split into what is there and what is missing.

    Attributes:
        keys: Content key of every target, in the order of the request.
        cached: Answers that are there, by content key.
        missing: Targets to be made, each once, by content key.
        live: Live distributions by text form of the feature.
        datasets: What the recipe looks through, by name.
        models: Other models that it looks at, by name, with their sources.
        dictionaries: Directions that targets are of, by the path of their layer.
    """

    keys: tuple[str, ...]
    cached: Mapping[str, Portrait]
    missing: Mapping[str, Target]
    live: Mapping[str, LiveContext]
    datasets: Mapping[str, Dataset]
    models: Mapping[str, ModelSpec]
    dictionaries: Mapping[str, DictionarySpec] = field(default_factory=dict)


def assign(
    request: JobRequest,
    queue: JobQueue,
    artifacts: ArtifactStore,
    live: Mapping[str, LiveContext],
    datasets: Datasets,
    models: ModelSources,
    dictionaries: Dictionaries,
) -> Assignment:
    """Look up every target of a request.

    Raises:
        UnsupportedTarget: The recipe needs typical ranges, and a target's layer has none; a dataset
            that is unknown or cannot be read; or directions of a layer that has none.
        DigestMismatch: A file of directions is another than the configuration promises.
        UnknownModel, ModelLoadFailed: Another model that the recipe looks at is not configured, or a
            file of it cannot be read.
    """
    found_sets = {name: datasets.read(name) for name in request.recipe.datasets}
    others = {name: models.read(name) for name in request.recipe.models}
    digests = {f"dataset:{name}": one.digest for name, one in found_sets.items()}
    digests |= {f"model:{name}": one.source for name, one in others.items()}
    directions = {
        target.feature.layer.layer: dictionaries.read(target.feature.layer)
        for target in request.targets
        if "directions" in target.inputs
    }
    keys = tuple(_key(target, request, live, digests, directions) for target in request.targets)
    # What is made again to be compared must not be answered with the original.
    found = {} if request.cause.reproduces else {key: queue.portrait(key) for key in keys}
    cached = {
        key: portrait
        for key, portrait in found.items()
        if portrait is not None
        and artifacts.has(portrait.picture_digest)
        and artifacts.has(portrait.manifest_digest)
    }
    wanted = dict(zip(keys, request.targets, strict=True))
    missing = {key: target for key, target in wanted.items() if key not in cached}
    return Assignment(keys, cached, missing, live, found_sets, others, directions)


def _key(
    target: Target,
    request: JobRequest,
    live: Mapping[str, LiveContext],
    digests: Mapping[str, str],
    directions: Mapping[str, DictionarySpec],
) -> str:
    context = live.get(str(target.feature))
    digest = context.typical_digest if context is not None else ""
    if "typical" in request.recipe.inputs and not digest:
        raise UnsupportedTarget(
            f"recipe.typical_range needs the baseline of {target.feature.layer}, and there is none "
            "yet: wait for it, or leave typical_range at 0"
        )
    given = {"typical": digest, **digests}
    if "directions" in target.inputs:
        given["directions"] = directions[target.feature.layer.layer].digest
    return content_key(target, request.recipe, given)


def child_spec(
    job: Job,
    assignment: Assignment,
    models: ModelSources,
    config: JobsConfig,
    artifacts: ArtifactStore,
    datasets: Datasets,
    checkpoint: tuple[Path | None, int] = (None, 0),
) -> JobSpec:
    """Write down what the child must know; its checkpoint is a folder and a limit in bytes.

    Raises:
        UnknownModel: The model is not configured.
        ModelLoadFailed: It is, but without factory or ONNX file, so there is nothing to look into.
        UnknownArtifact: The recipe looks at an image that is not in the store.
        UnsupportedTarget: The photographs that pictures are held against cannot be read.
    """
    model = models.find(job.request.targets[0].feature.layer.model)
    typical = "typical" in job.request.recipe.inputs
    targets = tuple(assignment.missing.values())
    names = {str(target.feature) for target in targets}
    live = {feature: c for feature, c in assignment.live.items() if feature in names}
    return JobSpec(
        job_id=job.id,
        attempt=job.attempts,
        origin=job.request.origin,
        parent_pid=os.getpid(),
        targets=targets,
        recipe=job.request.recipe,
        model=model,
        device=config.device,
        live=live if typical else {name: _without_ranges(c) for name, c in live.items()},
        images={digest: str(artifacts.open(digest)[0]) for digest in job.request.recipe.images},
        datasets={**assignment.datasets, **_photographs(config, datasets)},
        models=assignment.models,
        dictionaries=assignment.dictionaries,
        cause=job.request.cause,
        checkpoint=str(checkpoint[0] or ""),
        checkpoint_bytes=checkpoint[1],
        reliability=_reliability(model, models, config.reliability),
        gpu=GpuSpec(
            None if config.gpu.admission == "off" else config.gpu.reserve_bytes,
            config.gpu.memory_fraction,
        ),
    )


def _photographs(config: JobsConfig, datasets: Datasets) -> dict[str, Dataset]:
    name = config.reliability.dataset
    return {} if name is None else {name: datasets.read(name)}


def _reliability(
    model: ModelSpec, models: ModelSources, config: ReliabilityConfig
) -> ReliabilitySpec:
    return ReliabilitySpec(
        seeds=config.seeds,
        share=config.share,
        dataset=config.dataset or "",
        sibling=models.find(model.sibling) if model.sibling else None,
    )


def _without_ranges(context: LiveContext) -> LiveContext:
    return LiveContext(
        levels=context.levels,
        values=context.values,
        count=context.count,
        minimum=context.minimum,
        maximum=context.maximum,
        window=context.window,
        started=context.started,
        ended=context.ended,
    )


def confined(
    command: Sequence[str], config: JobsConfig, writable: Sequence[Path]
) -> tuple[str, ...]:
    """Return a command that starts another one in the sandbox; the same one where that is off.

    Args:
        command: What is to run in it.
        config: How tight it is.
        writable: The folders it may write in.
    """
    if config.sandbox == "off":
        return tuple(command)
    cuda = config.device != "cpu" and Path("/dev/nvidiactl").exists()
    settings = {
        "mode": config.sandbox,
        "writable": [str(folder.resolve()) for folder in writable],
        "cuda": cuda,
        "memory_bytes": config.memory_limit_bytes,
        "file_bytes": config.file_limit_bytes,
        "processes": config.subprocesses,
    }
    return (sys.executable, "-I", "-S", _CONFINE, json.dumps(settings), *command)


def child_environment(config: JobsConfig, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: import paths, thread caps, and tracebacks of crashes."""
    package = Path(sidecar.__file__).resolve().parents[1]
    paths = [*(str(path.resolve()) for path in config.python_path), str(package)]
    inherited = env.get("PYTHONPATH", "")
    found = {
        **env,
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        **{name: env.get(name, _KEPT_BYTES) for name in _ALLOCATOR_VARIABLES},
    }
    if config.device != "cpu":
        found = {**_GPU_VARIABLES, **found}
    if config.threads:
        found |= dict.fromkeys(_THREAD_VARIABLES, str(config.threads))
    return found
