"""A small misaligned pair, Bridgers one way, and the same by a plain loop."""

from __future__ import annotations

from typing import Any

import torch
from helpers_conformance import SMALL, changed
from helpers_towers import fill, open_clip_vit
from torch import Tensor, nn

from bridger import BridgedEncoder, BridgerConfig, attach_bridgers
from bridger.towers.lean import with_lean_parts

STAGES = [(0, None), (2, None), (3, None)]  # the towers have four blocks


def one_way(config: BridgerConfig = SMALL, **changes: Any) -> BridgerConfig:
    return config.replace(direction="to_vision", **changes)


CONFIGS = {
    "paper": one_way(),
    "paper, pre-norm": one_way(pre_norm=True),
    "paper, shared": one_way(share=True),
    "paper, norm of the carry": one_way(carry_norm=True),
    "no carry": one_way(carry="none"),
    "pointwise zoom": one_way(zoom="pointwise", zoom_stride=8),
    "padding read": one_way(mask_padding=False),
    "no self-attention": one_way(self_attention=False),
    "dense": one_way(interactor="dense"),
    "dense, no carry": one_way(interactor="dense", carry="none"),
    "etris_vit": one_way(BridgerConfig.preset("etris_vit", hidden_dim=16, num_heads=2)),
    "etris_vit, output carried": one_way(
        BridgerConfig.preset("etris_vit", hidden_dim=16, num_heads=2), carry="output"
    ),
    "etris_resnet": one_way(BridgerConfig.preset("etris_resnet", hidden_dim=16, ffn_dim=16)),
}


def dinov2(**changes: Any) -> Any:
    """timm's DINOv2 with registers: 4 blocks, 32 wide, patches of 14."""
    import timm

    small = dict(img_size=56, embed_dim=32, depth=4, num_heads=2, num_classes=0)
    name = "vit_small_patch14_reg4_dinov2"
    return fill(timm.create_model(name, pretrained=False, **{**small, **changes}))


def misaligned(size: int = 56) -> tuple[nn.Module, nn.Module]:
    """A pair as DETRIS has it: DINOv2 beside CLIP's text."""
    return dinov2(img_size=size), open_clip_vit(custom=True).text


def acting(
    config: BridgerConfig = CONFIGS["paper"], stages: Any = STAGES, **options: Any
) -> BridgedEncoder:
    """Bridgers that say something, on a misaligned pair, in eval mode."""
    return changed(attach_bridgers(*misaligned(), stages, config, **options)).eval()


def by_hand(encoder: BridgedEncoder, pixels: Tensor, words: Tensor, n: int = 1) -> list[Tensor]:
    """The features of a misaligned pair by a plain loop over the towers' own parts.

    Args:
        encoder: gives the towers and the Bridgers alone.
        pixels: (B, 3, H, W).
        words: (B*n, L).
        n: expressions per image.
    """
    text: Any = with_lean_parts(encoder.text).module  # other products, other last bits
    vision: Any = encoder.vision.module
    assert encoder.bridgers is not None
    x = text.token_embedding(words) + text.positional_embedding[: words.shape[1]]
    for block in text.transformer.resblocks:
        x = block(x, attn_mask=text.attn_mask[: words.shape[1], : words.shape[1]])
    tokens = text.ln_final(x)
    sentence = tokens[torch.arange(len(words)), words.argmax(dim=1)] @ text.text_projection
    mask = torch.arange(words.shape[1]) <= words.argmax(dim=1, keepdim=True)

    size = (pixels.shape[-2], pixels.shape[-1])
    height, width = size[0] // 14, size[1] // 14
    x = vision.norm_pre(vision.patch_drop(vision._pos_embed(vision.patch_embed(pixels))))
    at = [block for block, _ in encoder.stages]
    carry, maps = None, []
    for index, block in enumerate(vision.blocks):
        x = block(x)
        if index not in at:
            continue
        seen = x[:, vision.num_prefix_tokens :].mT.unflatten(2, (height, width))
        others = x[:, : vision.num_prefix_tokens]
        if index == at[0]:
            seen, others = seen.repeat_interleave(n, dim=0), others.repeat_interleave(n, dim=0)
        residual, nothing, carry = encoder.bridgers(
            at.index(index), seen, tokens, mask, carry, size
        )
        assert nothing is None
        maps.append(seen if residual is None else seen + residual)
        x = torch.cat([others, maps[-1].flatten(2).mT], dim=1)
    x = vision.norm(x)
    last = x[:, vision.num_prefix_tokens :].mT.unflatten(2, (height, width))
    return [*maps[:-1], last, tokens, sentence, x[:, 0]]
