"""Tiny random towers of every family, the same on every call: two to four blocks, no downloads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bridger.towers.base import state_of

VOCAB = 64
"""Ids of every tiny text tower. The highest id ends a text, the one below starts it."""

EOS, SOS = VOCAB - 1, VOCAB - 2
CONTEXT = 12
"""Rows of every tiny text tower's position table."""

JOINT = 24
SMALL_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
"""Sizes by the names that most configs of transformers have for them."""
"""Width of the space that every tiny pair shares."""


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every tensor by its own random numbers, so that no zero hides an effect; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or tensor.ndim == 0 or "attn_mask" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 1 + 0.3 * noise.tanh()
        elif "embedding" in name and "patch" not in name:
            value = 0.5 * noise
        elif tensor.ndim == 1:
            ones = name.endswith("weight")  # the scale of a norm; everything else is a shift
            value = float(ones) + 0.1 * noise
        else:
            rows = tensor.shape[0] if name.endswith("proj") else math.prod(tensor.shape[1:])
            value = noise / math.sqrt(rows)
        tensor.data.copy_(value)
    return module.eval()


def _open_clip(vision: dict[str, Any], text: dict[str, Any], custom: bool, seed: int) -> nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    text_cfg = dict(context_length=CONTEXT, vocab_size=VOCAB, width=32, heads=2, layers=4)
    build = CustomTextCLIP if custom else CLIP
    return fill(build(JOINT, vision, {**text_cfg, **text}, quick_gelu=True), seed)


def open_clip_vit(
    image_size: int | tuple[int, int] = 32,
    patch_size: int = 8,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    custom: bool = False,
    seed: int = 0,
) -> Any:
    """open_clip `CLIP` (or `CustomTextCLIP`): ViT of 4 blocks, 48 wide; text of 4 blocks, 32 wide.

    `.visual` is the vision tower; the whole model, or `.text` of a custom one, the text tower.
    """
    vision_cfg = dict(image_size=image_size, patch_size=patch_size, width=48, head_width=16)
    return _open_clip({**vision_cfg, "layers": 4, **(vision or {})}, text or {}, custom, seed)


def open_clip_resnet(
    image_size: int = 64,
    *,
    width: int = 8,
    text: dict[str, Any] | None = None,
    custom: bool = False,
    seed: int = 0,
) -> Any:
    """open_clip `CLIP` with a ModifiedResNet: maps of 32, 64, 128 and 256 channels."""
    vision = dict(image_size=image_size, width=width, layers=[1, 2, 1, 1], head_width=64)
    return _open_clip(vision, text or {}, custom, seed)


def hf_clip_config(image_size: int = 32, patch_size: int = 8, eos: int = EOS) -> Any:
    """Configuration of a tiny transformers CLIP; `eos=2` asks for the old argmax rule."""
    from transformers import CLIPConfig

    blocks = dict(num_hidden_layers=4, intermediate_size=64, projection_dim=JOINT)
    return CLIPConfig(
        text_config=dict(
            **blocks,
            hidden_size=32,
            num_attention_heads=2,
            vocab_size=VOCAB,
            max_position_embeddings=CONTEXT,
            eos_token_id=eos,
            bos_token_id=SOS,
            pad_token_id=1,
        ),
        vision_config=dict(
            **blocks,
            hidden_size=48,
            num_attention_heads=3,
            image_size=image_size,
            patch_size=patch_size,
        ),
        projection_dim=JOINT,
    )


def hf_clip(image_size: int = 32, patch_size: int = 8, *, eos: int = EOS, seed: int = 0) -> Any:
    """transformers `CLIPModel`: vision of 4 blocks, 48 wide; text of 4 blocks, 32 wide."""
    from transformers import CLIPModel

    return fill(CLIPModel(hf_clip_config(image_size, patch_size, eos)), seed)


def hf_vision(
    image_size: int = 32, patch_size: int = 8, *, projection: bool = True, seed: int = 0
) -> Any:
    """transformers `CLIPVisionModelWithProjection`, or `CLIPVisionModel` without projection."""
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    build = CLIPVisionModelWithProjection if projection else CLIPVisionModel
    return fill(build(hf_clip_config(image_size, patch_size).vision_config), seed)


