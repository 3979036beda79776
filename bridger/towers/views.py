"""Views: a module's own forward with a few of its tensors replaced, the module itself untouched.

A view is a shallow copy along the path to each replaced tensor. Everything off that path is the
very same object as in the original, hooks included, so a view costs a few dictionaries and its
blocks still meet their hooks. Swapping the tensors on the shared module for the length of a call
(`torch.func.functional_call`) would be seen by plain calls from other threads; a view is not.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridger.config import did_you_mean


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer with that dotted name.

    Raises:
        ValueError: there is none; the message offers the nearest names.
    """
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        owner = None
    if owner is not None:
        tensor = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if tensor is not None:
            return tensor
    known = [known for known, _ in [*module.named_parameters(), *module.named_buffers()]]
    raise ValueError(f"{type(module).__name__} has no tensor {name!r}: {did_you_mean(name, known)}")


def view_with(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that computes like `module` with `tensors` in place of its own.

    Args:
        module: any module; it is read, never written.
        tensors: by dotted name of a parameter or buffer, cast to the dtype of what they replace.
            Gradients flow to them, and their shapes may differ from the originals' where the
            forward accepts it.

    Returns:
        A shallow view; with no tensors, `module` itself.

    Raises:
        ValueError: a name is unknown, or a module on the way has a forward of its own that would
            lead back to the original (as accelerate's offloading hooks install).
    """
    if not tensors:
        return module
    # Adapters keep float32 copies of towers in half precision.
    cast = {name: tensor.to(tensor_at(module, name).dtype) for name, tensor in tensors.items()}
    return _view(module, cast, "")


def view_changing(module: nn.Module, changes: Mapping[str, object]) -> nn.Module:
    """Return a module that computes like `module` with children or plain attributes changed.

    Args:
        module: any module, a view included; it is read, never written.
        changes: by dotted name: a module in place of a child, any other value in place of an
            attribute that is neither parameter, buffer nor child.

    Returns:
        A shallow view; with no changes, `module` itself.

    Raises:
        ValueError: as `view_with`, for a module with a replaced `forward` on the way.
    """
    return _view(module, changes, "") if changes else module


def norms_among(module: nn.Module, tensors: Iterable[str]) -> list[str]:
    """Return the names of the BatchNorms whose running means are among these names of tensors."""
    running = (name.rpartition(".") for name in tensors)
    paths = [path for path, _, leaf in running if leaf == "running_mean"]
    return [path for path in paths if isinstance(module.get_submodule(path), _BatchNorm)]


def by_the_batch(module: nn.Module, norms: Iterable[str], *, moves: bool = True) -> nn.Module:
    """Return a module whose BatchNorms normalise by the batch, as in train mode.

    Args:
        module: any module, a view included; it is read, never written, its counters of batches
            included.
        norms: dotted names of those that do.
        moves: whether their running statistics move, in place; a view can be given copies of
            them (`view_with`).
    """
    changes: dict[str, object] = {}
    for name in norms:
        changes[f"{name}.training"] = True
        # With a momentum the number is not read, but counted up in place.
        changes[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device="cpu")
        if not moves:
            changes[f"{name}.track_running_stats"] = False
    return view_changing(module, changes)


def _view(module: nn.Module, changes: Mapping[str, object], path: str) -> nn.Module:
    view = _shallow_copy(module, path, replacing="forward" in changes)
    below: dict[str, dict[str, object]] = {}
    for name, value in changes.items():
        child, dot, rest = name.partition(".")
        if dot:
            below.setdefault(child, {})[rest] = value
            continue
        # A tensor for a Parameter stays a plain one: gradients must reach what was given.
        tables: list[dict[str, Any]] = [view._parameters, view._buffers, view._modules]
        owner = next((table for table in tables if child in table), view.__dict__)
        owner[child] = value
    for child, inner in below.items():
        original = module._modules[child]
        if original is not None:
            view._modules[child] = _view(original, inner, f"{path}{child}.")
    return view


def _shallow_copy(module: nn.Module, path: str, replacing: bool) -> nn.Module:
    """Copy a module's dictionary; its tensors, children and hooks stay the same objects.

    Args:
        module: any module.
        path: to it, for messages, with a dot behind it.
        replacing: whether its `forward` will be replaced, so that an old replacement is no harm.
    """
    attributes: dict[str, Any] = dict(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        attributes[name] = attributes[name].copy()
    # `module.compile()` leaves a compiled call that is bound to the original.
    attributes.pop("_compiled_call_impl", None)
    view = object.__new__(type(module))
    for name, value in attributes.items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            attributes[name] = types.MethodType(value.__func__, view)
        elif name == "forward" and not replacing:
            if hasattr(value, "_torchdynamo_orig_callable"):
                raise ValueError(
                    f"{path.rstrip('.')} ({type(module).__name__}) is compiled, but this tower's "
                    "call changes something inside its blocks, which compiled code would not see: "
                    "use this tower without compiling it"
                )
            raise ValueError(
                f"{path.rstrip('.') or 'the tower'} ({type(module).__name__}) has a replaced "
                "`forward`, so its tensors cannot be exchanged for one call. Remove what replaced "
                "it (for accelerate: remove_hook_from_module) before attaching"
            )
    view.__dict__.update(attributes)
    return view


def square_grid(cells: int, what: str) -> tuple[int, int]:
    """Return (n, n) for n*n cells, or raise a ValueError that names `what`."""
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{what} has {cells} cells, which is no square grid")
    return side, side


def resize_positions(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int
) -> Tensor:
    """Resize a table of position embeddings, bicubically and differentiably.

    The method is the one of the released code: `F.interpolate` with `align_corners=False` and
    without antialiasing. Half precision is resized in float32 and cast back.

    Args:
        table: (prefix + h*w, C), row-major over `old_grid` = (h, w).
        old_grid: (h, w) of the table.
        new_grid: (h', w') to resize to.
        prefix: leading rows that are no map positions; they are kept as they are.

    Returns:
        (prefix + h'*w', C); the table itself when the grids are equal.
    """
    height, width = old_grid
    if table.ndim != 2 or table.shape[0] != prefix + height * width:
        raise ValueError(
            f"expected a position table of {prefix} + {height}*{width} rows, "
            f"found shape {tuple(table.shape)}"
        )
    if new_grid == old_grid:
        return table
    kept, grid = table[:prefix], table[prefix:]
    cells = rearrange(grid, "(h w) c -> 1 c h w", h=height)
    if table.dtype in (torch.float16, torch.bfloat16):
        cells = cells.float()
    cells = F.interpolate(cells, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([kept, rearrange(cells, "1 c h w -> (h w) c").to(table.dtype)])
