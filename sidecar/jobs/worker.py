"""The child's side of a job: ``python -m sidecar.jobs.worker <descriptor>``.

Reads one specification from stdin, loads the model, makes the pictures, and says how it goes on the
descriptor it was given. This and ``sidecar.visualise`` are where torch lives; both are imported
only after the process has made sure that it cannot outlive the daemon.
"""

import ctypes
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.errors import (
    CorruptState,
    DigestMismatch,
    DiskFull,
    GpuOutOfMemory,
    SandboxRefused,
    SidecarError,
    UnsupportedTarget,
    WorkerCrashed,
)
from sidecar.features import is_digest
from sidecar.jobs.checkpoint import Checkpoint
from sidecar.jobs.confine import REPORT
from sidecar.jobs.files import FileDigests
from sidecar.jobs.manifest import (
    SCHEMA,
    encode_manifest,
    iso_time,
    live_facts,
    parents,
    thin_history,
)
from sidecar.jobs.provenance import Phases, code_facts, device_facts
from sidecar.jobs.sources import model_source
from sidecar.jobs.spec import (
    DoneEvent,
    Event,
    FailureEvent,
    HeldBackEvent,
    JobSpec,
    ModelSpec,
    PreviewEvent,
    ProgressEvent,
    ResultEvent,
    decode_spec,
    encode_event,
)
from sidecar.recipes import content_key

if TYPE_CHECKING:
    from sidecar.visualise import (
        Directions,
        Materials,
        Picture,
        Progress,
        Report,
        Settings,
        Share,
        TypicalRange,
        VisionModel,
    )

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_NO_NEW_PRIVS = 38
_OOM_SCORE = "500"  # of 1000: where memory runs out, the kernel takes a job before the model server
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_BYTES = 1 << 20
_NO_MEMORY = "can't allocate memory"  # what torch's allocator for the CPU says
_GPU_ADVICE = (
    "ask for a smaller canvas or fewer features, raise jobs.gpu.memory_fraction where that is the limit, or "
    "raise jobs.gpu.reserve_bytes, so that jobs wait for others to end"
)
_PREVIEWS_KEPT = 2  # the newest, and one that the daemon may be reading


def main(argv: list[str]) -> int:
    """Run one job; returns the exit status, 0 also for a job that failed for a reason it named."""
    descriptor = int(argv[1])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes it by position only
    _bind_to_daemon()
    # Read when torch is imported: its waiting threads would spin, on cores that the model server uses.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        spec = decode_spec(_read_line())
    except CorruptState as error:
        print(error, file=sys.stderr)  # noqa: T201 - kept by the daemon as the reason
        return 2
    if os.getppid() != spec.parent_pid:
        return 3  # the daemon died before the kernel was asked to tell
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with suppress(BrokenPipeError):  # the daemon is gone; nobody is left to hear it
        _run(spec, descriptor)
    return 0


def _run(spec: JobSpec, descriptor: int) -> None:
    def announce(event: Event) -> None:
        line = encode_event(event)
        while line:
            line = line[os.write(descriptor, line) :]

    try:
        _work(spec, Path.cwd(), announce)
        announce(DoneEvent())
    except BrokenPipeError:
        raise
    except _HeldBack as wait:
        announce(wait.event)
    except Exception as error:  # noqa: BLE001 - whatever the model's code raises is the job's answer
        announce(_failure(error))


def _failure(error: Exception) -> FailureEvent:
    """Say what went wrong, whatever it was, and whether another attempt might fare better."""
    if _gpu_is_full(error):
        return FailureEvent(GpuOutOfMemory.code, f"{_words(error)}; {_GPU_ADVICE}", retry=True)
    refused = _refused(error)
    if refused:
        return FailureEvent(SandboxRefused.code, refused, retry=False)
    if isinstance(error, SidecarError):
        return FailureEvent(error.code, error.message, retry=False)
    traceback.print_exc()
    full = isinstance(error, OSError) and error.errno in _FULL
    code = DiskFull.code if full else WorkerCrashed.code
    words = f"the worker failed: {type(error).__name__}: {error}"
    return FailureEvent(code, words, retry=not full)


def _words(error: BaseException | None) -> str:
    return error.message if isinstance(error, SidecarError) else f"{type(error).__name__}: {error}"


