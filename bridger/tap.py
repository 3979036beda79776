"""Reading a tower's last state without pausing it: it need not be a stage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Lockstep runs towers in the caller's context, so that they see the caller's dict here. Towers
# called on their own, and blocks recomputed in backward, see none.
_taken: ContextVar[dict[int, Any] | None] = ContextVar("bridger_taken", default=None)


WHY_UNTRACED = (
    "bridger runs its two towers in threads of their own: compile their blocks one by one"
)


class Tap:
    """A forward hook that keeps its block's output during `taking`, and else does nothing."""

    def __init__(self, block: nn.Module) -> None:
        call_untraced(Tap)
        self._block, self._handle = block, block.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        taken = _taken.get()
        if taken is not None and id(self) in taken:
            taken[id(self)] = output

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        unhook(self._block, self._handle)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _dead

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_dead, ()


def unhook(block: nn.Module, handle: RemovableHandle) -> None:
    """Remove a forward hook; again does nothing.

    A handle's own `remove` does nothing in an object that the garbage collector finalises: the
    collector has cleared the handle's weak reference by then.
    """
    block._forward_hooks.pop(handle.id, None)


@functools.cache
def call_untraced(hooks: Any) -> None:
    """Let compiled blocks call hooks of this class as they are, untraced.

    To be called at the first attach, not at import: torch.compiler.disable imports torch._dynamo,
    which takes a second.
    """
    disable: Any = torch.compiler.disable
    hooks.__call__ = disable(hooks.__call__, reason=WHY_UNTRACED)


def _dead(module: nn.Module, args: Any, output: Any) -> None:
    """What is left of a tap on a copied tower."""


def _make_dead() -> Callable[..., None]:
    return _dead


class taking:
    """Context in which some taps keep what they see; `state(tap)` gives it back."""

    def __init__(self, *taps: Tap) -> None:
        self._states: dict[int, Any] = {id(tap): None for tap in taps}

    def __enter__(self) -> taking:
        self._token = _taken.set(self._states)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _taken.reset(self._token)

    def state(self, tap: Tap) -> Any:
        """Return the block's output as the hooks registered before the tap left it."""
        return self._states[id(tap)]
