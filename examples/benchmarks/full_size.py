"""Ten well-known pairs at their real sizes, random weights: one training step of each.

    python examples/benchmarks/full_size.py                  # all, each in a process of its own
    python examples/benchmarks/full_size.py "SigLIP2-B/16"   # one

Two pictures, one expression each; Bridgers at three stages (preset "paper"), the referring head's
defaults, AdamW, float32. Memory is the process's largest resident set, the towers included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import random_clip

from bridger import attach_bridgers
from bridger.heads import ReferringSegmentationHead
from bridger.summary import count

BATCH = 2
Pair = Callable[[], tuple[Any, Any, int]]


def of_open_clip(name: str) -> tuple[Any, Any, int]:
    """Both towers of one model, and the side of its pictures."""
    clip = random_clip(name)
    size = clip.visual.image_size
    return clip.visual, clip, size if isinstance(size, int) else size[0]


def of_transformers(name: str, **options: Any) -> Any:
    """An encoder built from its config, without any weights."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")(config)


def of_timm(name: str) -> Any:
    """An encoder of timm's."""
    import timm

    return timm.create_model(name, num_classes=0)


CONVNEXT = {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
PAIRS: dict[str, Pair] = {
    "CLIP ViT-B/16": lambda: of_open_clip("ViT-B-16"),
    "CLIP ViT-L/14@336": lambda: of_open_clip("ViT-L-14-336"),
    "CLIP RN101": lambda: of_open_clip("RN101"),
    "SigLIP2-B/16": lambda: of_open_clip("ViT-B-16-SigLIP2"),
    "EVA02-B/16 CLIP": lambda: of_open_clip("EVA02-B-16"),
    "MobileCLIP-S1": lambda: of_open_clip("MobileCLIP-S1"),
    "DINOv2-B + CLIP's text": lambda: (
        of_transformers("Dinov2", image_size=518, patch_size=14),
        of_open_clip("ViT-B-16")[1],
        224,
    ),
    "DINOv3-B + RoBERTa": lambda: (
        of_transformers(
            "DINOv3ViT",
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_register_tokens=4,
        ),
        of_transformers("Roberta", **ROBERTA),
        224,
    ),
    "ConvNeXt-B + BERT": lambda: (
        of_transformers("ConvNext", **CONVNEXT),
        of_transformers("Bert"),
        224,
    ),
    "Swin-B + BERT": lambda: (
        of_timm("swin_base_patch4_window7_224"),
        of_transformers("Bert"),
        224,
    ),
}
COLUMNS = ("pair", "pixels", "towers", "Bridgers", "head", "adapter on disk", "step", "peak memory")


def inputs(encoder: Any, size: int, *rows: int) -> tuple[torch.Tensor, ...]:
    """Random pictures (B, 3, size, size), ids (B[, N], L) and masks (B[, N], size, size).

    Args:
        encoder: the bridged towers.
        size: side of the pictures in pixels.
        *rows: B, or B and N.
    """
    ids = torch.randint(3, encoder.text.vocab_size - 1, (*rows, min(20, encoder.text.max_length)))
    # The highest id ends a text in CLIP's vocabularies, and is a word in all others.
    ids[..., -1] = encoder.text.vocab_size - 1
    labels = (torch.rand(*rows, size, size) > 0.9).float()
    return torch.randn(rows[0], 3, size, size), ids, labels


def measure(name: str) -> tuple[str, ...]:
    """Attach, train one step, save; return the pair's row."""
    torch.manual_seed(0)
    vision, text, size = PAIRS[name]()
    encoder = attach_bridgers(vision, text)
    model = encoder.with_head(ReferringSegmentationHead).train()
    model.processor = None
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-4)
    pixels, ids, labels = inputs(encoder, size, BATCH)
    start = time.perf_counter()
    model(pixels, ids, torch.ones_like(ids), labels=labels).loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    missing = sum(parameter.grad is None for parameter in model.trainable_parameters())
    if missing:
        raise RuntimeError(f"{name}: {missing} parameters got no gradient")
    counts = {
        group["name"]: sum(p.numel() for p in group["params"]) for group in model.parameter_groups()
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype=torch.float16)
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    towers = count(encoder.towers)
    return (
        name,
        str(size),
        f"{towers / 1e6:.1f} M",
        f"{counts['bridgers'] / 1e6:.2f} M",
        f"{counts['head'] / 1e6:.2f} M",
        f"{disk / 1e6:.1f} MB",
        f"{seconds:.1f} s",
        f"{peak:.1f} GB",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "pair", nargs="?", choices=sorted(PAIRS), metavar="PAIR", help=", ".join(PAIRS)
    )
    chosen = parser.parse_args().pair
    if chosen:
        print("| " + " | ".join(measure(chosen)) + " |", flush=True)
        return
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    for name in PAIRS:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