def hf_text(*, projection: bool = True, eos: int = EOS, seed: int = 0) -> Any:
    """transformers `CLIPTextModelWithProjection`, or `CLIPTextModel` without projection."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    build = CLIPTextModelWithProjection if projection else CLIPTextModel
    return fill(build(hf_clip_config(eos=eos).text_config), seed)


VISION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "open_clip_vit": lambda: open_clip_vit().visual,
    "open_clip_resnet": lambda: open_clip_resnet().visual,
    "open_clip_whole_vit": open_clip_vit,
    "open_clip_whole_resnet": open_clip_resnet,
    "hf_clip_vision": lambda: hf_vision(projection=False),
    "hf_clip_vision_projection": hf_vision,
    "hf_clip_whole": hf_clip,
}
"""What may stand on the vision side, by name: factories without arguments."""

TEXT_MODULES: dict[str, Callable[[], nn.Module]] = {
    "open_clip_whole": open_clip_vit,
    "open_clip_text": lambda: open_clip_vit(custom=True).text,
    "open_clip_text_bidirectional": lambda: (
        open_clip_vit(custom=True, text=dict(no_causal_mask=True)).text
    ),
    "open_clip_whole_custom": lambda: open_clip_vit(custom=True),
    "hf_clip_text": lambda: hf_text(projection=False),
    "hf_clip_text_projection": hf_text,
    "hf_clip_whole": hf_clip,
}
"""What may stand on the text side, by name: factories without arguments."""

PAIRS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "open_clip_vit": lambda: _sides(open_clip_vit()),
    "open_clip_resnet": lambda: _sides(open_clip_resnet()),
    "open_clip_custom": lambda: _sides(open_clip_vit(custom=True)),
    "hf_clip_projection": lambda: (hf_vision(), hf_text()),
    "hf_clip_plain": lambda: (hf_vision(projection=False), hf_text(projection=False)),
    "hf_clip_whole": lambda: (lambda clip: (clip, clip))(hf_clip()),
    "mixed": lambda: (open_clip_resnet().visual, hf_text()),
}


def pictures(pair: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Pictures of a size that the vision tower of one of `PAIRS` takes."""
    return images(batch, 64 if "resnet" in pair else 32, seed=seed)


"""Pairs (vision module, text module) as a user would pass them, by name."""


def _sides(clip: Any) -> tuple[nn.Module, nn.Module]:
    return clip.visual, getattr(clip, "text", clip)


class Watch:
    """`with Watch(tower) as states`: records every block's state; may replace its output.

    `replace(index, output)` gets what the block returned, and returns what goes on, or None.
    """

    def __init__(self, tower: Any, replace: Callable[[int, Any], Any] | None = None) -> None:
        self.states: list[Tensor] = []
        self.handles = [
            block.module.register_forward_hook(self._hook(index, replace))
            for index, block in enumerate(tower.blocks)
        ]

    def _hook(self, index: int, replace: Callable[[int, Any], Any] | None) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            self.states.append(state_of(output))
            return None if replace is None else replace(index, output)

        return hook

    def __enter__(self) -> list[Tensor]:
        return self.states

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def images(batch: int = 2, height: int = 32, width: int | None = None, *, seed: int = 0) -> Tensor:
    """Random pictures (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(batch, 3, height, width or height, generator=generator)


def ids(
    batch: int = 2, length: int = CONTEXT, *, words: int = 4, pad: int = 0, seed: int = 0
) -> Tensor:
    """Texts (B, L): SOS, up to `words` random words (row i has i fewer), EOS, padding."""
    generator = torch.Generator().manual_seed(200 + seed)
    rows = torch.full((batch, length), pad)
    for row in range(batch):
        count = max(1, min(words, length - 2) - row)
        rows[row, 0] = SOS
        rows[row, 1 : 1 + count] = torch.randint(3, SOS, (count,), generator=generator)
        rows[row, 1 + count] = EOS
    return rows
