"""Models of recipes with rivals of Bridgers, on small towers of CLIP."""

from __future__ import annotations

import torch
from helpers_towers import PAIRS, ids, images
from torch import nn

from bridger import BridgedModel
from bridger.training import Recipe

SMALL = Recipe(
    stages=2,
    bridgers=None,
    head={"width": 32, "num_layers": 1, "num_heads": 2},
    tower_learning_rate=0.01,
)


def towers() -> tuple[nn.Module, nn.Module]:
    """A ResNet and a text tower of CLIP, which holds the ResNet too."""
    vision, text = PAIRS["open_clip_resnet"]()
    return vision, text


def answers(model: BridgedModel) -> torch.Tensor:
    """Logits of two pictures, in eval mode."""
    with torch.no_grad():
        return model.eval()(images(2, 64), ids(2)).heads["head"].logits


def trained(model: BridgedModel) -> BridgedModel:
    """Take a few steps on all that is trained."""
    optimizer = torch.optim.Adam(model.trainable_parameters(), lr=0.01)
    model.train()
    for _ in range(3):
        labels = (images(2, 64)[:, 0] > 0).float()
        model(images(2, 64), ids(2), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
