"""Hooks for any ``torch.nn.Module``: start here with ``attach``."""

import contextlib
import difflib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle

from sidecar import __version__
from sidecar.errors import InvalidInput, InvalidName, ShapeMismatch
from sidecar.features import Capture, FeatureKind, LayerKey
from sidecar.hooks.account import Drop
from sidecar.hooks.capture import Sample, pick, sample_items
from sidecar.hooks.cuda import SideStreams
from sidecar.hooks.governor import Governor
from sidecar.hooks.latents import Latents
from sidecar.hooks.plan import ROOT_LAYER, Plan, Tap
from sidecar.hooks.reduce import (
    UNREDUCED,
    Positions,
    Reduction,
    find_tensor,
    fitting_dims,
    interleaved,
    maximum_positions,
    reduction,
)
from sidecar.hooks.requests import active_requests
from sidecar.hooks.sampler import Sampler
from sidecar.hooks.sink import Sink
from sidecar.hooks.staging import Pool
from sidecar.weights import module_digest
from sidecar.wire import SPARSE_WIDTH_LIMIT, Hello, HookReport

KILL_SWITCH = "SIDECAR_HOOKS_DISABLED"
"""Environment variable that makes ``attach`` a no-op when it is set to anything but 0 or nothing."""

_NESTING_LIMIT = 8
"""Forward passes of one model inside each other; older ones are taken for passes that were
interrupted by something torch runs no hooks for, such as KeyboardInterrupt."""

_OBJECT_BYTES = 1024
"""What a small tensor takes beyond its values, in torch and Python; without it a queue of tiny rows
would hold many times its bytes."""

_THREADS_LIMIT = 1024
"""Threads in a forward pass at once. Beyond it all are forgotten, which costs their rows: some of them
were ended in the middle of a pass, without a word to the hooks, and would be remembered for ever."""

# Bound once: these are called in every forward pass, where caches are cold and each look-up counts.
_Tensor = torch.Tensor
_thread = threading.get_ident
_is_compiling = torch.compiler.is_compiling
# Cheaper, and enough inside a pass that began: one that is exported never begins.
_is_traced_by_dynamo = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
_cuda: Any = torch.cuda
_has_cuda = _cuda.is_initialized
_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class Statistics:
    """How an attachment is doing.

    Attributes:
        report: What the daemon is told.
        refusals: Messages the daemon refused, by error code.
        failures: For each layer whose hook has raised, the newest exception in words.
        disabled: Layers whose hook raised so often that it switched itself off.
    """

    report: HookReport
    refusals: Mapping[str, int]
    failures: Mapping[str, str]
    disabled: tuple[str, ...]


class _Forward:
    """One forward pass under way in one thread."""

    __slots__ = ("depth", "outer", "sample", "started")

    def __init__(self, outer: "_Forward | None", depth: int, started: float) -> None:
        self.outer = outer
        self.depth = depth
        self.started = started
        self.sample: Sample | None = None


def _inert(*_: Any, **__: Any) -> None:
    """Stand in for a hook in a copied or unpickled model, which is not attached."""


def _make_inert() -> Callable[..., None]:
    return _inert


class _Hook:
    """A callable registered on a module; never raises, and disables itself after some errors."""

    def __init__(self, attachment: "Attachment", name: str) -> None:
        self.attachment = attachment
        self.name = name
        self.errors = 0
        self.failure = ""
        self.enabled = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Let servers copy and pickle a hooked model: the copy's hooks do nothing."""
        return _make_inert, ()

    @property
    def __name__(self) -> str:
        """Never there; ``torch.jit.script`` asks for it, and shall say more than that."""
        raise AttributeError(
            "torch.jit.script compiles a module's hooks: detach() the sidecar's hooks before it"
        )

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do what the subclass is for."""

    def failed(self, error: Exception) -> None:
        """Count an exception; after the limit switch this hook off for good."""
        self.errors += 1
        self.failure = f"{type(error).__name__}: {error}"[:500]
        if self.errors >= self.attachment.plan.error_limit:
            self.enabled = False
        with contextlib.suppress(Exception):
            self.attachment.sink.account.error()


class _Begin(_Hook):
    """Before the model's forward: the one decision whether this pass is sampled."""

    def __call__(
        self, _module: torch.nn.Module, args: Any, kwargs: Any = None
    ) -> None:  # kwargs may be missing when another thread detaches at this moment
        if _is_compiling() or not self.enabled:
            return
        try:
            self.attachment.begin(args, kwargs)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(error)


