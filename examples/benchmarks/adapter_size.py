"""How large an adapter's folder is for CLIP ViT-B/16 at 416 pixels (random weights).

python examples/benchmarks/adapter_size.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import open_clip

from bridger import attach_bridgers
from bridger.heads import ReferringSegmentationHead


def megabytes(folder: str) -> float:
    return sum(file.stat().st_size for file in Path(folder).rglob("*")) / 1e6


def main() -> None:
    clip = open_clip.create_model("ViT-B-16-quickgelu", force_image_size=416)
    towers = sum(p.numel() * p.element_size() for p in clip.parameters()) / 1e6
    print(f"towers: {towers:.1f} MB")
    for preset in ("etris_vit", "paper"):
        for trainable in ((), ("positions",)):
            bridged = attach_bridgers(clip.visual, clip, 3, preset, trainable=trainable)
            for name, head in (("Bridgers alone", None), ("with the decoder", "etris")):
                heads = (
                    {} if head is None else {"head": (ReferringSegmentationHead, {"preset": head})}
                )
                model = bridged.with_heads(**heads)
                model.processor = None
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(folder)
                    positions = " and trained positions" if trainable else ""
                    print(f"{preset}, {name}{positions}: {megabytes(folder):.2f} MB")
            bridged.detach()


if __name__ == "__main__":
    main()
