"""Multi-head attention of heads, with the parameters and the start of torch's own module."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bridger.bridgers.interactor import attend


class Attention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` over (B, L, C) that leaves its inputs as they lie in memory.

    torch's own forward turns them round first. Without gradients it then takes a projection for as
    many products as there are positions: in bfloat16 on a CPU ten times as slow.

    Args:
        width: D.
        num_heads: heads; D must be divisible by them.
        dropout: probability on the attention weights, in training.
        source_width: C of keys and values; None: D.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float, source_width: int | None = None
    ) -> None:
        super().__init__(
            width, num_heads, dropout, kdim=source_width, vdim=source_width, batch_first=True
        )

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Read the values at every position of the query.

        Args:
            query: (B, Q, D).
            key: (B, K, C).
            value: (B, K, C).
            mask: (B, K), true where a value may be read; at least one per row.

        Returns:
            What was read (B, Q, D).
        """
        bias_q, bias_k, bias_v = self.in_proj_bias.chunk(3)
        weight_q, weight_k, weight_v = (
            self.in_proj_weight.chunk(3)
            if self._qkv_same_embed_dim
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        q = F.linear(query, weight_q, bias_q)
        k = F.linear(key, weight_k, bias_k)
        v = F.linear(value, weight_v, bias_v)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = self.out_proj(attend(q, k, v, self.num_heads, mask, dropout))
        return out
