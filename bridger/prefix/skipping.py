"""Running a tower up to one of its blocks, and running it without what comes before.

Both run the tower's own forward on a view of its module (`bridger.towers.views`) in which some
modules have another `forward`, so that hooks on them fire as always.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bridger.prefix.stores import Row, as_kept
from bridger.towers import Tower
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)


class _Reached(BaseException):
    """Ends a tower behind its prefix. No Exception, so that `except Exception` lets it pass."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Prefix:
    """What of a tower runs before its first stage, that stage's block included.

    Args:
        tower: the encoder's own.
        block: index of the first stage's block.
        apart: a module within the tower's that belongs to the other tower.

    Attributes:
        name: of that block, below the tower's module.
        blocks: the names of all that it skips.
        later: the names of blocks that come after, each with a dot behind it.
        modules: by name, all that are not known to run later: what is outside of blocks counts.
    """

    def __init__(self, tower: Tower, block: int, apart: nn.Module) -> None:
        self.tower = tower
        names = {module: name for name, module in tower.module.named_modules()}
        blocks = [names[block.module] for block in tower.blocks]
        self.name, self.later = blocks[block], tuple(f"{name}." for name in blocks[block + 1 :])
        self.blocks = blocks[: block + 1]
        self._between = _between(tower.module, self.blocks)
        after = [tower.blocks[i].module for i in range(block + 1, len(blocks))]
        if apart is not tower.module and apart in names:
            after.append(apart)
        others = {module for root in after for module in root.modules()}
        self.modules = {name: module for module, name in names.items() if module not in others}

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Return the parameters and buffers of `modules`, with their names."""
        return [
            (f"{path}.{name}", tensor)
            for path, module in self.modules.items()
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None
        ]

    def reach(self, tower: Tower, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Any:
        """Run a tower, or a twin of it, up to the block, and return what the block gives.

        Args:
            tower: what is run.
            inputs: of its `call`.
            tensors: the adapter's that stand in for its own.
        """
        forward: Any = tower.module.get_submodule(self.name).forward

        def last(*args: Any, **kwargs: Any) -> Any:
            raise _Reached(forward(*args, **kwargs))

        try:
            _changed(tower, {self.name: last}).call(*inputs, tensors)  # type: ignore[attr-defined]
        except _Reached as reached:
            return reached.output
        raise RuntimeError(f"{tower.label()} ended before its block {self.name!r}")

    def skipping(self, tower: T, output: Any) -> T:
        """Return a twin of a tower for one run, in which the prefix's blocks all give `output`."""

        def give(*args: Any, **kwargs: Any) -> Any:
            return output

        def hand_on(state: Any, *args: Any, **kwargs: Any) -> Any:
            return state

        forwards = {**dict.fromkeys(self.blocks, give), **dict.fromkeys(self._between, hand_on)}
        return _changed(tower, forwards)


class Part(NamedTuple):
    """One tensor in a block's output.

    Attributes:
        rows: the dimension of rows; None: it is the same for all of them.
        dtype: of the output.
        order: its dimensions, from the outermost in memory to the innermost.
    """

    rows: int | None
    dtype: torch.dtype
    order: tuple[int, ...]


class Layout:
    """How rows make up a block's output, which is a tensor or a flat tuple.

    Args:
        one: what the block gives for one row.
        two: what it gives for that row twice.

    Raises:
        TypeError: there is something else in it.
    """

    def __init__(self, one: Any, two: Any) -> None:
        self._is_tuple = isinstance(two, tuple)
        pairs = zip(_items(one), _items(two), strict=True)
        self._parts = [_part(*pair) for pair in pairs]

    def split(self, output: Any, dtype: torch.dtype | None) -> list[Row]:
        """Return copies of the rows of a block's output.

        Args:
            output: of B rows.
            dtype: floating-point numbers are kept so; None: as they are.
        """
        pairs = zip(self._parts, _items(output), strict=True)
        tensors = [(part, tensor) for part, tensor in pairs if part is not None]
        count = next(tensor.shape[part.rows] for part, tensor in tensors if part.rows is not None)
        return [
            tuple(
                as_kept(tensor if part.rows is None else tensor.select(part.rows, row), dtype)
                for part, tensor in tensors
            )
            for row in range(count)
        ]

    def join(self, rows: Sequence[Row], device: torch.device) -> Any:
        """Return a block's output of these rows: new tensors, laid out as the block's own."""
        kept = iter(zip(*rows, strict=True))
        items = tuple(
            None if part is None else _joined(part, next(kept), device) for part in self._parts
        )
        return items if self._is_tuple else items[0]


def _items(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _part(one: Any, two: Any) -> Part | None:
    """Return the part of which this is an example, or None where the block leaves a place empty.

    Other values, such as the sizes of maps, would have to be kept as well.
    """
    if two is None:
        return None
    if not isinstance(two, Tensor):
        raise TypeError(f"a block that returns {type(two).__name__} beside its state")
    rows = [dim for dim in range(two.ndim) if one.shape[dim] != two.shape[dim]]
    strides = two.stride()
    order = sorted(range(two.ndim), key=lambda dim: (-strides[dim], dim))
    return Part(rows[0] if rows else None, two.dtype, tuple(order))


def _joined(part: Part, kept: Sequence[Tensor], device: torch.device) -> Tensor:
    if part.rows is None:
        return kept[0].to(device, part.dtype, copy=True)
    output = torch.stack(list(kept), dim=part.rows).to(device, part.dtype)
    back = [part.order.index(dim) for dim in range(output.ndim)]
    return output.permute(part.order).contiguous().permute(back)


def _changed(tower: T, forwards: Mapping[str, Callable[..., Any]]) -> T:
    changes = {f"{name}.forward": forward for name, forward in forwards.items()}
    return tower.running(view_changing(tower.module, changes))


def _between(module: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Return what runs between blocks, where they are children of one `nn.Sequential`."""
    parent, _, _ = blocks[0].rpartition(".")
    owner = module.get_submodule(parent)
    if not isinstance(owner, nn.Sequential) or any(b.rpartition(".")[0] != parent for b in blocks):
        return []
    names = [f"{parent}.{name}" if parent else name for name in owner._modules]
    span = names[names.index(blocks[0]) : names.index(blocks[-1])]
    return [name for name in span if name not in blocks]
