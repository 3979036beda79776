"""Features and small models for the tests of the classification head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from helpers_heads import SPEC, features
from torch import Tensor

import bridger
from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.answering import answer
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import ClassificationHead
from bridger.texts import Texts

POOLED = replace(SPEC, pooled_width=12)
APART = replace(SPEC, joint=False, pooled_width=18)
SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
ANIMALS = ("owl", "cat", "drum")
TEMPLATES = ("{}", "the {}", "a small {} on the left")


def given(spec: EncoderSpec = POOLED, batch: int = 2, n: int = 3) -> BridgedFeatures:
    """Features of pictures that each row of text changed."""
    pooled = torch.randn(batch * n, spec.pooled_width) if spec.pooled_width else None
    return replace(features(spec, batch, n), pooled=pooled)


def head_of(spec: EncoderSpec = POOLED, **options: Any) -> ClassificationHead:
    """A head with numbers of its own everywhere, so that nothing hides behind zeros."""
    head = ClassificationHead.from_spec(spec, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return head


def tiny(noise: float = 0.0, **options: Any) -> BridgedModel:
    """The embedded pair with fresh Bridgers and a fresh head, or both moved."""
    vision, text, _ = bridger.load_tiny_clip()
    model = attach_bridgers(vision, text, 2, SMALL).with_head(ClassificationHead, **options)
    with torch.no_grad():
        for parameter in model.trainable_parameters() if noise else ():
            parameter.add_(noise * torch.randn(parameter.shape))
    return model.eval()


def asked(model: BridgedModel, pixels: Tensor, texts: Texts, rows: int = 64) -> Tensor:
    """Probabilities of a model's one head, asked in chunks of so many rows."""
    output = answer(model, "head", pixels, texts, rows)
    head: Any = model.heads["head"]
    return head.probabilities(output.logits)
