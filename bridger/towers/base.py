"""What vision and text towers have in common.

A tower is a plain object beside the user's module, not a module itself: it knows the family's
blocks, layouts, masks, norms and projections, and owns no tensor.

Shapes: B batch, N expressions per image, L tokens, C channels, H W map size.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bridger.towers.views import tensor_at

T = TypeVar("T", bound="Tower")


@dataclass(frozen=True)
class Block:
    """One hookable unit of a tower.

    Attributes:
        name: dotted path below the module that the user gave.
        module: the block itself.
        width: channels C of its state.
        stride: pixels per map cell (vision), or None (text).
    """

    name: str
    module: nn.Module
    width: int
    stride: int | None = None


def is_a(module: nn.Module, library: str, *names: str) -> bool:
    """Whether a module's class, or one it derives from, is called so in that library.

    Libraries are not imported for this: a class that was never imported has no instances.
    """
    return any(
        base.__name__ in names and base.__module__.partition(".")[0] == library
        for base in type(module).__mro__
    )


def unwrap(module: Any) -> Any:
    """Return the module that the user wrapped with peft, however often, or the module itself."""
    while is_a(module, "peft", "PeftModel"):
        module = module.get_base_model()
    return module


def is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of peft around one of the tower's."""
    return is_a(module, "peft", "BaseTunerLayer", "AuxiliaryTrainingWrapper")


def bare(layer: Any) -> Any:
    """Return the tower's own layer, which peft may have wrapped, to read its sizes off."""
    while is_layer(layer):
        layer = layer.base_layer if hasattr(layer, "base_layer") else layer.original_module
    return layer


def has_prompts(module: Any) -> bool:
    """Whether it is a model of peft that puts virtual tokens before its texts."""
    if not is_a(module, "peft", "PeftModel"):
        return False
    return bool(module.active_peft_config.is_prompt_learning)


def child_at(module: nn.Module, path: str) -> Any:
    """Return the module at that dotted path, or None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return a size as libraries give it, a side or (height, width), as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def state_of(output: Any) -> Tensor:
    """Return the hidden state in a block's output: a tensor, or a tuple that starts with it."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def with_state(output: Any, state: Tensor) -> Any:
    """Return a block's output with another hidden state in the same container."""
    return (state, *output[1:]) if isinstance(output, tuple) else state


class Tower(ABC):
    """What both sides have in common.

    Attributes:
        library: the library that the family comes from.
        family: the family's name, the same for every way in which its encoder can be given.
        module: the smallest module that owns every tensor which the tower's features need.
        given: what the user gave, which may be a whole model around `module`.
        blocks: in the order in which they run.
        name: the checkpoint that the encoder was loaded from, where the library remembers it.
        recomputable: whether the library's activation checkpointing computes the same again;
            that of some models takes the blocks apart, which can then not be bridged.
    """

    library: ClassVar[str]
    family: ClassVar[str]
    module: nn.Module
    given: Any = None
    blocks: tuple[Block, ...]
    name: str | None = None
    recomputable: bool = True

    def __new__(cls, given: nn.Module | None = None, *args: Any, **options: Any) -> Tower:
        """Remember what the user gave, whatever a family's own `__init__` does."""
        tower = super().__new__(cls)
        tower.given = given
        return tower

    @classmethod
    def label(cls) -> str:
        """Return the family's full name, for messages."""
        return f"{cls.library} {cls.family}"

    @classmethod
    @abstractmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether the module is of this family, or is a whole model that holds such a tower.

        Args:
            module: what the user passed, without layers of peft around it.
        """

    @abstractmethod
    def __init__(self, given: nn.Module) -> None:
        """Read the module that the user gave; ValueError where it is built in an unknown way."""

    @abstractmethod
    def position_names(self) -> tuple[str, ...]:
        """Return the names, below `module`, of the tensors that hold position embeddings."""

    def describe(self) -> dict[str, Any]:
        """Return the identity that an adapter is saved with, in plain values for JSON.

        It is the same for a tower given alone or within a whole model.
        """
        return {
            "library": self.library,
            "class": self.family,
            "name": self.name,
            "num_blocks": len(self.blocks),
            "widths": [block.width for block in self.blocks],
        }

    def running(self: T, module: nn.Module) -> T:
        """Return a twin that runs a view of the module; the tower itself for its own module."""
        if module is self.module:
            return self
        twin = copy.copy(self)
        twin.module = module
        return twin

    def _name_blocks(
        self,
        given: nn.Module,
        blocks: Sequence[nn.Module],
        widths: Sequence[int],
        strides: Sequence[int | None],
    ) -> tuple[Block, ...]:
        """Find the blocks' names below the given module, whatever it wraps."""
        names = {id(module): name for name, module in given.named_modules()}
        return tuple(
            Block(names[id(block)], block, width, stride)
            for block, width, stride in zip(blocks, widths, strides, strict=True)
        )

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            expected, found = tuple(tensor_at(self.module, name).shape), tuple(tensor.shape)
            if expected != found:
                raise ValueError(
                    f"the adapter's tensor for {self.label()} {name!r} must have the tower's own "
                    f"shape {expected}, found {found}"
                )


def shown(shape: Any) -> str:
    """Return a shape, or whatever was found in its place, for a message."""
    return str(tuple(shape)) if isinstance(shape, torch.Size) else str(shape)
