"""Dense projections: from the last bridged vision state to a map in the space shared with text.

They read the tower's own norm, projection or pool, which they hold without owning: the tower's
tensors appear neither in their parameters nor in their state dict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import is_a
from bridger.towers.views import (
    by_the_batch,
    norms_among,
    resize_positions,
    square_grid,
    view_changing,
    view_with,
)


class DenseProjection(nn.Module, ABC):
    """Turns the last bridged map (B, C, H, W) into a dense map (B, `width`, H, W).

    Args:
        module: the tower's, which is held without being registered.
        width: channels of the dense map.

    Attributes:
        width: channels of the dense map.
    """

    width: int

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__()
        self._held = (module,)  # in a tuple: nn.Module registers any module set as an attribute
        self.width = width

    def borrow(self, path: str, tensors: Mapping[str, Tensor]) -> Any:
        """Return what lies at `path` below the tower's module, with `tensors` standing in.

        Where these hold a BatchNorm's running statistics, it normalises by the batch in train
        mode, as in the tower's own forward, which has moved the statistics by this batch already.

        Args:
            path: dotted, below the module.
            tensors: that stand in for the module's own, by name.
        """
        found: Any = view_with(self._held[0], tensors)
        if self.training:
            norms = norms_among(found, tensors)
            inside = [name for name in norms if f"{name}.".startswith(f"{path}.")]
            found = by_the_batch(found, inside, moves=False)
        for name in path.split("."):
            found = getattr(found, name)
        return found

    @abstractmethod
    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Project the last bridged map.

        Args:
            last_map: (B, C, H, W), the last block's bridged state.
            tensors: adapter-owned tensors by name below the tower's module, as for the tower.

        Returns:
            (B, `width`, H, W).
        """


