"""The two alignments of the referring head: hierarchical, then global; docs/method.md, 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.convolution import conv_bn_relu
from bridger.heads.attention import Attention
from bridger.heads.layers import SingleKeyAttention, map_zoom
from bridger.heads.positions import coordinates, grid_code, sequence_code
from bridger.recomputing import Recomputing

Size = tuple[int, int]


class HierarchicalAlignment(nn.Module):
    """Fuses the maps of all stages under the sentence's guidance ("neck").

        f_i = zoom_i(v_i),  s = Linear(F_s),  a_i = MHA_i(query=f_i, key=value=s)
        g_i = f_i * a_i                     gate="product", as released
        g_i = f_i + a_i                     gate="residual"
        g_i = a_i                           gate="attention", the paper's words
        F   = Conv3x3(Conv3x3([Conv1x1([g_1, ..., g_n]); x; y]))

    Every convolution is followed by BatchNorm and ReLU. The sentence is the only key, so a_i is
    the same vector at every position; with gate="attention" this means that nothing of the
    picture gets through.

    Args:
        map_widths: C_i of every map.
        map_strides: pixels per cell of every map.
        sentence_width: C_s.
        width: D.
        out_stride: pixels per cell of the fused map.
        gate: see above.
        keep_inert: hold the gates' query and key weights (see `SingleKeyAttention`).
    """

    def __init__(
        self,
        map_widths: Sequence[int],
        map_strides: Sequence[int],
        sentence_width: int,
        width: int,
        out_stride: int,
        gate: str = "product",
        keep_inert: bool = False,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.sentence = nn.Linear(sentence_width, width)
        shapes = zip(map_widths, map_strides, strict=True)
        self.zooms = nn.ModuleList(map_zoom(c, width, s, out_stride) for c, s in shapes)
        self.gates = nn.ModuleList(SingleKeyAttention(width, width, keep_inert) for _ in map_widths)
        self.merge = conv_bn_relu(len(map_widths) * width, width)
        self.place = conv_bn_relu(width + 2, width, kernel_size=3)
        self.smooth = conv_bn_relu(width, width, kernel_size=3)

    def forward(self, maps: Sequence[Tensor], sentence: Tensor, size: Size) -> Tensor:
        """Fuse the maps.

        Args:
            maps: one (B, C_i, H_i, W_i) per stage.
            sentence: F_s (B, C_s).
            size: (H, W) of the fused map.

        Returns:
            The fused map (B, D, H, W).
        """
        sentence = self.sentence(sentence)
        aligned = [
            self._align(zoom(features, size), gate(sentence))
            for features, zoom, gate in zip(maps, self.zooms, self.gates, strict=True)
        ]
        fused = self.merge(torch.cat(aligned, dim=1))
        xy = coordinates(*size, device=fused.device).to(fused.dtype)
        placed = torch.cat([fused, xy.expand(len(fused), -1, -1, -1)], dim=1)
        smoothed: Tensor = self.smooth(self.place(placed))
        return smoothed

    def _align(self, features: Tensor, attended: Tensor) -> Tensor:
        attended = rearrange(attended, "b d -> b d 1 1")
        if self.gate == "product":
            return features * attended
        if self.gate == "residual":
            return features + attended
        return attended.expand_as(features)


class LastMap(nn.Module):
    """Stands in for `HierarchicalAlignment` when that is off: the last map alone, without text.

    Args:
        map_widths, map_strides, width, out_stride: as in `HierarchicalAlignment`.
    """

    def __init__(
        self, map_widths: Sequence[int], map_strides: Sequence[int], width: int, out_stride: int
    ) -> None:
        super().__init__()
        self.zoom = map_zoom(map_widths[-1], width, map_strides[-1], out_stride)

    def forward(self, maps: Sequence[Tensor], sentence: Tensor, size: Size) -> Tensor:
        """Zoom the last of the maps (B, C_i, H_i, W_i) to (B, D, H, W)."""
        last: Tensor = self.zoom(maps[-1], size)
        return last


class GlobalAlignment(nn.Module):
    """A Transformer decoder in which every cell of the map reads the text.

    Args:
        text_width: C of the text that is read.
        width: D.
        num_layers: layers.
        num_heads: heads.
        ffn_width: hidden width of the feed-forward nets.
        dropout: probability, on attention weights too.
        single_key: whether the text is one vector (F_s), so that the cross-attention does not
            depend on the query.
    """

    def __init__(
        self,
        text_width: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        single_key: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AlignmentLayer(text_width, width, num_heads, ffn_width, dropout, single_key)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Align the map with the text.

        Args:
            features: (B, D, H, W).
            text: (B, L, C), or F_s as (B, 1, C).
            text_mask: (B, L), true where the text may be read.

        Returns:
            The aligned map (B, D, H, W).
        """
        height, width = features.shape[-2:]
        grid = grid_code(height, width, features.shape[1], features.device).to(features.dtype)
        code = sequence_code(text.shape[1], text.shape[2], text.device).to(text.dtype)
        cells = rearrange(features, "b d h w -> b (h w) d")
        for layer in self.layers:
            cells = layer(cells, grid, text, text + code, text_mask)
        aligned: Tensor = rearrange(self.norm(cells), "b (h w) d -> b d h w", h=height)
        return aligned


class AlignmentLayer(Recomputing):
    """One layer of `GlobalAlignment`, with P and p the codes of the grid and of the text:

    h = LN_1(x);  x += drop(LN_s(SelfAttn(query=key=h + P, value=h)))
    h = LN_2(x);  x += drop(LN_c(MHA(query=h + P, key=txt + p, value=txt)))
    h = LN_3(x);  x += drop(Linear(LN(drop(relu(Linear(h))))))
    """

    def __init__(
        self,
        text_width: int,
        width: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
        single_key: bool,
    ) -> None:
        super().__init__()
        self.norm_self_in = nn.LayerNorm(width)
        self.self_attn = Attention(width, num_heads, dropout)
        self.norm_self_out = nn.LayerNorm(width)
        # Over a single key the query, and what normalises it, has no effect.
        self.norm_cross_in = nn.LayerNorm(width).requires_grad_(not single_key)
        self.cross_attn: nn.Module = (
            SingleKeyAttention(text_width, width)
            if single_key
            else Attention(width, num_heads, dropout, text_width)
        )
        self.norm_cross_out = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn_width),
            nn.Linear(ffn_width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, cells: Tensor, grid: Tensor, text: Tensor, text_keys: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Run the layer.

        Args:
            cells: x (B, H*W, D).
            grid: P (H*W, D).
            text: txt (B, L, C).
            text_keys: txt + p (B, L, C).
            text_mask: (B, L), true where the text may be read.

        Returns:
            The new x (B, H*W, D).
        """
        hidden = self.norm_self_in(cells)
        query = hidden + grid
        attended = self.self_attn(query, query, hidden)
        cells = cells + self.dropout(self.norm_self_out(attended))

        attended = self._read(self.norm_cross_in(cells) + grid, text, text_keys, text_mask)
        cells = cells + self.dropout(self.norm_cross_out(attended))

        changed: Tensor = cells + self.dropout(self.ffn(self.norm_ffn(cells)))
        return changed

    def _read(self, query: Tensor, text: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        read: Tensor
        if isinstance(self.cross_attn, SingleKeyAttention):
            read = self.cross_attn(text)  # (B, 1, D): the same at every position
        else:
            read = self.cross_attn(query, keys, text, mask)
        return read
