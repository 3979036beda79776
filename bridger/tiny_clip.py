"""The embedded towers: a CLIP of a few million parameters for the embedded scenes."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from bridger.processing import Processor

ASSETS = Path(__file__).parent / "assets"
TINY_CLIP = ASSETS / "tiny_clip"
TINY_ADAPTER = ASSETS / "tiny_adapter"


def load_tiny_clip() -> tuple[nn.Module, nn.Module, Processor]:
    """Load Tiny CLIP, the offline twin of `open_clip.create_model`.

    Returns:
        The vision tower, the text tower (the whole CLIP, which holds the vision tower), and
        the processor that belongs to them.
    """
    import open_clip
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    config = json.loads((TINY_CLIP / "open_clip_config.json").read_text())
    clip = open_clip.CLIP(**config["model_cfg"])
    # BatchNorm's step counters are of no use to frozen towers and are not shipped.
    clip.load_state_dict(load_file(TINY_CLIP / "open_clip_model.safetensors"), strict=False)
    clip.eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_CLIP)
    preprocess = config["preprocess_cfg"]
    processor = Processor(
        image_size=config["model_cfg"]["vision_cfg"]["image_size"],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        tokenizer=tokenizer,
        max_length=clip.context_length,
    )
    return clip.visual, clip, processor