class _End(_Hook):
    """After the model's forward, also when it raised: hands the rows over."""

    def __call__(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if _is_compiling():
            return
        try:
            self.attachment.end(output)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(error)


class _LayerHook(_Hook):
    """After a tapped module's forward: copies its rows if the pass is sampled."""

    def __init__(
        self, attachment: "Attachment", layer: LayerKey, tap: Tap, module: torch.nn.Module
    ) -> None:
        super().__init__(attachment, layer.layer)
        self.layer = layer
        self._sampling = attachment.sampling
        self._limit_bytes = attachment.sink.limit_bytes
        self._dims = fitting_dims(tap)
        # Whether every position is a row of its own: (items, positions, width), and many bytes.
        self._unreduced = tap.kind in UNREDUCED
        self._sparse = tap.kind is FeatureKind.LATENT
        self._encodes = tap.encoder is not None
        rows = attachment.plan.max_rows
        self._reduce: Reduction = (
            Latents(tap, rows, self._limit_bytes) if self._sparse else reduction(tap, rows, module)
        )
        self._positions = maximum_positions(tap, module)
        self._maximum: Positions | None = None  # the same, once an output was seen that lies well
        self._shape: torch.Size | None = None
        self._dtype: torch.dtype | None = None
        self._width = 0

    def __call__(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if _is_traced_by_dynamo():
            return
        sampling = self._sampling
        if not sampling:  # all that a dormant hook does
            return
        sample = sampling.get(_thread())
        if sample is None or not self.enabled:
            return
        started = _clock()
        try:
            maximum = self._maximum
            if maximum is not None and sample.plain and type(output) is _Tensor:
                # The usual case, in one frame: that of another is cold memory once more, each time.
                where = maximum[output.dim()]
                rows = output.amax(where) if where else output.clone()  # (items, channels)
                sample.taken.append((self, rows, 1.0, False))
            else:
                self._take(sample, output)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(self._explain(error, output))
        sample.hook_seconds += _clock() - started

    def _take(self, sample: Sample, output: Any) -> None:
        # Next to nothing is looked at here: between two convolutions each property of a tensor costs
        # a microsecond or two. The rows are checked by the sender, in ``accept``.
        tensor = output if type(output) is _Tensor else find_tensor(output, self._dims)
        if self._positions is not None and not interleaved(tensor):
            # Only speed rests on it, so it is not looked at again.
            self._maximum, self._positions = self._positions, None
        if sample.recording:
            tensor = tensor.detach()
        stray = False
        if sample.partial:
            picked, stray = pick(sample.population, tensor)
            if picked is None:
                sample.others = True
                return
            tensor = picked
        if self._encodes:
            # Taps inside the encoder must not take what the model never computed.
            self._sampling.pop(_thread(), None)
        try:
            rows, weight = self._reduce(tensor, sample.draw)
        finally:
            if self._encodes:
                self._sampling[_thread()] = sample
        if self._unreduced:
            sample.unreduced_bytes += rows.nbytes
            if sample.unreduced_bytes > self._limit_bytes:
                sample.too_large = True
                sample.taken.clear()
                self._sampling.pop(_thread(), None)  # the other layers need not try
                return
        sample.taken.append((self, rows, weight, stray))

    def _explain(self, error: Exception, output: Any) -> Exception:
        """Return what is wrong with the output, where that is why the reduction failed."""
        try:
            find_tensor(output, self._dims)
        except ShapeMismatch as better:
            return better
        return error

    def accept(self, rows: torch.Tensor) -> bool:
        """Say whether these are rows of the layer; count it as an error if not."""
        # Servers repeat their shapes.
        if rows.shape != self._shape or rows.dtype is not self._dtype:
            problem = self._problem(rows)
            if problem:
                self.failed(ShapeMismatch(problem))
                return False
            self._shape, self._dtype, self._width = rows.shape, rows.dtype, rows.shape[-1]
        return True

    def _problem(self, rows: torch.Tensor) -> str:
        fits = rows.dim() == 2 or (rows.dim() == 3 and self._unreduced)  # noqa: PLR2004 - see Taken
        if not (fits and rows.numel() and rows.is_floating_point()):
            return (
                f"layer {self.name} gives {rows.dtype} {tuple(rows.shape)}: the tap needs a "
                f"non-empty floating tensor of {' or '.join(map(str, self._dims))} dimensions"
            )
        if self._sparse and rows.shape[-1] > SPARSE_WIDTH_LIMIT:
            return f"layer {self.name} has {rows.shape[-1]} latents: at most {SPARSE_WIDTH_LIMIT} can be sent"
        if self._width not in (0, rows.shape[-1]):
            return f"layer {self.name} was {self._width} wide and is now {rows.shape[-1]}"
        return ""


class Attachment:
    """A plan attached to a model until ``detach``; usable as a context manager.

    Attributes:
        plan: What is measured.
        layers: Keys of the tapped layers, in the order of the plan.
    """

    def __init__(self, plan: Plan, sink: Sink, layers: tuple[LayerKey, ...]) -> None:
        self.plan = plan
        self.sink = sink
        self.layers = layers
        # By thread: a plain dict is read in a fifth of the time of a thread-local attribute.
        self.sampling: dict[int, Sample] = {}
        self._passes: dict[int, _Forward] = {}
        self._sampler = Sampler(plan.seed)
        self._governor = Governor(plan.overhead_budget, plan.sampling_rate)
        # Bound once, as above.
        self._planned_rate, self._dtype = plan.sampling_rate, plan.dtype
        self._limit_bytes = sink.limit_bytes
        self._account = sink.account
        self._account.follow(self._governor)
        self._streams = SideStreams()
        self._pool = Pool(sink.limit_bytes, self._streams)
        self._handles: list[RemovableHandle] = []
        self._hooks: list[_Hook] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach, whatever happened."""
        self.detach()

    def detach(self) -> None:
        """Remove every hook; may be called at any time, from any thread, and again."""
        while self._handles:
            self._handles.pop().remove()
        for hook in self._hooks:
            hook.enabled = False

    def statistics(self) -> Statistics:
        """Return how the hooks are doing now."""
        hooks = tuple(self._hooks)
        return Statistics(
            report=self.sink.report(),
            refusals=self.sink.refusals,
            failures={hook.name: hook.failure for hook in hooks if hook.failure},
            disabled=tuple(hook.name for hook in hooks if hook.errors >= self.plan.error_limit),
        )

    def hook(self, model: torch.nn.Module, sites: list[tuple[torch.nn.Module, Tap]]) -> None:
        """Register the hooks; on failure none is left behind."""
        try:
            begin = _Begin(self, "forward")
            self._hooks.append(begin)
            self._handles.append(
                model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
            )
            for layer, (module, tap) in zip(self.layers, sites, strict=True):
                tapping = _LayerHook(self, layer, tap, module)
                self._hooks.append(tapping)
                self._handles.append(module.register_forward_hook(tapping))
            end = _End(self, "forward_end")
            self._hooks.append(end)
            # Registered last, so that a tap on the model itself has run before.
            self._handles.append(_register_always(model, end))
        except Exception:
            self.detach()
            raise

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Enter a forward pass and decide which of its items are sampled."""
        thread = _thread()
        outer = self._passes.get(thread)
        depth = 0 if outer is None else outer.depth + 1
        if depth >= _NESTING_LIMIT:
            outer, depth = None, 0
        forward = _Forward(outer, depth, _clock())
        if len(self._passes) >= _THREADS_LIMIT:
            self._passes.clear()
            self.sampling.clear()
        self._passes[thread] = forward
        if self.sampling:
            self.sampling.pop(thread, None)  # an outer pass waits; an interrupted one is over
        rate = min(self.sink.sampling_rate, self._governor.rate)  # this one starts at the plan's
        if rate > 0.0:
            self._choose(forward, thread, rate, _first_items(args) or _first_of(kwargs))

    def _choose(self, forward: _Forward, thread: int, rate: float, items: int) -> None:
        chosen = sample_items(self._sampler, rate, items, active_requests())
        if chosen is None:
            return
        cuda = _has_cuda()
        # A trace or a CUDA graph under construction must not contain our copies.
        if _is_tracing() or (cuda and _cuda.is_current_stream_capturing()):
            return
        if not self.sink.accepting:
            self._account.refuse(Drop.BREAKER_OPEN)
            return
        population, draw = chosen
        sample = Sample(population, rate, draw, recording=_is_grad_enabled(), cuda=cuda)
        forward.sample = self.sampling[thread] = sample
        sample.hook_seconds = _clock() - forward.started

    def end(self, output: object) -> None:
        """Leave a forward pass and hand its rows over."""
        thread = _thread()
        forward = self._passes.pop(thread, None)
        if forward is None:
            return
        now = _clock()
        sample = forward.sample
        if sample is not None:
            self.sampling.pop(thread, None)
        outer = forward.outer
        if outer is not None:
            self._passes[thread] = outer
            if outer.sample is not None:
                self.sampling[thread] = outer.sample
        if sample is None:
            self._account.passed(now - forward.started)
            return
        try:
            # A pass that raised has no output, and half its layers.
            if output is not None:
                self._hand_over(sample)
        finally:
            # The hand-over is the hooks' time too, and comes after the model's own.
            ended = _clock()
            hook_seconds = sample.hook_seconds + ended - now
            self._account.sampled(ended - forward.started, hook_seconds, sample.rate)

    def _hand_over(self, sample: Sample) -> None:
        taken = sample.taken
        held_bytes = _OBJECT_BYTES * len(taken)
        for _, rows, _, _ in taken:
            held_bytes += rows.nbytes
        if sample.too_large or held_bytes > self._limit_bytes:
            self._account.refuse(Drop.TOO_LARGE)
            return
        if not taken:
            if not sample.others:
                self._account.refuse(Drop.NO_ROWS)
            return
        marks: Mapping[torch.device, Any] = {}
        if sample.cuda:
            marks = self._streams.mark({rows.device for _, rows, _, _ in taken if rows.is_cuda})
        weight = self._planned_rate / sample.rate
        sample.seal(self._pool, self._dtype, weight, held_bytes, marks)
        self.sink.offer(sample)


def _register_always(model: torch.nn.Module, hook: _Hook) -> RemovableHandle:
    """Register a hook that also runs after a forward that raised, where torch can do that."""
    try:
        return model.register_forward_hook(hook, always_call=True)
    except TypeError:  # torch before 2.1: passes that raise are then cleared by _NESTING_LIMIT
        return model.register_forward_hook(hook)


def _first_items(values: Iterable[Any]) -> int:
    """Return the first dimension of the first tensor among a forward's arguments, or 0."""
    for value in values:
        if isinstance(value, _Tensor) and (shape := value.shape):  # len() of it is Python code
            return shape[0]
    return 0


def _first_of(kwargs: dict[str, Any] | None) -> int:
    """Return the same of a forward's keyword arguments."""
    return _first_items(kwargs.values()) if kwargs else 0


def attach(
    model: torch.nn.Module,
    plan: Plan,
    sink: Sink,
    *,
    env: Mapping[str, str] = os.environ,
) -> Attachment:
    """Attach a plan's taps to a model.

    This is start-up, the one moment when the hooks may raise. From then on they never do: outputs
    stay bit-equal, exceptions are caught and counted, and a forward pass that is not sampled costs
    one comparison a tapped module. Sampling is held within the plan's overhead budget.

    Args:
        model: The module whose calls are the forward passes; eager, neither compiled nor scripted.
            When it is compiled later, the hooks stay silent inside the compiled code.
        plan: What to tap. With an empty revision the state dict is hashed, which takes about a
            second for each gigabyte of weights.
        sink: Where batches go, see ``sidecar.hooks.connect``.
        env: Where the kill switch ``SIDECAR_HOOKS_DISABLED`` is looked up.

    Returns:
        The attachment; with the kill switch set, one without layers and hooks, whatever the model
        and the plan are.

    Raises:
        InvalidName: A path or glob matches no module, or a module's path is no layer name.
        InvalidInput: The model or a tapped module is compiled or scripted, its weights cannot be
            hashed, two taps measure the same, a canonical name covers several modules, or the sink
            sends for another model.
    """
    if env.get(KILL_SWITCH, "0") not in ("", "0"):
        return Attachment(plan, sink, ())
    _refuse_compiled(model)
    sites = _find_sites(model, plan)
    revision = plan.revision or _digest(model)
    layers = tuple(
        LayerKey(plan.model, revision, name, tap.kind, tap.resolved_view) for _, tap, name in sites
    )
    doubled = sorted({str(layer) for layer in layers if layers.count(layer) > 1})
    if doubled:
        raise InvalidInput(f"tapped twice: {', '.join(doubled)}: remove one of the taps")
    attachment = Attachment(plan, sink, layers)
    capture = Capture(plan.server, _dtype_name(model), tap=f"sidecar.hooks.torch/{__version__}")
    hello = Hello(plan.model, revision, capture, client_version=__version__)
    sink.announce(hello, plan.sampling_rate)
    attachment.hook(model, [(module, tap) for module, tap, _ in sites])
    return attachment


def _digest(model: torch.nn.Module) -> str:
    """Return the revision; say what to do about weights without values, or of a type all their own."""
    try:
        return module_digest(model)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"the model's weights cannot be hashed ({type(error).__name__}: {str(error)[:200]}): "
            "attach once they are loaded, or name them yourself with Plan(revision=...)"
        ) from error


def _refuse_compiled(model: torch.nn.Module) -> None:
    for path, module in model.named_modules():
        compiled = hasattr(module, "_orig_mod") or (
            getattr(module, "_compiled_call_impl", None) is not None
        )
        if compiled or isinstance(module, torch.jit.ScriptModule):
            what = "compiled" if compiled else "scripted"
            raise InvalidInput(
                f"module {path or 'root'!r} is {what}: its hooks would never run. Attach to the "
                "eager model instead, and serve that"
            )


def _find_sites(model: torch.nn.Module, plan: Plan) -> list[tuple[torch.nn.Module, Tap, str]]:
    modules = dict(model.named_modules())
    sites = []
    for tap in plan.taps:
        paths = [path for path in modules if tap.matches(path)]
        if not paths:
            near = difflib.get_close_matches(tap.path, modules, n=5, cutoff=0.3)
            hint = f": did you mean {', '.join(near)}?" if near else ""
            raise InvalidName(f"tap {tap.path!r} matches none of {len(modules)} modules{hint}")
        if tap.layer and len(paths) > 1:
            raise InvalidInput(
                f"tap {tap.path!r} matches {len(paths)} modules, which cannot all be called "
                f"{tap.layer!r}: leave layer empty"
            )
        sites += [(modules[path], tap, tap.layer or path or ROOT_LAYER) for path in paths]
    return sites


def _dtype_name(model: torch.nn.Module) -> str:
    """Return the dtype of the model's first parameter; ``float32`` where it has none."""
    parameter = next(model.parameters(), None)
    return "float32" if parameter is None else str(parameter.dtype).removeprefix("torch.")
