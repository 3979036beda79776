"""What tensors of a tower are called, without peft and with peft's layers around them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from bridger.towers.base import has_prompts, is_a, is_layer

TOWERS_OWN = ("base_layer", "original_module")
"""Children of a layer of peft that are the tower's."""

Path = tuple[str, ...]


def without_peft(name: str) -> str:
    """Return the name that a layer of peft's tower had before peft came."""
    return ".".join(part for part in name.split(".") if part not in TOWERS_OWN)


def own_modules(tower: nn.Module, *, copied: bool = True) -> Iterator[tuple[str, str, nn.Module]]:
    """Return the tower's own modules, none of peft's: name without peft, name now, module.

    Args:
        tower: the tower's module, or a module of several.
        copied: also those of which peft runs a copy instead.
    """
    seen: set[nn.Module] = set()
    for name, now, module in _own_modules(tower, (), (), copied):
        if module not in seen:
            seen.add(module)
            yield name, now, module


def _own_modules(
    module: nn.Module, name: Path, now: Path, copied: bool
) -> Iterator[tuple[str, str, nn.Module]]:
    if is_layer(module):
        if copied or not _stands_in(module):
            inner = _inner_of(module)
            below = module.get_submodule(inner)
            yield from _own_modules(below, name, (*now, inner), copied)
        return
    yield ".".join(name), ".".join(now), module
    for child, below in module.named_children():
        # peft's model for virtual tokens has children of its own.
        if not has_prompts(module) or child == "base_model":
            yield from _own_modules(below, (*name, child), (*now, child), copied)


def own_tensors(tower: nn.Module, *, buffers: bool) -> Iterator[tuple[str, str, Tensor]]:
    """Return what is the tower's own and is read there: name without peft, name now, tensor.

    Args:
        tower: the tower's module.
        buffers: the buffers instead of the parameters.
    """
    seen: set[Tensor] = set()
    for name, now, module in own_modules(tower, copied=False):
        for leaf, tensor in (module._buffers if buffers else module._parameters).items():
            if tensor is not None and tensor not in seen:
                seen.add(tensor)
                yield f"{name}.{leaf}".lstrip("."), f"{now}.{leaf}".lstrip("."), tensor


def place_now(tower: nn.Module, name: str) -> str:
    """Return the name that a tensor of a tower without peft has in the tower as it is.

    Raises:
        ValueError: it is in a layer for which peft has put a copy in its place.
    """
    module: nn.Module | None = tower
    now: list[str] = []
    for part in name.split("."):
        while module is not None and is_layer(module):
            if _stands_in(module):
                raise ValueError(
                    f"peft trains a copy of the layer at {'.'.join(now)} "
                    f"({type(module).__name__}), so the adapter's own {name!r} would do nothing: "
                    "leave that layer out of peft's config, or out of `trainable`"
                )
            now.append(_inner_of(module))
            module = module._modules[now[-1]]
        now.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(now)


def _inner_of(layer: nn.Module) -> str:
    return next(name for name in TOWERS_OWN if name in layer._modules)


def _stands_in(layer: nn.Module) -> bool:
    """Whether peft runs a copy of the tower's layer in its stead."""
    return is_a(layer, "peft", "AuxiliaryTrainingWrapper", "LNTuningLayer")
