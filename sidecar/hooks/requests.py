"""Which requests a forward pass serves: said by the server, read by the hooks."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import islice

from sidecar.features import NAME_LIMIT, SLICE_LIMIT, WEIGHT_LIMIT, Request, Slice

# A context variable is this module's only global; its value belongs to each thread and task.
_CURRENT: ContextVar[tuple[Request, ...]] = ContextVar("sidecar_requests", default=())

_NUMBER = (int, float)
_NOT_IN_ID = re.compile("[^!-~]")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_.:\-]")
_NOT_IN_VALUE = re.compile(r"[^A-Za-z0-9_./:\-]")


@contextmanager
def current_requests(requests: object) -> Iterator[None]:
    """Say whose rows the forward passes inside the ``with`` block compute; never raises.

    Row i of the model's input belongs to request i; rows beyond the requests are padding and are
    not sampled. A pass with fewer rows than there are requests is one of several over parts of them:
    which part is unknown, so its rows count as anonymous. A request's id decides whether it is
    sampled, the same in each of its passes. Holds for this thread and task only: enter it in the
    thread that runs the model.

    Args:
        requests: In the order of the rows, each a request's id, a mapping with the keys ``id`` and
            ``traffic`` (a mapping of a few names to values), or a ``Request``. Characters that are
            not allowed on the wire become ``_`` in whatever is sampled; an entry of another kind
            counts as anonymous, and so does every row if this is nothing to iterate over.

    Example:
        >>> with current_requests(["r-1", {"id": "r-2", "traffic": {"tenant": "Acme Corp"}}, None]):
        ...     [request.id for request in active_requests()]
        ['r-1', 'r-2', '']
    """
    token = _CURRENT.set(_read(requests))
    try:
        yield
    finally:
        # Entered in one task and left in another, as a framework's dependencies are: then the task
        # that entered has ended, and its context with it.
        with suppress(ValueError):
            _CURRENT.reset(token)


def active_requests() -> tuple[Request, ...]:
    """Return the requests of the innermost ``current_requests`` block, or none."""
    return _CURRENT.get()


def _read(requests: object) -> tuple[Request, ...]:
    """Return the server's requests, whatever it handed over."""
    if isinstance(requests, str | bytes | Mapping | Request):
        requests = (requests,)  # one by itself
    if not isinstance(requests, Iterable):
        return ()
    try:
        return tuple(map(_read_one, requests))
    except Exception:  # noqa: BLE001 - the server's own iterator, in the server's request path
        return ()


def _read_one(entry: object) -> Request:
    if type(entry) is Request and type(entry.id) is str:
        return entry
    try:
        if isinstance(entry, Request):
            return Request(_text(entry.id), entry.traffic, entry.weight)
        if isinstance(entry, Mapping):
            traffic = entry.get("traffic")
            pairs = tuple(traffic.items()) if isinstance(traffic, Mapping) else ()
            # Not checked here: ``clean`` does so for what is sampled, in the sender's thread.
            return Request(_text(entry.get("id")), Slice(pairs))
        return Request(_text(entry))
    except Exception:  # noqa: BLE001 - a foreign object's own methods
        return Request()


def _text(value: object) -> str:
    """Return an id as text; nothing for what is no id."""
    return str(value) if isinstance(value, str | int) else ""


def clean(request: Request, weight: float) -> Request:
    """Return a request as the daemon takes it: what is not allowed on the wire becomes ``_``.

    Args:
        request: As the server told it, with fields of any type.
        weight: Times the request's own; the result is held within 1 to ``WEIGHT_LIMIT``.
    """
    identifier = request.id[:NAME_LIMIT]
    if not (identifier.isascii() and identifier.isprintable()) or " " in identifier:
        identifier = _NOT_IN_ID.sub("_", identifier)
    told = request.weight if isinstance(request.weight, _NUMBER) else 1.0
    own = max(1.0, told)  # in this order a NaN gives 1
    traffic, whole = _clean_slice(request.traffic), min(own * weight, float(WEIGHT_LIMIT))
    same = traffic is request.traffic or traffic == request.traffic
    if same and identifier is request.id and whole == request.weight:
        return request  # the usual case: named well, and sampled as planned
    return Request(identifier, traffic, whole)


def _clean_slice(traffic: object) -> Slice:
    """Return the first pairs of a slice, cleaned; none of what has no text at all."""
    if isinstance(traffic, Slice):
        if not traffic.pairs:
            return traffic
        traffic = traffic.pairs
    elif isinstance(traffic, Mapping):
        traffic = tuple(traffic.items())
    if not isinstance(traffic, tuple) or not traffic:
        return Slice()
    try:
        pairs = {_clean_key(key): _NOT_IN_VALUE.sub("_", str(v)[:NAME_LIMIT]) for key, v in traffic}
    except Exception:  # noqa: BLE001 - a foreign object's own methods
        return Slice()
    whole = sorted((key, value) for key, value in pairs.items() if key and value)
    return Slice(tuple(islice(whole, SLICE_LIMIT)))


def _clean_key(key: object) -> str:
    text = _NOT_IN_KEY.sub("_", str(key)[:NAME_LIMIT])
    return "_" + text[1:] if text[:1] in {".", ":", "-"} else text
