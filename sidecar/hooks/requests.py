"""Which requests a forward pass serves: said by the server, read by the hooks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sidecar.features import Request

# A context variable is this module's only global; its value belongs to each thread and task.
_CURRENT: ContextVar[tuple[Request, ...]] = ContextVar("sidecar_requests", default=())


@contextmanager
def current_requests(requests: Iterable[Request]) -> Iterator[None]:
    """Say whose rows the forward passes inside the ``with`` block compute.

    Row i of the model's input belongs to request i; rows beyond the requests are padding and are
    not sampled. A request's id decides whether it is sampled, the same in each of its passes. Holds
    for this thread and task only: enter it in the thread that runs the model.
    Ids with characters that are not allowed on the wire are cleaned, never refused.

    Args:
        requests: In the order of the rows.

    Example:
        >>> with current_requests([Request("r-1"), Request("r-2")]):
        ...     len(active_requests())
        2
    """
    token = _CURRENT.set(tuple(requests))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def active_requests() -> tuple[Request, ...]:
    """Return the requests of the innermost ``current_requests`` block, or none."""
    return _CURRENT.get()
