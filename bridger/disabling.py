"""Which encoders run without their Bridgers, in one thread or task and in no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# One entry for each open `disabled`, so that they may be nested, and closed in any order.
_disabled: ContextVar[tuple[int, ...]] = ContextVar("bridger_disabled", default=())


@contextmanager
def disabled(encoder: object) -> Iterator[None]:
    """Disable an encoder in the current thread (or asyncio's task)."""
    _disabled.set((*_disabled.get(), id(encoder)))
    try:
        yield
    finally:
        left = list(_disabled.get())
        if id(encoder) in left:  # not so where another thread closes what this one opened
            left.remove(id(encoder))
        _disabled.set(tuple(left))


def is_disabled(encoder: object) -> bool:
    """Whether `disabled` is open for an encoder in the current thread."""
    return id(encoder) in _disabled.get()
