"""What heads share that decode one fused map per row: its options, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.bridgers.zoom import target_size
from bridger.config import Config, check_flag, check_share, check_whole, did_you_mean
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads.alignment import GlobalAlignment, HierarchicalAlignment, LastMap
from bridger.heads.base import Head
from bridger.heads.projector import UPSAMPLING

GATES = ["product", "residual", "attention"]
TEXTS = ["tokens", "sentence"]


@dataclass(frozen=True)
class FusingConfig(Config):
    """Options of the fused map.

    Attributes:
        width: D, channels of the fused map.
        ffn_width: hidden width of the global alignment's feed-forward nets; None: D.
        num_layers: layers of the global alignment.
        num_heads: its attention heads.
        dropout: its dropout, on attention weights too.
        hierarchical_alignment: fuse the maps of all stages under the sentence; off, only the last
            map is used.
        global_alignment: let every cell of the fused map read the text; off, the fused map is
            decoded as it is.
        gate: how the sentence acts on a map: "product" (released code), "residual", or
            "attention" (the paper's words, see `HierarchicalAlignment`).
        decoder_text: what the global alignment reads: "tokens" (released code), or "sentence"
            (the paper's F_s).
        grid_stride: pixels per cell of the fused map, a multiple of 4; logits have a quarter of
            it. The paper's 16 suits objects of a hundred pixels; small pictures want less.
    """

    width: int = 512
    ffn_width: int | None = None
    num_layers: int = 3
    num_heads: int = 8
    dropout: float = 0.1
    hierarchical_alignment: bool = True
    global_alignment: bool = True
    gate: str = "product"
    decoder_text: str = "tokens"
    grid_stride: int = 16

    def __post_init__(self) -> None:
        if self.ffn_width is None:
            object.__setattr__(self, "ffn_width", self.width)
        for name in ("width", "ffn_width", "num_layers", "num_heads", "grid_stride"):
            check_whole(name, getattr(self, name))
        for name in ("hierarchical_alignment", "global_alignment"):
            check_flag(name, getattr(self, name))
        if self.width % 4:
            raise ValueError(
                f"width must be a multiple of 4 (sines and cosines of rows and columns), "
                f"got {self.width}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into num_heads={self.num_heads} equal parts: "
                f"change one of them"
            )
        if self.grid_stride % UPSAMPLING:
            raise ValueError(
                f"grid_stride must be a multiple of {UPSAMPLING}, since logits are "
                f"{UPSAMPLING} times as fine, got {self.grid_stride}"
            )
        check_share("dropout", self.dropout)
        for name, known in (("gate", GATES), ("decoder_text", TEXTS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown: {did_you_mean(str(value), known)}")


class FusingHead(Head):
    """A head that fuses the maps of each row under its text: hierarchical, then global alignment.

    Presets: "default", as wide as the sentence feature but at most 512, in whole 64s.

    Args:
        spec: what the bridged towers offer.
        config: the options.
        keep_inert: see `HierarchicalAlignment`.
    """

    config: FusingConfig

    def __init__(self, spec: EncoderSpec, config: FusingConfig, keep_inert: bool = False) -> None:
        super().__init__(spec, config)
        tokens = config.decoder_text == "tokens"
        grid = (spec.map_widths, spec.map_strides)
        self.hierarchical_alignment: nn.Module = (
            HierarchicalAlignment(
                *grid,
                sentence_width=spec.sentence_width,
                width=config.width,
                out_stride=config.grid_stride,
                gate=config.gate,
                keep_inert=keep_inert,
            )
            if config.hierarchical_alignment
            else LastMap(*grid, width=config.width, out_stride=config.grid_stride)
        )
        self.global_alignment = (
            GlobalAlignment(
                text_width=spec.token_width if tokens else spec.sentence_width,
                width=config.width,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                ffn_width=config.ffn_width or config.width,
                dropout=config.dropout,
                single_key=not tokens,
            )
            if config.global_alignment
            else None
        )

    @classmethod
    def presets(cls, spec: EncoderSpec) -> Mapping[str, Mapping[str, Any]]:
        """Return the presets' options."""
        return {"default": {"width": min(512, 64 * -(-spec.sentence_width // 64))}}

    def fuse(self, features: BridgedFeatures, dtype: torch.dtype) -> Tensor:
        """Return the fused map (B*N, D, ceil(H/s), ceil(W/s)), with s the grid_stride.

        Args:
            features: of B images with N expressions each.
            dtype: the head's own; towers may run in half precision.
        """
        sentence = features.sentence.to(dtype)
        fused: Tensor = self.hierarchical_alignment(
            [features_i.to(dtype) for features_i in features.maps],
            sentence,
            target_size(features.image_size, self.config.grid_stride),
        )
        if self.global_alignment is None:
            return fused
        text, text_mask = features.tokens.to(dtype), features.token_mask
        if self.config.decoder_text == "sentence":
            text, text_mask = rearrange(sentence, "b c -> b 1 c"), text_mask[:, :1]
        aligned: Tensor = self.global_alignment(fused, text, text_mask)
        return aligned

    def logit_size(self, features: BridgedFeatures) -> tuple[int, int]:
        """Return the (h, w) of the logits, `UPSAMPLING` times as fine as the fused map."""
        return target_size(features.image_size, self.config.grid_stride // UPSAMPLING)
