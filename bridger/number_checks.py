"""Errors about numbers in tensors, for which a GPU need not be waited for.

To look at a number on a GPU, the host waits until everything before it is done, and then the GPU
waits for the host. In a training step the answer is therefore read later, by the first check that
finds it there: the error comes a step or two after the batch that it is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

AT_MOST = 64
"""So many answers may be outstanding; further checks wait for the oldest."""


class _Outstanding(NamedTuple):
    ready: Any  # a torch.cuda.Event
    wrong: Tensor  # on the host
    explain: Callable[[], Exception]


_outstanding: deque[_Outstanding] = deque()
_lock = Lock()


def refuse_if(wrong: Tensor, explain: Callable[[], Exception]) -> None:
    """Raise an error where a condition on numbers holds, unless compiled: it would break the graph.

    Args:
        wrong: a bool scalar, on any device.
        explain: makes the error; what it refers to must not be written to until then.

    Raises:
        Exception: what `explain` returns: at once on a CPU and where gradients are off, otherwise
            in this or a later check, or in `settle`.
    """
    if torch.compiler.is_compiling():
        return
    if not answers_later(wrong):
        if wrong.is_cuda:
            settle()
        if bool(wrong):
            raise explain()
        return
    answer = torch.empty((), dtype=torch.bool, pin_memory=True)
    answer.copy_(wrong, non_blocking=True)
    ready: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record(torch.cuda.current_stream(wrong.device))
    with _lock:
        _outstanding.append(_Outstanding(ready, answer, explain))
    _raise_first(wait=False)


def answers_later(tensor: Tensor) -> bool:
    """Whether a check of this tensor's numbers is answered later: on a GPU, in training."""
    return tensor.is_cuda and torch.is_grad_enabled()


def settle() -> None:
    """Wait for all answers that are outstanding.

    Raises:
        Exception: of the first check that was right to refuse; later ones are dropped.
    """
    _raise_first(wait=True)


def _raise_first(wait: bool) -> None:
    with _lock:
        while _outstanding:
            oldest = _outstanding[0]
            if not wait and len(_outstanding) <= AT_MOST and not oldest.ready.query():
                return
            oldest.ready.synchronize()
            _outstanding.popleft()
            if bool(oldest.wrong):
                _outstanding.clear()
                raise oldest.explain()
