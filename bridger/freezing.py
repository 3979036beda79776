"""Towers are frozen while an encoder is attached, and get back what they had when none is.

Any number of encoders may share (parts of) their towers and leave in any order, so flags and
modes are recorded module by module with a count of holders: the first one records, the last
one to leave restores.

Encoders leave when they are collected, too, and a garbage collection may come in the midst of
`hold`: it only notes who has left, and `hold` lets them go at its end.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn


@dataclass
class Flags:
    """What one module had before the first attach: its mode and its parameters' flags."""

    training: bool
    requires_grad: dict[str, bool]


@dataclass
class _Held:
    before: Flags
    holders: int = 0


_held: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()
_left: deque[list[nn.Module]] = deque()
_lock = threading.RLock()
_busy = False


def hold(modules: Iterable[nn.Module], before: Iterable[Flags] | None = None) -> None:
    """Freeze every module itself (not its children) and put it into eval mode.

    Args:
        modules: the modules, each once.
        before: flags to restore later, where they are known better than the modules show
            them (a copy of a frozen tower); by default what the modules have now.
    """
    modules = list(modules)
    with _alone():
        flags = [_flags(module) for module in modules] if before is None else list(before)
        for module, was in zip(modules, flags, strict=True):
            _held.setdefault(module, _Held(was)).holders += 1
            module.training = False
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(False)


def release(modules: Iterable[nn.Module]) -> None:
    """Give up a hold; what nobody holds any more gets its flags and its mode back."""
    _left.append(list(modules))
    with _lock:
        if not _busy:  # else this very thread is at work, further up its stack
            with _alone():
                pass


@contextmanager
def _alone() -> Iterator[None]:
    """Keep others out, and at the end let go those who have left."""
    global _busy
    with _lock:
        _busy = True
        try:
            yield
            while _left:
                _let_go(_left.popleft())
        finally:
            _busy = False


def _let_go(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        held = _held.get(module)
        if held is None:
            continue  # it is being collected together with its encoder
        held.holders -= 1
        if held.holders == 0:
            del _held[module]
            module.training = held.before.training
            for name, flag in held.before.requires_grad.items():
                parameter = module._parameters.get(name)
                if parameter is not None:
                    parameter.requires_grad_(flag)


def flags_before(modules: Iterable[nn.Module]) -> list[Flags]:
    """Return what the modules had before they were held."""
    return [_held[module].before for module in modules]


def are_shared(modules: Iterable[nn.Module]) -> bool:
    """Whether some of the modules are held by more than one encoder."""
    modules = list(modules)

    def found() -> bool:
        return any(_held[module].holders > 1 for module in modules if module in _held)

    if found():
        gc.collect()  # what nobody refers to any more may wait for this in a circle
    return found()


def _flags(module: nn.Module) -> Flags:
    # A module that somebody holds already shows frozen flags; `hold` keeps the first record.
    parameters = module._parameters.items()
    flags = {name: p.requires_grad for name, p in parameters if p is not None}
    return Flags(module.training, flags)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; every module gets back the mode that it had.

    Where all are in eval mode nothing is written, so that threads may do this at once.
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
