"""Interactors: how the two modalities inform each other inside a Bridger (section 3.2).

A new interactor is one class under `register_interactor`; a config then knows it by its name.

Shapes: B batch, H W size of the zoomed map, M = H W its cells, L tokens, D hidden width.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.attention_maps import record
from bridger.bridgers.config import BridgerConfig
from bridger.bridgers.zoom import Size
from bridger.recomputing import Recomputing


class Interactor(Recomputing, ABC):
    """The contract of every interactor: both states in, both states out, in the hidden width.

    What reads the text is a `MultiheadAttention` under the name `vision` (or within a module of
    that name), what reads the picture one under `text`: `predict(..., return_attention=True)` finds
    where Bridgers look by these names.

    Args:
        config: the Bridger's options.
        updates_text: whether the new text state is read by anything. Where it is not, the
            interactor holds nothing that would serve this state alone, and returns the given one.
        updates_vision: the same for the vision state.
    """

    def __init__(
        self, config: BridgerConfig, updates_text: bool = True, updates_vision: bool = True
    ) -> None:
        super().__init__()
        self.updates_text, self.updates_vision = updates_text, updates_vision

    @abstractmethod
    def forward(
        self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
    ) -> tuple[Tensor, Tensor]:
        """Let the two states inform each other.

        Args:
            vision: (B, M, D).
            text: (B, L, D).
            token_mask: (B, L), true at tokens that may be read; None reads them all.
            size: (H, W) of the zoomed map; the M = H W cells are in its rows' order.

        Returns:
            The new vision (B, M, D) and text (B, L, D) states.
        """


InteractorT = TypeVar("InteractorT", bound=type[Interactor])
_INTERACTORS: dict[str, type[Interactor]] = {}


def register_interactor(name: str) -> Callable[[InteractorT], InteractorT]:
    """Make an `Interactor` class known as `BridgerConfig(interactor=name)`.

    Args:
        name: that no other interactor has.

    Raises:
        ValueError: the name is taken.
    """

    def register(interactor: InteractorT) -> InteractorT:
        if name in _INTERACTORS:
            raise ValueError(f"an interactor {name!r} exists already: {_INTERACTORS[name]}")
        _INTERACTORS[name] = interactor
        return interactor

    return register


def interactor_names() -> list[str]:
    """Return the names of all registered interactors."""
    return list(_INTERACTORS)


def make_interactor(
    config: BridgerConfig, updates_text: bool = True, updates_vision: bool = True
) -> Interactor:
    """Build the interactor that a config names; see `Interactor`.

    Raises:
        TypeError: it always updates a state that nothing reads here.
    """
    build = _INTERACTORS[config.interactor]
    unread = [("updates_text", "text")] * (not updates_text)
    unread += [("updates_vision", "map")] * (not updates_vision)
    for argument, state in unread:
        if argument not in inspect.signature(build).parameters:
            raise TypeError(
                f"the interactor {config.interactor!r} takes no {argument}, so a Bridger that "
                f"leaves the {state} as it is would train parameters without effect: add that "
                f"argument to {build.__name__}, or set direction='both'"
            )
    return build(config, **dict.fromkeys((argument for argument, _ in unread), False))


@register_interactor("attention")
class AttentionInteractor(Interactor):
    """The paper's ITA in both directions: self-attention, cross-attention, feed-forward.

    With x a modality's input, y the other's, and LN after every sum (post-norm, as released):

        x' = LN(x + SelfAttn(x))                y' likewise
        x'' = LN(x' + CrossAttn(query=x', key=value=y'))
        ITA(x, y) = LN(x'' + FFN(x''))

    `cross_source="input"` takes y for y' in the second line, as the released code does. With
    `pre_norm`, every sum is x + F(LN(x)) in place of LN(x + F(x)), and what cross-attention reads
    has a LayerNorm of its own. Where a state is not updated, its y' is all that is computed on its
    side, if the other one reads it. Without `self_attention` x' is x, and with `ffn_dim=0` the
    result is x''.
    """

    def __init__(
        self, config: BridgerConfig, updates_text: bool = True, updates_vision: bool = True
    ) -> None:
        super().__init__(config, updates_text, updates_vision)
        self.cross_source = config.cross_source
        self.vision = _half(config, updates_vision)
        self.text = _half(config, updates_text)

    def forward(
        self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
    ) -> tuple[Tensor, Tensor]:
        attended_vision = vision if self.vision is None else self.vision.attend_to_self(vision)
        attended_text = text if self.text is None else self.text.attend_to_self(text, token_mask)
        read_vision, read_text = vision, text
        if self.cross_source == "attended":
            read_vision, read_text = attended_vision, attended_text
        if isinstance(self.vision, _Direction):
            vision = self.vision.attend_to_other(attended_vision, read_text, token_mask)
        if isinstance(self.text, _Direction):
            text = self.text.attend_to_other(attended_text, read_vision)
        return vision, text


@register_interactor("gate")
class GateInteractor(Interactor):
    """The released code's ITA for ViT: a product with what cross-attention reads.

        ITA(x, y) = x * CrossAttn(query=x, key=value=y)

    There is no residual, norm, feed-forward net or dropout in it.
    """

    def __init__(
        self, config: BridgerConfig, updates_text: bool = True, updates_vision: bool = True
    ) -> None:
        super().__init__(config, updates_text, updates_vision)
        if updates_vision:
            self.vision = MultiheadAttention(config.hidden_dim, config.num_heads)
        if updates_text:
            self.text = MultiheadAttention(config.hidden_dim, config.num_heads)

    def forward(
        self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
    ) -> tuple[Tensor, Tensor]:
        new_vision = (
            vision * self.vision(vision, text, token_mask) if self.updates_vision else vision
        )
        return new_vision, text * self.text(text, vision) if self.updates_text else text


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters, names and initialisation of torch's own module.

    Args:
        dim: D.
        num_heads: heads; D must be divisible by them.
        dropout: probability on the attention weights, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read `source`, which is key and value, at every position of `query`.

        Args:
            query: (B, Q, D).
            source: (B, K, D); the very same tensor where a modality reads itself.
            source_mask: (B, K), true where `source` may be read; at least one per row.

        Returns:
            What was read (B, Q, D).
        """
        weight_q, weight_kv = self.in_proj_weight.tensor_split([query.shape[-1]])
        bias_q, bias_kv = self.in_proj_bias.tensor_split([query.shape[-1]])
        q = F.linear(query, weight_q, bias_q)
        k, v = F.linear(source, weight_kv, bias_kv).chunk(2, dim=-1)
        if query is not source and not torch.compiler.is_compiling():
            record(self, q, k, self.num_heads, source_mask)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = self.out_proj(attend(q, k, v, self.num_heads, source_mask, dropout))
        return out


def attend(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Read projected values by projected queries and keys.

    Args:
        query: (B, Q, D).
        key: (B, K, D).
        value: (B, K, D).
        num_heads: heads.
        mask: (B, K), true where a value may be read; at least one per row.
        dropout: probability on the attention weights.

    Returns:
        What was read (B, Q, D), not projected yet.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (query, key, value))
    mask = None if mask is None else rearrange(mask, "b k -> b 1 1 k")
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return rearrange(read, "b h n d -> b n (h d)")


class _SelfAttention(nn.Module):
    """What both directions of `AttentionInteractor` begin with."""

    self_attn: MultiheadAttention | None

    def __init__(self, config: BridgerConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        if config.self_attention:
            self.self_attn = MultiheadAttention(dim, config.num_heads, config.dropout)
            self.norm_self = nn.LayerNorm(dim)
        else:
            self.self_attn = None
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.pre_norm

    def attend_to_self(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return x' (B, n, D) from x (B, n, D)."""
        attention = self.self_attn
        if attention is None:
            return x
        return self._add(x, self.norm_self, lambda h: attention(h, h, mask))

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x with a branch added, normed before the branch or after the sum."""
        added: Tensor
        if self.pre_norm:
            added = x + self.dropout(branch(norm(x)))
        else:
            added = norm(x + self.dropout(branch(x)))
        return added


class _Direction(_SelfAttention):
    """One modality's half of `AttentionInteractor`."""

    ffn_up: nn.Linear | None

    def __init__(self, config: BridgerConfig) -> None:
        super().__init__(config)
        dim = config.hidden_dim
        self.cross_attn = MultiheadAttention(dim, config.num_heads, config.dropout)
        self.norm_cross = nn.LayerNorm(dim)
        if config.ffn_width:
            self.ffn_up = nn.Linear(dim, config.ffn_width)
            self.ffn_down = nn.Linear(config.ffn_width, dim)
            self.norm_ffn = nn.LayerNorm(dim)
        else:
            self.ffn_up = None
        if config.pre_norm:
            self.norm_other = nn.LayerNorm(dim)

    def attend_to_other(self, x: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ITA's result (B, n, D) from x' (B, n, D) and the other modality (B, m, D)."""
        if self.pre_norm:
            other = self.norm_other(other)
        x = self._add(x, self.norm_cross, lambda h: self.cross_attn(h, other, mask))
        up = self.ffn_up
        if up is None:
            return x
        return self._add(x, self.norm_ffn, lambda h: self.ffn_down(self.dropout(F.relu(up(h)))))


def _half(config: BridgerConfig, updated: bool) -> _Direction | _SelfAttention | None:
    """Return a modality's half; where nothing reads its result, what the other half reads of it."""
    if updated:
        return _Direction(config)
    return _SelfAttention(config) if config.cross_source == "attended" else None
