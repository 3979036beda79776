"""A forward that can be paused: three verbs, start, resume and unwind, over pooled threads.

Notes

*Threads.* Each tower of each forward runs in a kept daemon thread, taken from a pool. A pair per
forward, not per model, lets concurrent callers, nested models and a model inside a Bridger just
work. Fresh threads would cost: a thread's first matrix product sets up its OpenMP team.

*Interrupts.* `KeyboardInterrupt` can strike the caller between any two Python calls. `turn` is the
only truth about who may run; the queues beside it only wake a sleeper, who looks at `turn` again,
so a token too many does no harm. They are C code that an interrupt cannot leave half done, which
does not hold for `threading.Condition`: its `wait` is Python and can lose its lock there. Wherever
the caller was struck, `unwind` gets the tower to its end.

*Order of gradients.* Whoever hands over also hands over its count of autograd nodes, so that all
three runs number their nodes as one thread would, and backward takes them in that order.

*References.* A worker drops its run, result and exception before it goes idle, and no frame keeps
the exception that it raises: inputs die with their last user, without the garbage collector.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from bridger._thread_state import ThreadState, autograd_count, count_up_to

R = TypeVar("R")


class _Unwind(BaseException):
    """Ends a paused tower. No Exception, so that `except Exception` in a tower lets it pass."""


@dataclass
class Paused:
    stage: int
    output: Any
    grad: bool


@dataclass
class Returned(Generic[R]):
    result: R


@dataclass
class _Raised:
    error: BaseException


_CALLER, _TOWER = "caller", "tower"


class Engine(Generic[R]):
    """A forward in a pooled worker, which stops at every hook that has its key."""

    def __init__(self, key: object, function: Callable[[], R], state: ThreadState) -> None:
        self.key = key
        self._function: Callable[[], R] | None = function
        self._state: ThreadState | None = state
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._pool = _idle
        self._begun = False
        self._over = False
        self._unwinding = False
        self._runner: dict[str, str] = {}  # who took up the forward: the first to write it
        self._turn = _CALLER
        self._mail: Any = None  # for the one whose turn it is
        self._count = 0  # autograd nodes up to the last hand-over
        self._wake_caller: SimpleQueue[None] = SimpleQueue()
        self._wake_tower: SimpleQueue[None] = SimpleQueue()

    # The caller's side.

    def start(self) -> Paused | Returned[R]:
        self._begun = True
        self._count = autograd_count()
        self._turn = _TOWER
        _hand_to_worker(self)
        return self._receive()

    def resume(self, answer: Any) -> Paused | Returned[R]:
        if self._pool is not _idle:
            raise RuntimeError(
                "This bridged forward was under way when the process forked; its towers live in "
                "the parent. Call the model anew in the child."
            )
        self._mail = answer
        self._count = autograd_count()
        self._turn = _TOWER
        self._wake_tower.put(None)
        return self._receive()

    def unwind(self) -> None:
        """Ends the forward wherever it is; does nothing when it has ended. Can be repeated."""
        self._unwinding = True
        if not self._begun or self._pool is not _idle:
            return
        if self._runner.setdefault("is", _CALLER) == _CALLER:
            return  # no worker has taken it up, and now none will
        while not self._over:
            self._turn = _TOWER
            self._wake_tower.put(None)
            self._wake_caller.get()
        self._mail = None

    def _receive(self) -> Paused | Returned[R]:
        while self._turn == _TOWER:
            self._wake_caller.get()
        mail, self._mail = self._mail, None
        if isinstance(mail, _Raised):
            try:
                raise mail.error
            finally:
                del mail
        count_up_to(self._count)
        event: Paused | Returned[R] = mail
        return event

    # The worker's side.

    def pause(self, stage: int, output: Any) -> Any:
        """Called by a hook: hands over a state and waits for the answer."""
        if not self._unwinding:
            self._mail = Paused(stage, output, torch.is_grad_enabled())
            self._count = autograd_count()
            self._turn = _CALLER
            self._wake_caller.put(None)
            while self._turn == _CALLER:
                self._wake_tower.get()
        if self._unwinding:
            raise _Unwind
        count_up_to(self._count)
        answer, self._mail = self._mail, None
        return answer

    def run(self) -> bool:
        """Runs the forward unless its caller has given it up; keeps nothing but its outcome."""
        if self._runner.setdefault("is", _TOWER) != _TOWER:
            return False
        function, state, context = self._function, self._state, self._context
        self._function = self._state = self._context = None
        _local.engine = self
        try:
            if state.grad:  # type: ignore[union-attr]
                count_up_to(self._count)
            self._mail = Returned(context.run(state.run, function))  # type: ignore[union-attr, arg-type]
        except _Unwind:
            self._mail = None
        except BaseException as error:
            # Without this frame, whose variables would live as long as the exception.
            self._mail = _Raised(error.with_traceback(_next_frame(error)))
        finally:
            self._count = autograd_count()
            _local.engine = None
        return True

    def settle(self) -> None:
        """Hands the turn back for good."""
        self._over = True
        self._turn = _CALLER
        self._wake_caller.put(None)


def _next_frame(error: BaseException) -> Any:
    return error.__traceback__ and error.__traceback__.tb_next


# The pool. `_idle` holds the inboxes of idle workers; busy ones are known to nobody else.

_Inbox = SimpleQueue[Engine[Any]]
_idle: deque[_Inbox] = deque()
_local = threading.local()  # .engine: whose forward this thread runs now


def _hand_to_worker(engine: Engine[Any]) -> None:
    try:
        # An idle inbox is popped and filled in one C call, so that no interrupt comes between.
        deque(map(SimpleQueue.put, islice(iter(_idle.pop, None), 1), (engine,)), 0)
        return
    except IndexError:
        pass  # nobody is idle
    inbox: _Inbox = SimpleQueue()
    inbox.put(engine)
    threading.Thread(target=_work, args=(_idle, inbox), name="bridger-tower", daemon=True).start()


def _work(idle: deque[_Inbox], inbox: _Inbox) -> None:
    while True:
        engine = inbox.get()
        ran = engine.run()
        idle.append(inbox)  # before the caller goes on: its next forward shall find this worker
        if ran:
            engine.settle()
        del engine


def _after_fork_in_child() -> None:
    """The parent's workers do not exist in the child."""
    global _idle, _local
    _idle = deque()
    _local = threading.local()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)


def current_engine() -> Engine[Any] | None:
    """The engine whose forward the present thread runs now, if any."""
    engine: Engine[Any] | None = getattr(_local, "engine", None)
    return engine
