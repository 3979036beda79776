"""Two parts of towers' blocks that compute the same, up to rounding, in less time and memory.

- torch's `nn.MultiheadAttention` turns its input round before it projects it. Over a weight that
  asks for no gradients, `F.linear` takes that for as many small products as there are tokens: at
  677 tokens and two pictures it is a third slower than over one that does, forward and backward.
- CLIP's QuickGELU, x sigmoid(1.702 x), keeps two tensors four times as wide as the state for
  backward, the most that a block keeps. As silu(1.702 x) / 1.702 it keeps one.

A lean part shares all that the module holds, tensors and hooks included, and stands in its place
in a view of the tower; the user's module stays as it is.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import Tower, is_a
from bridger.towers.views import view_changing

T = TypeVar("T", bound=Tower)
SLOPE = 1.702


class LeanAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` that projects queries, keys and values at once where it can."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the states (B, L, C) as blocks ask for it; other calls run as in torch.

        Args:
            query: like `key` and `value` the states.
            key: as above.
            value: as above.
            *args: of torch's forward.
            **options: likewise; `need_weights=False` and a float `attn_mask` (L, L) are known here.

        Returns:
            What was read (B, L, C), and no weights.
        """
        mask = options.get("attn_mask")
        alone = query is key and key is value and query.ndim == 3
        known = not args and {"need_weights", "attn_mask"}.issuperset(options)
        plain_mask = mask is None or (mask.ndim == 2 and mask.is_floating_point())
        dropped = self.training and self.dropout > 0
        if options.get("need_weights", True) or dropped or not (alone and known and plain_mask):
            attended: tuple[Tensor, Tensor | None] = super().forward(
                query, key, value, *args, **options
            )
            return attended
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(packed, "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        read = rearrange(read, "b h l d -> b l (h d)")
        return F.linear(read, self.out_proj.weight, self.out_proj.bias), None


class LeanQuickGELU(nn.Module):
    """CLIP's QuickGELU, of which backward needs one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x sigmoid(1.702 x).

        Args:
            x: of any shape.
        """
        return F.silu(SLOPE * x).mul_(1 / SLOPE)


def lean_parts(block: nn.Module) -> dict[str, object]:
    """Return the changes, for `view_changing`, that make a block's parts lean.

    What stands in a module that others changed (accelerate's offloading, a compilation of the
    user's) stays as it is.
    """
    changes: dict[str, object] = {}
    replaced: tuple[str, ...] = ()
    for name, part in block.named_modules():
        if _is_changed(part):
            replaced += (f"{name}." if name else "",)
        elif name and not name.startswith(replaced):
            lean = _lean_class(part)
            if lean is not None:
                changes[name] = _as(lean, part)
    return changes


def with_lean_parts(tower: T) -> T:
    """Return a twin of a tower whose blocks are lean.

    Args:
        tower: the tower.

    Returns:
        The twin, which is made for one run, or the tower itself where nothing would change.
    """
    names = {module: name for name, module in tower.module.named_modules()}
    replaced = tuple(
        f"{name}." if name else "" for module, name in names.items() if _is_changed(module)
    )
    changes: dict[str, object] = {}
    for block in tower.blocks:
        prefix = f"{names.get(block.module, '')}."
        # A block that was taken out of the tower is missed, and named, when it does not run.
        if block.module in names and not prefix.startswith(replaced):
            changes |= {f"{prefix}{name}": part for name, part in lean_parts(block.module).items()}
    return tower.running(view_changing(tower.module, changes))


def _is_changed(module: nn.Module) -> bool:
    return "forward" in vars(module) or module._compiled_call_impl is not None


def _lean_class(part: nn.Module) -> type[nn.Module] | None:
    if is_a(part, "open_clip", "QuickGELU") or is_a(part, "transformers", "QuickGELUActivation"):
        return LeanQuickGELU
    if type(part) is not nn.MultiheadAttention or not isinstance(part.out_proj, nn.Linear):
        return None
    own_projections = part.in_proj_weight is None or part.bias_k is not None or part.add_zero_attn
    return LeanAttention if part.batch_first and not own_projections else None


def _as(kind: type[nn.Module], part: nn.Module) -> nn.Module:
    """Return a module of another class that is made of the very same things."""
    lean = object.__new__(kind)
    object.__setattr__(lean, "__dict__", part.__dict__)
    return lean
