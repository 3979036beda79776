"""Activation checkpointing: backward computes again what forward did not keep.

Towers have their libraries' switches, Bridgers' interactors and heads' layers the one here. What
holds a BatchNorm is left out: computing it twice would count a batch twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bridger.towers.base import is_a

LEVELS = ("fast", "balanced", "low")
"""How much memory training takes: see `BridgedModel.save_memory`."""

FLAGS = ("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func")
"""What the libraries' own switches set: open_clip and timm the first, transformers the others."""


class Recomputing(nn.Module):
    """A module whose forward may be computed again in backward.

    Attributes:
        recompute: whether it is.
    """

    recompute: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward, and keep nothing of it but inputs and outputs."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)


def recompute(root: nn.Module, on: bool) -> None:
    """Turn the switch of all `Recomputing` modules below."""
    for module in root.modules():
        if isinstance(module, Recomputing):
            module.recompute = on and not _counts_batches(module)


def _counts_batches(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def is_recomputing(module: nn.Module) -> bool:
    """Whether a module is one that recomputes."""
    return isinstance(module, Recomputing) and module.recompute


def check_options(kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]) -> None:
    """Raise a ValueError for what is not offered here.

    Args:
        kwargs: of torch's checkpoint.
        options: further ones of transformers' own switch.
    """
    if (kwargs or {}).get("use_reentrant"):
        raise ValueError(
            "re-entrant activation checkpointing would lose the Bridgers' gradients: leave "
            "use_reentrant out, or set it to False"
        )
    defaults = {"every_n_layers": 1, "offload": False}
    if other := {k: v for k, v in options.items() if k not in defaults or v != defaults[k]}:
        raise ValueError(
            f"every layer is recomputed, and nothing is put elsewhere: leave out {other}"
        )


@dataclass(frozen=True)
class Switched:
    """A module in a tower that was made to recompute, and what it held before."""

    module: nn.Module
    before: Mapping[str, Any]


def switch_on(tower: nn.Module) -> list[Switched]:
    """Turn on activation checkpointing where the libraries offer it and where it is off.

    For transformers this sets the flags that its own switch sets. That switch does more: it makes
    frozen embeddings ask for gradients, so that all before the first stage would be kept.
    """
    before = {module: _flags(module) for module in tower.modules()}
    done: set[nn.Module] = set()
    for module in before:
        if _is_layer(module):
            if can_recompute(module) and not recomputes(module):
                again = partial(checkpoint, use_reentrant=False)
                vars(module).update(gradient_checkpointing=True, _gradient_checkpointing_func=again)
        elif can_recompute(module) and module not in done:
            done.update(module.modules())
            module.set_grad_checkpointing(True)  # type: ignore[operator]
    return [Switched(module, had) for module, had in before.items() if _flags(module) != had]


def _flags(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name in FLAGS}


def switch_off(switched: Iterable[Switched]) -> None:
    """Turn off what `switch_on` turned on, and leave nothing of it."""
    for one in switched:
        for name in FLAGS:
            vars(one.module).pop(name, None)
        vars(one.module).update(one.before)


def can_recompute(module: nn.Module) -> bool:
    """Whether a module of a tower has a switch that changes nothing but what is kept.

    Layers of transformers recompute in train mode only. Those that drop out by themselves, not
    in a module of their own, would then do that too.
    """
    if _is_layer(module):
        code = inspect.unwrap(type(module).forward).__code__
        return "training" not in code.co_names
    # What open_clip wraps around a model of transformers would turn on the switch of that.
    inside = any(_is_layer(below) for below in module.modules())
    return hasattr(module, "set_grad_checkpointing") and not inside


def recomputes(module: nn.Module) -> bool:
    """Whether a module of a tower recomputes, if it is in train mode."""
    flag = "gradient_checkpointing" if _is_layer(module) else "grad_checkpointing"
    return getattr(module, flag, False) is True


def recomputes_in_train_mode(module: nn.Module) -> bool:
    """Whether a module of a tower must be in train mode to recompute, and may."""
    return _is_layer(module) and recomputes(module) and can_recompute(module)


def _is_layer(module: nn.Module) -> bool:
    return is_a(module, "transformers", "GradientCheckpointingLayer")
