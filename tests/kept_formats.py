"""Adapters as released versions wrote them, which must load forever, and what they must answer.

    python tests/kept_formats.py        # writes tests/formats/format_N, N = FORMAT_VERSION

Run it when a release has raised `FORMAT_VERSION`, once: a folder that is there is never written
again. Towers, adapters and inputs are filled in by name (`procedural_weights`), so that nothing
depends on torch's random numbers; the towers are not kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from procedural_weights import fill
from torch import Tensor, nn

from bridger import BridgedModel, BridgerConfig, Processor, attach_bridgers
from bridger._etris_layout import ReleasedLayout
from bridger.adapter_config import FORMAT_VERSION
from bridger.heads import get_head

FORMATS = Path(__file__).parent / "formats"
EXPECTED = "expected.safetensors"
SIZE, PATCH, WIDTH, CONTEXT = 32, 8, 32, 12
VOCABULARY = "the a dog cat owl ball on left right red small of second above , and".split()
NAMES = ["[PAD]", "[UNK]", *VOCABULARY, "[SOS]", "[EOS]"]  # CLIP reads texts at the highest id
CLASSES = ("owl", ("dog", "small dog"), "red ball")
SENTENCES = ["the owl on the left", "red dog", "ball"]
BRIDGERS = BridgerConfig.preset("paper", hidden_dim=8, num_heads=2, ffn_dim=8)
HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "masks": ("referring_segmentation", {"width": 16, "num_layers": 1, "num_heads": 2}),
    "map": ("semantic_segmentation", {"width": 16, "classes": CLASSES}),
    "boxes": ("detection", {"width": 32, "num_convs": 1, "classes": CLASSES}),
    "place": ("referring_comprehension", {"width": 32, "num_convs": 1}),
    "classes": ("classification", {"classes": CLASSES}),
}


def towers() -> tuple[nn.Module, nn.Module]:
    """open_clip's CLIP as small as it gets, filled in by the names of its tensors."""
    from open_clip import CLIP

    vision = dict(image_size=SIZE, patch_size=PATCH, width=WIDTH, head_width=16, layers=3)
    text = dict(context_length=CONTEXT, vocab_size=len(NAMES), width=WIDTH, heads=2, layers=3)
    clip = CLIP(WIDTH, vision, text, quick_gelu=True).eval()
    fill_in(clip.state_dict())
    return clip.visual, clip


@torch.no_grad()
def fill_in(tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in by their names."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim:
            tensor.copy_(fill(name, tuple(tensor.shape)))


def tokenizer() -> Any:
    """A word for each id: [SOS] words [EOS]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({name: id for id, name in enumerate(NAMES)}, "[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[SOS] $A [EOS]",
        special_tokens=[(name, NAMES.index(name)) for name in ("[SOS]", "[EOS]")],
    )
    special = dict(pad_token="[PAD]", unk_token="[UNK]", bos_token="[SOS]", eos_token="[EOS]")
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def whole() -> BridgedModel:
    """An adapter with all that a folder may hold but layers of peft."""
    encoder = attach_bridgers(*towers(), 2, BRIDGERS, trainable="positions")
    heads = {name: (get_head(kind), options) for name, (kind, options) in HEADS.items()}
    model = encoder.with_heads(loss_weights={"boxes": 0.5}, **heads)
    model.processor = Processor(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), tokenizer(), CONTEXT)
    model.tower_source = "open_clip:kept-in-no-registry"
    model.etris_layout = ReleasedLayout(
        "module.", {"backbone.ln_final.weight": torch.float16}, {"attn_mask": torch.eye(3)}
    )
    fill_in(model.adapter_state_dict())
    return model.eval()


def lora() -> BridgedModel:
    """An adapter that trains LoRA in a tower beside its Bridgers."""
    from peft import LoraConfig, get_peft_model

    vision, text = towers()
    get_peft_model(vision, LoraConfig(target_modules=["c_fc"], r=2))
    encoder = attach_bridgers(vision, text, 1, BRIDGERS.replace(direction="to_vision"))
    model = BridgedModel(encoder, {})
    fill_in(model.adapter_state_dict())
    return model.eval()


def picture() -> npt.NDArray[np.uint8]:
    """A picture (40, 60, 3) of numbers that follow from nothing but their place."""
    y, x, c = np.indices((40, 60, 3))
    return ((x * x + 3 * x * y + 50 * c + 7 * y) % 256).astype(np.uint8)


@torch.no_grad()
def answers(model: BridgedModel, processor: Processor) -> dict[str, Tensor]:
    """What a model makes of the picture: inputs, features, and all that its heads put out."""
    pixels = processor.image(picture())[0][None]
    words = processor.text(SENTENCES)
    features = model.encode(pixels, words["input_ids"][None], words["attention_mask"][None])
    found = {"pixel_values": pixels, "input_ids": words["input_ids"]}
    found |= {f"maps.{index}": one for index, one in enumerate(features.maps)}
    found |= {"tokens": features.tokens, "sentence": features.sentence}
    for name, head in model.heads.items():
        asked = CLASSES if head.text == "classes" else SENTENCES
        texts = head.texts(processor, list(asked)).batch(1)
        output = head(model.encode(pixels, **texts))
        values = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
        tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        found |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}


def all_answers(folder: Path) -> dict[str, Tensor]:
    """What the kept adapters of one format answer."""
    found: dict[str, Tensor] = {}
    processor = Processor.load(folder / "whole")
    for name in ("whole", "lora"):
        model = BridgedModel.from_pretrained(folder / name, *towers())
        found |= {f"{name}.{key}": t for key, t in answers(model, processor).items()}
    return found


def main() -> None:
    """Keep the present format."""
    from safetensors.torch import save_file

    folder = FORMATS / f"format_{FORMAT_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder} is kept as it is; a new format has a number of its own")
    whole().save_pretrained(folder / "whole", torch.float16)
    lora().save_pretrained(folder / "lora")
    model = BridgedModel.from_pretrained(folder / "whole", *towers())
    model.save_head(folder / "head", "classes")
    save_file(all_answers(folder), folder / EXPECTED)


if __name__ == "__main__":
    main()
