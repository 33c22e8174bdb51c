"""Hooks for any ``torch.nn.Module``: start here with ``attach``."""

import contextlib
import difflib
import fnmatch
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle

from sidecar import __version__
from sidecar.errors import InvalidInput, InvalidName, ShapeMismatch
from sidecar.features import Capture, LayerKey, Request
from sidecar.hooks.account import Drop
from sidecar.hooks.batch import ForwardBatch, TappedRows
from sidecar.hooks.plan import ROOT_LAYER, Plan, Tap
from sidecar.hooks.reduce import find_tensor, fitting_dims, reduction
from sidecar.hooks.requests import active_requests
from sidecar.hooks.sampler import Sampler
from sidecar.hooks.sink import Sink
from sidecar.hooks.staging import Pool
from sidecar.weights import module_digest
from sidecar.wire import Hello, HookReport

KILL_SWITCH = "SIDECAR_HOOKS_DISABLED"
"""Environment variable that makes ``attach`` a no-op when it is set to anything but 0 or nothing."""

_NESTING_LIMIT = 8
"""Forward passes of one model inside each other; older ones are taken for passes that were
interrupted by something torch runs no hooks for, such as KeyboardInterrupt."""

_OBJECT_BYTES = 1024
"""What a small tensor takes beyond its values, in torch and Python; without it a queue of tiny rows
would hold many times its bytes."""

_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


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


@dataclass(frozen=True, slots=True)
class _Spec:
    """What is known of a layer's rows before they are made, as long as the shapes stay.

    Attributes:
        shape: Shape of the output it holds for.
        dtype: dtype of that output.
        layout: ``_Forward.layout`` it holds for.
        keep: Leading entries of the output to sample; 0: all.
        items: Items the rows belong to.
        rows_per_item: Rows of each item.
        width: Values of a row.
        size: Bytes of the rows on the wire.
        held: Bytes they take until they are sent.
        named: Whether item i is request i.
    """

    shape: torch.Size
    dtype: torch.dtype
    layout: tuple[int, int]
    keep: int
    items: int
    rows_per_item: int
    width: int
    size: int
    held: int
    named: bool


@dataclass(slots=True)
class _Forward:
    """One forward pass under way in one thread."""

    outer: "_Forward | None"
    depth: int
    started: float
    draw: int = 0  # random bits of a sampled pass; 0: not sampled
    rate: float = 1.0
    layout: tuple[int, int] = (0, 0)  # items of the model's input (0: unknown), and requests
    requests: tuple[Request, ...] = ()
    taken: "list[tuple[LayerKey, _Spec, torch.Tensor]]" = field(default_factory=list)
    taken_bytes: int = 0
    hook_seconds: float = 0.0
    too_large: bool = False


class _Thread(threading.local):
    """The forward pass each thread is in; the class attribute is every thread's start."""

    forward: _Forward | None = None


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
        if torch.compiler.is_compiling() or not self.enabled:
            return
        try:
            self.attachment.begin(args, kwargs)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(error)


