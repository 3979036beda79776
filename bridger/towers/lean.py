"""Two parts of towers' blocks that compute the same, up to rounding, in less time and memory.

- torch's `nn.MultiheadAttention` turns its input round before it projects it. Over a weight that
  asks for no gradients, `F.linear` takes that for as many small products as there are tokens: at
  677 tokens and two pictures it is a third slower than over one that does, forward and backward.
- CLIP's QuickGELU, x sigmoid(1.702 x), keeps two tensors four times as wide as the state for
  backward, the most that a block keeps. As silu(1.702 x) / 1.702 it keeps one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import Tower, is_a
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)
SLOPE = 1.702


class SelfAttention:
    """The `forward` of an `nn.MultiheadAttention`, for the calls that Transformer blocks make.

    It reads the module's tensors when it is called, and leaves all other calls to the module.

    Args:
        module: whose place it takes.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention (B, L, C) over the states (B, L, C), and no weights."""
        module = self.module
        mask = options.get("attn_mask")
        alone = query is key and key is value and query.ndim == 3
        known = {"need_weights", "attn_mask"}.issuperset(options) and not args
        masked = mask is None or (mask.ndim == 2 and mask.is_floating_point())
        dropped = module.training and module.dropout
        if not (alone and known and masked) or options.get("need_weights", True) or dropped:
            attended: tuple[Tensor, Tensor | None] = module.forward(
                query, key, value, *args, **options
            )
            return attended
        packed = F.linear(query, module.in_proj_weight, module.in_proj_bias)
        q, k, v = rearrange(packed, "b l (three h d) -> three b h l d", three=3, h=module.num_heads)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        read = rearrange(read, "b h l d -> b l (h d)")
        return F.linear(read, module.out_proj.weight, module.out_proj.bias), None


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), of which backward needs one tensor."""
    return F.silu(SLOPE * x).mul_(1 / SLOPE)


def _is_attention(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and module.batch_first
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and isinstance(module.out_proj, nn.Linear)
    )


def lean_parts(block: nn.Module) -> dict[str, object]:
    """Return the changes, for `view_changing`, that make a block's parts lean.

    What stands in a module with a `forward` of its own (accelerate's offloading) stays as it is.
    """
    changes: dict[str, object] = {}
    replaced: tuple[str, ...] = ()
    for name, part in block.named_modules():
        if "forward" in vars(part):
            replaced += (f"{name}." if name else "",)
        elif not name or name.startswith(replaced):
            continue
        elif _is_attention(part):
            changes[f"{name}.forward"] = SelfAttention(cast(nn.MultiheadAttention, part))
        elif is_a(part, "open_clip", "QuickGELU") or is_a(
            part, "transformers", "QuickGELUActivation"
        ):
            changes[f"{name}.forward"] = quick_gelu
    return changes


def with_lean_parts(tower: T, owned: Iterable[str]) -> T:
    """Return a twin of a tower whose blocks are lean; the module stays as it is.

    Args:
        tower: the tower.
        owned: names of tensors, below its module, that an adapter trains in its stead; a block
            that holds one runs as it is.

    Returns:
        The twin, which is made for one run, or the tower itself where nothing would change.
    """
    names = {module: name for name, module in tower.module.named_modules()}
    replaced = [f"{name}." if name else "" for m, name in names.items() if "forward" in vars(m)]
    changes: dict[str, object] = {}
    for block in tower.blocks:
        prefix = f"{names[block.module]}."
        own = any(name.startswith(prefix) for name in owned)
        if not own and not prefix.startswith(tuple(replaced)):
            changes |= {f"{prefix}{k}": v for k, v in lean_parts(block.module).items()}
    if not changes:
        return tower
    twin = copy.copy(tower)
    twin.module = view_changing(tower.module, changes)
    return twin