def _gpu_is_full(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return False  # it ended before anything could ask for memory of a GPU
    from sidecar.visualise import is_out_of_memory  # noqa: PLC0415 - torch, loaded by now

    return is_out_of_memory(error)


def _refused(error: BaseException | None) -> str:
    """Say what the sandbox refused, where an error or one behind it looks like that; else nothing."""
    words = _words(error)
    while error is not None and REPORT in os.environ:
        advice = _advice(error)
        if advice:
            return f"{words}; {advice}"
        error = error.__cause__ or error.__context__
    return ""


def _advice(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return (
            "in its sandbox a worker has no network, writes to its TMPDIR alone and starts no "
            "processes: give it what it needs as files, see jobs.subprocesses, or set jobs.sandbox: off"
        )
    if number == errno.EFBIG:
        return "the largest file of a worker is jobs.file_limit_bytes"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY in str(error)
    ):
        return "a worker's memory is jobs.memory_limit_bytes, as far as the machine has as much"
    return ""


class _HeldBack(Exception):
    """There is no room for the job now."""

    def __init__(self, event: HeldBackEvent) -> None:
        super().__init__(event.reason)
        self.event = event


def _work(spec: JobSpec, folder: Path, announce: Callable[[Event], None]) -> None:
    """Make the pictures of a job, and lay them and their manifests into its folder."""
    started, phases = time.time(), Phases()
    phases.enter("load")
    announce(ProgressEvent(0, 0, "importing torch"))
    from sidecar.visualise import Share, sharing  # noqa: PLC0415 - torch, seconds

    share = Share(spec.gpu.memory_fraction, spec.gpu.reserve_bytes)
    with sharing(spec.device, share):
        _make(spec, folder, announce, share, phases, started)


def _make(
    spec: JobSpec,
    folder: Path,
    announce: Callable[[Event], None],
    share: "Share",
    phases: Phases,
    started: float,
) -> None:
    from sidecar.visualise import (  # noqa: PLC0415 - torch, loaded by now
        FORWARD_METHODS,
        ImageModel,
        assess,
        method_for,
        unmeasured,
        with_gradients,
        with_reliability,
    )

    announce(ProgressEvent(0, 0, f"loading {spec.model.name}"))
    began = time.monotonic()
    # Once: all targets of a job are of one model and revision.
    model = _load(spec.model, spec.device, _expected_digest(spec))
    load_seconds = time.monotonic() - began
    announce(ProgressEvent(0, 0, f"loaded {spec.model.name} in {load_seconds:.2f} s"))
    materials = _materials(spec, _load_others(spec, announce))
    phases.enter("plan")
    method, settings = method_for(spec.recipe), _settings(spec)
    if method.gradients:
        model = with_gradients(model, spec.recipe.method, FORWARD_METHODS)
    cost = method.plan(model, spec.targets, spec.recipe, materials)
    cost = with_reliability(cost, spec.targets, spec.recipe, settings)
    _wait_for_room(model, cost.bytes_estimate, share)
    announce(ProgressEvent(0, 0, f"making pictures: {cost.forwards} passes"))
    cancelled = _listen_for_cancel()
    phases.enter("optimise")
    pictures = method.run(
        model,
        spec.targets,
        spec.recipe,
        materials,
        on_progress=_Reporter(folder, announce, phases),
        cancelled=cancelled,
        checkpoint=Checkpoint(
            Path(spec.checkpoint) if spec.checkpoint else None, spec.checkpoint_bytes
        ),
    )
    phases.enter("reliability")
    announce(ProgressEvent(0, 0, "measuring how far the pictures can be believed"))
    reports: list[Report | None] = [None] * len(pictures)
    if isinstance(model, ImageModel):
        reports = assess(
            method,
            model,
            pictures,
            spec.recipe,
            materials,
            settings,
            on_layer=lambda layer: announce(ProgressEvent(0, 0, f"measuring pictures of {layer}")),
            cancelled=cancelled,
        )
    phases.enter("")
    facts = _common_facts(spec, model, started) | {"model_load_seconds": load_seconds}
    for index, (picture, report) in enumerate(zip(pictures, reports, strict=True)):
        png = picture.png({} if report is None else {"verdict": report.verdict})
        names = (f"picture-{index}.png", f"manifest-{index}.json")
        (folder / names[0]).write_bytes(png)
        manifest = {**facts, **_picture_facts(spec, picture, png)}
        manifest["reliability"] = None if report is None else report.document()
        if report is None:
            why = unmeasured(picture.target, spec.recipe) or _FORWARD_ONLY
            manifest["findings"] = {**manifest["findings"], "not_assessed": why}
        manifest["timings"] = phases.seconds()
        manifest["duration_seconds"] = time.time() - started
        (folder / names[1]).write_bytes(encode_manifest(manifest))
        announce(ResultEvent(index, *names))


def _wait_for_room(model: "VisionModel", wanted_bytes: int, share: "Share") -> None:
    """End the job, to be started again later, where the GPU has no room for what was planned."""
    from sidecar.visualise import shortage  # noqa: PLC0415 - torch, loaded by now

    short = shortage(model.device, wanted_bytes, share)
    if short is None:
        return
    if short.lasting:
        raise UnsupportedTarget(short.reason)
    raise _HeldBack(HeldBackEvent(short.reason, short.needs_bytes))


_FORWARD_ONLY = "the model only runs forward, and the measures look at layers on the way"
"""Why there is no verdict on a picture that there are measures for."""


class _Reporter:
    """Turns progress of the optimiser into events and intermediate pictures."""

    def __init__(self, folder: Path, announce: Callable[[Event], None], phases: Phases) -> None:
        self._folder = folder
        self._announce = announce
        self._phases = phases
        self._count = 0

    def __call__(self, progress: "Progress") -> None:
        # What follows the last step is measuring.
        self._phases.enter("measure" if progress.step == progress.steps else "optimise")
        shown = ", ".join(f"{progress.activations[index]:.3g}" for index in progress.shown)
        message = f"step {progress.step} of {progress.steps}"
        if shown:
            message += f", activation {shown}"
        self._announce(ProgressEvent(progress.step, progress.steps, message))
        self._count += 1
        name = f"preview-{self._count}.png"
        temporary = self._folder / f"{name}.tmp"
        temporary.write_bytes(progress.png())
        temporary.replace(self._folder / name)
        self._announce(PreviewEvent(name))
        old = self._folder / f"preview-{self._count - _PREVIEWS_KEPT}.png"
        old.unlink(missing_ok=True)


def _load(wanted: ModelSpec, device: str, expected: str = "") -> "VisionModel":
    """Load a model, and hold it against a revision and its configured digest."""
    from sidecar.visualise import InputForm, load_model, load_onnx  # noqa: PLC0415 - torch, loaded by now

    height, width = wanted.height or wanted.input_size, wanted.width or wanted.input_size
    form = InputForm(height, width, wanted.top, wanted.channels, wanted.layout)
    if wanted.onnx:
        model: VisionModel = load_onnx(
            Path(wanted.onnx),
            form=form,
            mean=wanted.mean,
            std=wanted.std,
            device=device,
            expected_digest=expected,
            gradients=wanted.gradients,
        )
    else:
        model = load_model(
            wanted.factory,
            Path(wanted.weights) if wanted.weights else None,
            input_size=wanted.input_size,
            mean=wanted.mean,
            std=wanted.std,
            device=device,
            expected_digest=expected or wanted.digest,
            form=form,
        )
    if wanted.digest and model.digest != wanted.digest:
        raise DigestMismatch(
            f"model {wanted.name} has digest {model.digest}, but models[].digest says {wanted.digest}: mend "
            "either"
        )
    return model


def _load_others(spec: JobSpec, announce: Callable[[Event], None]) -> "dict[str, VisionModel]":
    """Load the other models that the recipe looks at, and make sure they are what was asked for."""
    found = {}
    for name, wanted in spec.models.items():
        announce(ProgressEvent(0, 0, f"loading {name}"))
        found[name] = _load(wanted, spec.device, "")
        if model_source(wanted, FileDigests()) != wanted.source:
            raise UnsupportedTarget(
                f"model {name} has changed since the job was claimed: ask again"
            )
    return found


def _settings(spec: JobSpec) -> "Settings":
    from sidecar.visualise import Settings, with_gradients  # noqa: PLC0415 - torch, loaded by now

    wanted, sibling = spec.reliability, None
    if wanted.sibling is not None:
        loaded = _load(wanted.sibling, spec.device)
        sibling = with_gradients(loaded, "transfer to a sibling")
    return Settings(
        seeds=wanted.seeds,
        share=wanted.share,
        photographs=spec.datasets.get(wanted.dataset),
        sibling=sibling,
    )


def _expected_digest(spec: JobSpec) -> str:
    """Return the digest the targets' revision promises; empty where it is a name somebody chose."""
    revision = spec.targets[0].feature.layer.revision
    return revision if is_digest(revision) else ""


def _materials(spec: JobSpec, others: "Mapping[str, VisionModel]") -> "Materials":
    from sidecar.visualise import Materials, read_image  # noqa: PLC0415 - torch, loaded by now

    images = {digest: read_image(Path(path)) for digest, path in spec.images.items()}
    sources = {name: wanted.source for name, wanted in spec.models.items()}
    return Materials(
        _typical_range(spec), images, spec.datasets, others, sources, _read_directions(spec)
    )


def _read_directions(spec: JobSpec) -> "dict[str, Directions]":
    """Read the dictionaries of the targets' layers, and hold them against what was asked for."""
    from sidecar.visualise import read_directions  # noqa: PLC0415 - torch, loaded by now

    found = {}
    for layer, wanted in spec.dictionaries.items():
        found[layer] = read_directions(Path(wanted.file))
        if found[layer].digest != wanted.digest:
            raise UnsupportedTarget(
                f"dictionary {wanted.name} has changed since the job was claimed: ask again"
            )
    return found


def _typical_range(spec: JobSpec) -> "TypicalRange | None":
    from sidecar.visualise import TypicalRange  # noqa: PLC0415 - torch, loaded by now

    if "typical" not in spec.recipe.inputs:
        return None
    low, high = {}, {}
    for target in spec.targets:
        live = spec.live.get(str(target.feature))
        if live is None or live.typical_low is None or live.typical_high is None:
            raise UnsupportedTarget(f"no typical range of {target.feature.layer} was handed over")
        low[str(target.feature.layer)] = live.typical_low
        high[str(target.feature.layer)] = live.typical_high
    return TypicalRange(low, high)


def _common_facts(spec: JobSpec, model: "VisionModel", started: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": {
            "name": spec.model.name,
            "digest": model.digest,
            "digest_verified": bool(_expected_digest(spec) or spec.model.digest),
            "factory": spec.model.factory,
        },
        "weights_file": _weights_file(spec.model.onnx or spec.model.weights),
        "input": {
            "size": spec.model.input_size,
            "mean": spec.model.mean,
            "std": spec.model.std,
            "height": spec.model.height or spec.model.input_size,
            "width": spec.model.width or spec.model.input_size,
            "range": [0, spec.model.top],
            "channels": spec.model.channels,
            "layout": spec.model.layout,
        },
        "method": {"name": spec.recipe.method, "version": spec.recipe.version},
        "recipe": spec.recipe.values(),
        "seed": spec.recipe.seed,
        "code": code_facts(),
        "device": device_facts(model.device),
        "sandbox": json.loads(
            os.environ.get(REPORT, '{"mode": "off", "applied": [], "missing": {}}')
        ),
        "job": {"id": spec.job_id, "attempt": spec.attempt, "origin": spec.origin},
        "parents": parents(spec.cause),
        "reproduces": spec.cause.reproduces or None,
        "reliability": None,
        "started": iso_time(started),
    }


