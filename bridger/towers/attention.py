"""Self-attention of frozen towers, as fast as that of trained ones.

torch's `nn.MultiheadAttention` turns its input round before it projects it. Over a weight that asks
for no gradients, `F.linear` takes that for as many small products as there are tokens: at 677
tokens and two pictures it is a third slower than over one that does, forward and backward. Here
queries, keys and values are one product, with the same numbers up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import Tower
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)


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


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is torch's own attention, built in the way that towers build it."""
    return (
        type(module) is nn.MultiheadAttention
        and module.batch_first
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and isinstance(module.out_proj, nn.Linear)
        and "forward" not in vars(module)
    )


def fast_attention(module: nn.Module) -> dict[str, object]:
    """Return the changes, for `view_changing`, that let a block run `SelfAttention`."""
    return {
        f"{name}.forward": SelfAttention(part)
        for name, part in module.named_modules()
        if name and is_replaceable(part)
    }


def with_fast_attention(tower: T, owned: Iterable[str]) -> T:
    """Return a twin of a tower whose blocks run `SelfAttention`; the module stays as it is.

    Args:
        tower: the tower.
        owned: names of tensors, below its module, that an adapter trains in its stead; a block
            that holds one runs as it is.

    Returns:
        The twin, which is made for one run, or the tower itself where nothing would change.
    """
    names = {module: name for name, module in tower.module.named_modules()}
    changes: dict[str, object] = {}
    for block in tower.blocks:
        prefix = f"{names[block.module]}."
        if not any(name.startswith(prefix) for name in owned):
            changes |= {f"{prefix}{k}": v for k, v in fast_attention(block.module).items()}
    if not changes:
        return tower
    twin = copy.copy(tower)
    twin.module = view_changing(tower.module, changes)
    return twin
