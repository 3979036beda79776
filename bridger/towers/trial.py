"""Trial forwards: what every module below an unknown tower gets and returns, and no trace left."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bridger.towers.base import state_of


class UnreadableTowerError(TypeError):
    """A module that cannot be a tower of the wanted side, whatever its parts are called."""


@dataclass(frozen=True)
class Firing:
    """One call of one module.

    Attributes:
        name: dotted path below the module that was tried.
        module: the module itself.
        given: the first state among its inputs, or the first tensor; None without a tensor.
        state: its output, or the first element of a tuple; None where that is no tensor.
        version: of the state when the call ended; operations in place count it up.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    state: Tensor | None
    version: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the state's shape, empty where there is no state."""
        return () if self.state is None else tuple(self.state.shape)

    @property
    def overwritten(self) -> bool:
        """Whether what ran later has changed the state in place."""
        return self.state is not None and version_of(self.state) != self.version


@dataclass(frozen=True)
class Trace:
    """What a trial forward left: every firing, in the order in which they ended, and the result."""

    firings: Sequence[Firing]
    result: Any

    def before(self, block: Firing) -> list[Firing]:
        """Return what ran outside a block before it ended, enclosing modules left out."""
        inside = f"{block.name}."
        earlier = self.firings[: self.firings.index(block)]
        return [firing for firing in earlier if not firing.name.startswith(inside)]


def watch(module: nn.Module, run: Callable[[], Any]) -> Trace:
    """Run a module in eval mode under no_grad, watched by hooks on all that lies below it.

    Afterwards hooks are gone, modes and the random state are as before; whatever `run` raises
    comes through.
    """
    firings: list[Firing] = []

    def recorder(name: str, watched: nn.Module) -> Callable[..., None]:
        def record(fired: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # What fired may be a view of what is watched. The tensors are kept, so that no two
            # states can share an id.
            state = None if isinstance(output, tuple) and not output else state_of(output)
            kept = state if isinstance(state, Tensor) else None
            version = 0 if kept is None else version_of(kept)
            firings.append(Firing(name, watched, given_state(args, kwargs), kept, version))

        return record

    handles: list[Any] = []
    try:
        for name, below in module.named_modules():
            handles.append(below.register_forward_hook(recorder(name, below), with_kwargs=True))
        with _quiet(module):
            return Trace(firings, run())
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, random numbers that nobody misses, and every attribute put back.

    Some modules keep what they learn about a picture (a smaller window, a longer table), swap
    their own parts for a short text, or hook themselves.
    """
    before = [_Kept(below) for below in module.modules()]
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    try:
        for kept in before:
            kept.module.training = False
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for kept in before:
            kept.put_attributes_back()
        for kept in before:
            kept.put_contents_back()


class _Kept:
    """What one module held: attributes, what is in those that are containers, its buffers.

    Containers are read and written by their base classes: a subclass may refuse, or do more.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes = module, dict(vars(module))
        held = self.attributes.values()
        self.contents = [(v, _inside(v)) for v in held if isinstance(v, (dict, list, set))]
        buffers = [buffer for buffer in module._buffers.values() if buffer is not None]
        self.buffers = [(buffer, buffer.clone(), version_of(buffer)) for buffer in buffers]

    def put_attributes_back(self) -> None:
        """Give the module the same attributes again, its mode among them."""
        now = vars(self.module)
        for name in now.keys() - self.attributes.keys():
            del now[name]
        now.update(self.attributes)

    def put_contents_back(self) -> None:
        """Give containers what they held, and buffers their numbers, where these differ."""
        for container, then in self.contents:
            now = _inside(container)
            if [*map(id, _flat(now))] != [*map(id, _flat(then))]:  # others may be running it
                _fill(container, then)
        for buffer, numbers, version in self.buffers:
            if version_of(buffer) != version or not _same_numbers(buffer, numbers):
                _write(buffer, numbers)


def _inside(container: Any) -> Any:
    if isinstance(container, dict):
        return dict(dict.items(container))
    return list(container) if isinstance(container, list) else set(container)


def _flat(content: Any) -> Iterator[Any]:
    return (x for item in content.items() for x in item) if isinstance(content, dict) else content


def _fill(container: Any, content: Any) -> None:
    kind: Any = next(k for k in (OrderedDict, dict, list, set) if isinstance(container, k))
    kind.clear(container)
    if isinstance(content, dict):
        for key, value in content.items():
            kind.__setitem__(container, key, value)
    elif kind is list:
        list.extend(container, content)
    else:
        set.update(container, content)


def _write(buffer: Tensor, numbers: Tensor) -> None:
    try:
        with torch.no_grad():
            buffer.copy_(numbers)
    except RuntimeError:  # resized, or one number in many places
        buffer.data = numbers


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    dense = one.layout is torch.strided and not one.is_quantized
    return not dense or torch.equal(one, other)  # the others count their versions


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


def given_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    states = [tensor for tensor in tensors if tensor.ndim >= 3 and tensor.is_floating_point()]
    return next(iter([*states, *tensors]), None)


def home_of(module: nn.Module) -> Tensor:
    """Return a floating-point parameter, which has the dtype and device that inputs need.

    Raises:
        UnreadableTowerError: there is none.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    raise UnreadableTowerError(f"{type(module).__name__} has no floating-point parameter")


def hinted(module: nn.Module, *names: str) -> Iterator[Any]:
    """Yield what modules and their configs say under any of these names, outermost first."""
    for below in module.modules():
        for owner in (below, getattr(below, "config", None)):
            for name in names:
                value = getattr(owner, name, None)
                if value is not None and not isinstance(value, (bool, nn.Module, Tensor)):
                    yield value


def takes(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has an argument of that name."""
    return name in inspect.signature(module.forward).parameters


RESULTS = ("image_embeds", "text_embeds", "pooler_output", "last_hidden_state")
"""Fields that libraries call the pooled and the per-token result, in order of preference."""


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors that a tower's result holds, the most telling first."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        named = [result[name] for name in RESULTS if name in result]
        found = [*named, *(value for name, value in result.items() if name not in RESULTS)]
    elif isinstance(result, (tuple, list)):
        found = list(result)
    else:
        found = [getattr(result, name, None) for name in RESULTS]
    return [value for value in found if isinstance(value, Tensor)]


def pooled_in(result: Any) -> Tensor | None:
    """Return the first feature (B, D) in a result, or None; (B, D, 1, 1) counts as one."""
    for tensor in tensors_in(result):
        flat = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        if flat.ndim == 2 and flat.is_floating_point():
            return flat
    return None