def _weights_file(weights: str) -> dict[str, str] | None:
    if not weights:
        return None
    with Path(weights).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": Path(weights).name, "sha256": digest}


def _picture_facts(spec: JobSpec, picture: "Picture", png: bytes) -> dict[str, Any]:
    target = picture.target
    layer = target.feature.layer
    height, width = picture.image.shape[:2]
    live = spec.live.get(str(target.feature))
    return {
        "feature": str(target.feature),
        "layer": layer.layer,
        "kind": layer.kind.value,
        "unit": target.feature.index,
        "view": layer.view.value,
        "scope": layer.scope.value,
        "position": target.position,
        "side": target.side.value,
        "terms": [[str(term.feature), term.weight] for term in target.terms],
        "typical_digest": picture.inputs.get("typical", ""),
        "inputs": _inputs(spec, picture),
        "content_key": content_key(target, spec.recipe, picture.inputs),
        "activation": {
            "view": layer.view.value,
            "plain": picture.activation,
            "augmented": picture.activation_augmented,
            "augmented_spread": picture.activation_augmented_spread,
            "start": picture.first_activation,
        },
        "history": thin_history(picture.history),
        "live": None if live is None else live_facts(live, picture.activation),
        "findings": picture.findings,
        "picture": {
            "sha256": hashlib.sha256(png).hexdigest(),
            "bytes": len(png),
            "width": width,
            "height": height,
            "media_type": "image/png",
        },
    }