class NormProjection(DenseProjection):
    """The tower's final norm, then its projection where it has one, on every patch.

    What the tower does to the token that it pools, done to all of them.
    """

    def __init__(self, module: nn.Module, norm: str, projection: str | None, width: int) -> None:
        """Name the tower's norm and projection (a Linear or a (C, joint) matrix) by their paths."""
        super().__init__(module, width)
        self.norm, self.projection = norm, projection

    def project(self, tokens: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Norm and project tokens: (B, L, C) to (B, L, `width`)."""
        tokens = self.borrow(self.norm, tensors)(tokens)
        if self.projection is None:
            return tokens
        projection = self.borrow(self.projection, tensors)
        linear = isinstance(projection, nn.Module)
        projected: Tensor = projection(tokens) if linear else tokens @ projection
        return projected

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Project every cell of the map; see `DenseProjection.forward`."""
        tokens = self.project(rearrange(last_map, "b c h w -> b (h w) c"), tensors)
        return rearrange(tokens, "b (h w) c -> b c h w", h=last_map.shape[2])


class Tail(DenseProjection):
    """What the tower does after its last block, module by module, before it pools.

    Attributes:
        paths: of the modules below the tower's module, in the order in which they run.
        layout: how they take the map: "b (h w) c" as tokens, "b c h w" or "b h w c" as a map.
    """

    def __init__(
        self, module: nn.Module, paths: Sequence[str], width: int, layout: str = "b (h w) c"
    ) -> None:
        """Name modules that act on every cell, in that layout."""
        super().__init__(module, width)
        self.paths, self.layout = tuple(paths), layout

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Run the modules; see `DenseProjection.forward`."""
        state = rearrange(last_map, f"b c h w -> {self.layout}")
        for path in self.paths:
            state = self.borrow(path, tensors)(state)
        return rearrange(state, f"{self.layout} -> b c h w", h=last_map.shape[2])


class QueryPoolValues(DenseProjection):
    """A pool by learned queries, on every patch alone, then norm and projection (CoCa).

        y = ln_post(W_o (V(ln_k(x))))  @ proj

    Attention over one token returns that token's value whatever the query, so this is exactly
    what pool, norm and projection make of a picture of one patch.
    """

    def __init__(
        self, module: nn.Module, pool: str, norm: str, projection: str | None, width: int
    ) -> None:
        """Name the pool (with `attn`, an `nn.MultiheadAttention`, and `ln_k`) and what follows."""
        super().__init__(module, width)
        self.pool = pool
        self.rest = NormProjection(module, norm, projection, width)

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pool every cell alone; see `DenseProjection.forward`."""
        pool = self.borrow(self.pool, tensors)
        tokens = pool.ln_k(rearrange(last_map, "b c h w -> b (h w) c"))
        values = self.rest.project(value_path(pool.attn, tokens), tensors)
        return rearrange(values, "b (h w) c -> b c h w", h=last_map.shape[2])


def value_path(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Return what attention gives for each token (..., C) when it sees no other one."""
    if is_a(attention, "peft", "BaseTunerLayer"):  # what it adds is in no weight
        first = attention.get_base_layer().batch_first  # type: ignore[operator]
        alone = tokens.reshape(-1, 1, tokens.shape[-1])
        alone = alone if first else alone.transpose(0, 1)
        seen: Tensor = attention(alone, alone, alone, need_weights=False)[0]
        return seen.reshape(*tokens.shape[:-1], -1)
    packed: Tensor | None = attention.in_proj_weight
    weight = attention.v_proj_weight if packed is None else packed.chunk(3)[2]
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[2]
    return F.linear(
        F.linear(tokens, weight, bias), attention.out_proj.weight, attention.out_proj.bias
    )


class SpatialAttentionPool(DenseProjection):
    """CLIP ResNet's attention pool with every position as a query over all positions.

        x = map + P                       P: the pool's positions without row 0, resized
        y = W_c softmax(Q(x) K(x)^T / sqrt(d)) V(x) + b_c
        y = relu(y + BN(conv1x1(map)))    with `connect` only

    The pool's mean token is left out. `connect` is the released ETRIS code's residual: it is no
    part of CLIP, random where no checkpoint fills it, frozen, and saved with the adapter. In train
    mode its BatchNorm does what the tower's do: it normalises by the batch and moves its running
    statistics where the adapter owns the tower's, and stays as in eval where not.
    """

    def __init__(self, module: nn.Module, path: str = "attnpool", connect: bool = False) -> None:
        """Read the pool at `path`; with `connect`, own a frozen convolution and BatchNorm."""
        pool: Any = module.get_submodule(path)
        width: int = pool.c_proj.out_features
        super().__init__(module, width)
        self.path = path
        self.connect: nn.Sequential | None = None
        if connect:
            channels: int = pool.c_proj.in_features
            self.connect = nn.Sequential(
                nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            )
            self.connect.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SpatialAttentionPool:
        """Switch modes like any module, but keep the frozen residual's BatchNorm in eval."""
        super().train(mode)
        if self.connect is not None:
            self.connect.eval()
        return self

    @staticmethod
    def attend(tokens: Tensor, pool: Any) -> Tensor:
        """Self-attention with the pool's weights: (B, L, C) to (B, L, joint)."""
        query, key, value = (
            rearrange(linear(tokens), "b l (n d) -> b n l d", n=pool.num_heads)
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        joint: Tensor = pool.c_proj(rearrange(attended, "b n l d -> b l (n d)"))
        return joint

    def forward(self, last_map: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pool around every cell of the map; see `DenseProjection.forward`."""
        pool = self.borrow(self.path, tensors)
        height, width = last_map.shape[-2:]
        table = pool.positional_embedding[1:]
        native = square_grid(len(table), "the attention pool's position table")
        positions = resize_positions(table, native, (height, width), prefix=0)
        tokens = rearrange(last_map, "b c h w -> b (h w) c") + positions.to(last_map.dtype)
        dense = rearrange(self.attend(tokens, pool), "b (h w) c -> b c h w", h=height)
        if self.connect is None:
            return dense
        weight = next(self.connect.parameters())
        connect: Any = self.connect
        if self.training and norms_among(self._held[0], tensors):
            connect = view_changing(connect, {"1.training": True})
        residual = connect(last_map.to(weight.dtype))
        return F.relu(dense + residual.to(dense.dtype))