class _End(_Hook):
    """After the model's forward, also when it raised: hands the rows over."""

    def __call__(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            self.attachment.end(output)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(error)


class _LayerHook(_Hook):
    """After a tapped module's forward: copies its rows if the pass is sampled."""

    def __init__(self, attachment: "Attachment", layer: LayerKey, tap: Tap) -> None:
        super().__init__(attachment, layer.layer)
        self.layer = layer
        self._local = attachment.local
        self._limit_bytes = attachment.sink.limit_bytes
        self._item_bytes = _ITEM_BYTES[attachment.plan.dtype]
        self._dims = fitting_dims(tap)
        self._reduce = reduction(tap, attachment.plan.max_rows)
        self._spec: _Spec | None = None

    def __call__(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        forward = self._local.forward
        if forward is None or not forward.draw or not self.enabled or forward.too_large:
            return
        started = time.perf_counter()
        try:
            self._take(forward, output)
        except Exception as error:  # noqa: BLE001 - nothing may reach the server
            self.failed(error)
        forward.hook_seconds += time.perf_counter() - started

    def _take(self, forward: _Forward, output: Any) -> None:
        # Servers repeat their shapes, and every call saved here counts: with cold caches even a
        # slice of a tensor costs microseconds.
        tensor = output if type(output) is torch.Tensor else find_tensor(output, self._dims)
        if tensor.requires_grad:
            tensor = tensor.detach()
        spec = self._spec
        if (
            spec is None
            or tensor.shape != spec.shape
            or forward.layout != spec.layout
            or tensor.dtype is not spec.dtype
        ):
            tensor = find_tensor(output, self._dims)
            spec = self._specify(forward, tensor)
        rows = self._reduce(tensor[: spec.keep] if spec.keep else tensor, forward.draw)
        forward.taken_bytes += spec.held
        if forward.taken_bytes > self._limit_bytes:
            forward.too_large = True
            forward.taken.clear()
            return
        forward.taken.append((self.layer, spec, rows))

    def _specify(self, forward: _Forward, tensor: torch.Tensor) -> _Spec:
        """Work out whose rows an output of a new shape holds."""
        batch_items, requests = forward.layout
        entries = tensor.shape[0]
        items, named = _owners(entries, batch_items)
        keep = 0
        if named and 0 < requests < items:
            # Entries beyond the requests are padding of the server's batch.
            keep = requests * (entries // items)
            items = requests
        rows = self._reduce(tensor[: keep or entries], forward.draw)
        count, width = rows.shape
        if self._spec is not None and self._spec.width != width:
            raise ShapeMismatch(f"layer {self.name} was {self._spec.width} wide and is now {width}")
        self._spec = _Spec(
            shape=tensor.shape,
            dtype=tensor.dtype,
            layout=forward.layout,
            keep=keep,
            items=items,
            rows_per_item=count // items,
            width=width,
            size=count * width * self._item_bytes,
            held=max(rows.element_size(), self._item_bytes) * count * width + _OBJECT_BYTES,
            named=named and requests > 0,
        )
        return self._spec


def _owners(rows: int, items: int) -> tuple[int, bool]:
    """Return how many items an output's first dimension holds, and whether they are the input's.

    An output with k times the input's items holds k parts of each, next to each other, as window
    attention and flattened positions do. Anything else is nobody's in particular.
    """
    if items and rows % items == 0:
        return items, True
    return rows, False


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
        self.local = _Thread()
        seed = int.from_bytes(os.urandom(8)) if plan.seed is None else plan.seed
        self._sampler = Sampler(seed)
        self._pool = Pool(sink.limit_bytes)
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
                tapping = _LayerHook(self, layer, tap)
                self._hooks.append(tapping)
                self._handles.append(module.register_forward_hook(tapping))
            end = _End(self, "forward_end")
            self._hooks.append(end)
            # Registered last, so that a tap on the model itself has run before.
            self._handles.append(_register_always(model, end))
        except Exception:
            self.detach()
            raise

    def begin(self, args: Any, kwargs: Any) -> None:
        """Enter a forward pass and decide whether it is sampled."""
        outer = self.local.forward
        depth = 0 if outer is None else outer.depth + 1
        if depth >= _NESTING_LIMIT:
            outer, depth = None, 0
        forward = _Forward(outer, depth, time.perf_counter())
        self.local.forward = forward
        rate = min(self.plan.sampling_rate, self.sink.sampling_rate)
        draw = self._sampler.draw(rate)
        if not draw or _recording():
            return
        if not self.sink.accepting:
            self.sink.account.refuse(Drop.BREAKER_OPEN)
            return
        forward.rate = rate
        forward.requests = active_requests()
        items = _first_items(args) or _first_items(kwargs)
        forward.layout = (items, len(forward.requests))
        forward.draw = draw

    def end(self, output: object) -> None:
        """Leave a forward pass and hand its rows over."""
        forward = self.local.forward
        if forward is None:
            return
        self.local.forward = forward.outer
        now = time.perf_counter()
        seconds = now - forward.started
        try:
            # A pass that raised has no output, and half its layers.
            if output is not None:
                self._hand_over(forward)
        finally:
            sampled = bool(forward.draw)
            # The hand-over is the hooks' time too, and comes after the model's own.
            extra = time.perf_counter() - now if sampled else 0.0
            self.sink.account.forward(
                seconds + extra, forward.hook_seconds + extra, sampled=sampled
            )

    def _hand_over(self, forward: _Forward) -> None:
        if forward.too_large:
            self.sink.account.refuse(Drop.TOO_LARGE)
        if not forward.taken:
            return
        capture = _Captured(self._pool, self.plan.dtype, forward.taken)
        self.sink.offer(
            ForwardBatch(
                capture.stage,
                forward.requests,
                1.0 / forward.rate,
                forward.taken_bytes,
                capture.release,
            )
        )


class _Captured:
    """The private copies of one forward pass, until the sender has taken them off the device."""

    def __init__(
        self, pool: Pool, dtype: str, taken: list[tuple[LayerKey, _Spec, torch.Tensor]]
    ) -> None:
        self._pool = pool
        self._dtype = dtype
        self._taken = taken
        self._buffer: torch.Tensor | None = None
        # The sender waits for these; the forward pass only leaves them in its streams.
        cuda: Any = torch.cuda  # torch gives these functions no types
        devices = {rows.device for _, _, rows in taken if rows.is_cuda}
        self._events = [cuda.current_stream(device).record_event() for device in devices]

    def stage(self) -> tuple[TappedRows, ...]:
        """Bring the rows into pooled host memory."""
        parts = [rows for _, _, rows in self._taken]
        self._buffer = self._pool.stage(parts, self._dtype, self._events)
        payload = self._buffer.numpy().data
        tapped = []
        offset = 0
        for layer, spec, _ in self._taken:
            tapped.append(
                TappedRows(
                    layer,
                    self._dtype,
                    spec.items,
                    spec.rows_per_item,
                    spec.width,
                    payload[offset : offset + spec.size],
                    spec.named,
                )
            )
            offset += spec.size
        return tuple(tapped)

    def release(self) -> None:
        """Give the memory back."""
        self._taken = []
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None


def _register_always(model: torch.nn.Module, hook: _Hook) -> RemovableHandle:
    """Register a hook that also runs after a forward that raised, where torch can do that."""
    try:
        return model.register_forward_hook(hook, always_call=True)
    except TypeError:  # torch before 2.1: passes that raise are then cleared by _NESTING_LIMIT
        return model.register_forward_hook(hook)


def _recording() -> bool:
    """Whether this pass builds a trace or a CUDA graph, which must not contain our copies."""
    jit: Any = torch.jit  # torch gives these functions no types
    cuda: Any = torch.cuda
    return bool(jit.is_tracing() or (cuda.is_initialized() and cuda.is_current_stream_capturing()))


def _first_items(arguments: Any) -> int:
    """Return the first dimension of the first tensor among a forward's arguments, or 0."""
    values = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    for value in values:
        if isinstance(value, torch.Tensor) and value.dim():
            return int(value.shape[0])
    return 0


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
    one comparison a tapped module.

    Args:
        model: The module whose calls are the forward passes; eager, neither compiled nor scripted.
            When it is compiled later, the hooks stay silent inside the compiled code.
        plan: What to tap. With an empty revision the state dict is hashed, which takes about a
            second for each gigabyte of weights.
        sink: Where batches go, see ``sidecar.hooks.connect``.
        env: Where the kill switch ``SIDECAR_HOOKS_DISABLED`` is looked up.

    Returns:
        The attachment; with the kill switch set, one without hooks.

    Raises:
        InvalidName: A path or glob matches no module, or a module's path is no layer name.
        InvalidInput: The model or a tapped module is compiled or scripted, two taps measure the
            same, a canonical name covers several modules, or the sink sends for another model.
    """
    _refuse_compiled(model)
    sites = _find_sites(model, plan)
    revision = plan.revision or module_digest(model)
    layers = tuple(
        LayerKey(plan.model, revision, name, tap.kind, tap.resolved_view) for _, tap, name in sites
    )
    doubled = sorted({str(layer) for layer in layers if layers.count(layer) > 1})
    if doubled:
        raise InvalidInput(f"tapped twice: {', '.join(doubled)}: remove one of the taps")
    attachment = Attachment(plan, sink, layers)
    if env.get(KILL_SWITCH, "0") not in ("", "0"):
        return attachment
    capture = Capture(plan.server, _dtype_name(model), tap=f"sidecar.hooks.torch/{__version__}")
    hello = Hello(plan.model, revision, capture, client_version=__version__)
    sink.announce(hello, plan.sampling_rate)
    attachment.hook(model, [(module, tap) for module, tap, _ in sites])
    return attachment


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
        paths = [path for path in modules if fnmatch.fnmatchcase(path, tap.path)]
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