def _inputs(spec: JobSpec, picture: "Picture") -> list[dict[str, str]]:
    """Return what was given beside model and recipe."""
    layer = picture.target.feature.layer
    found = [
        {"kind": "artifact", "name": "image", "digest": digest} for digest in picture.recipe.images
    ]
    for name, digest in picture.inputs.items():
        kind, _, what = name.partition(":")
        if kind == "typical":
            kind, what = "typical_range", str(layer)
        if kind == "directions":
            what = spec.dictionaries[layer.layer].name
        found.append({"kind": kind, "name": what, "digest": digest})
    return found


def _bind_to_daemon() -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # Refused only by odd sandboxes, which are stricter already.
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")


def _read_line() -> bytes:
    """Read the specification unbuffered, so that the rest of stdin is left to the watcher."""
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(0, _READ_BYTES)
        if not chunk:
            raise CorruptState("stdin ended before the job was read")
        line += chunk
    return bytes(line)


def _end_with_stdin() -> None:
    """End at once, with everything the model's code started, when the daemon's end closes stdin."""
    while os.read(0, _READ_BYTES):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(4)


def _listen_for_cancel() -> Callable[[], bool]:
    """From here on a SIGTERM asks for an orderly end; before, it simply ends the process."""
    wanted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: wanted.set())
    return wanted.is_set


if __name__ == "__main__":
    sys.exit(main(sys.argv))
