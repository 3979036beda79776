"""Adapters with numbers of their own on small towers, saved to folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_towers import PAIRS, ids, pictures
from torch import Tensor

from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.heads import ReferringSegmentationHead

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
MASKS = (ReferringSegmentationHead, HEAD)

SOME_PAIRS = ("hf_clip_whole", "mixed", "open_clip_vit")
EACH_PAIR = [
    pytest.param(pair, marks=() if pair in SOME_PAIRS else pytest.mark.slow)
    for pair in sorted(PAIRS)
]
"""All pairs of towers; a few of them where tests have to be fast."""


def changed(model: BridgedModel, seed: int) -> BridgedModel:
    """Give everything that is trained numbers of its own, so that nothing hides behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(
    folder: Path,
    seed: int,
    pair: str = "open_clip_vit",
    *,
    config: BridgerConfig | None = SMALL,
    stages: int = 2,
    heads: dict[str, Any] | None = None,
    trainable: Sequence[str] = (),
) -> Path:
    """Write an adapter for fresh towers; its folder is called after the seed."""
    torch.manual_seed(seed)
    encoder = attach_bridgers(*PAIRS[pair](), stages, config, trainable=trainable)
    model = encoder.with_heads(**({"masks": MASKS} if heads is None else heads))
    changed(model, seed).save_pretrained(folder / str(seed))
    return folder / str(seed)


def batch(pair: str = "open_clip_vit") -> tuple[Tensor, Tensor]:
    """Pictures and texts that the pair takes."""
    return pictures(pair), ids(2)


@torch.no_grad()
def answers(model: BridgedModel, pair: str = "open_clip_vit") -> dict[str, Tensor]:
    """Every feature of a batch, and the logits of every head."""
    found = model.encode(*batch(pair))
    features = {f"map {index}": one for index, one in enumerate(found.maps)}
    heads = model(*batch(pair)).heads if len(model.heads) else {}
    logits = {name: output.logits for name, output in heads.items()}
    return {**features, "tokens": found.tokens, "sentence": found.sentence, **logits}


def alone(folder: Path, pair: str = "open_clip_vit", **options: Any) -> dict[str, Tensor]:
    """What an adapter answers that is the only one on fresh towers."""
    return answers(BridgedModel.from_pretrained(folder, *PAIRS[pair](), **options), pair)


def numbers(model: BridgedModel) -> dict[str, Tensor]:
    """Copies of all that the active adapter saves."""
    return {name: tensor.clone() for name, tensor in model.adapter_state_dict().items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether names are the same, and tensors to the last bit."""
    return found.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )
