"""The contract of heads: registry, presets, configs that come back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers_heads import SPEC
from helpers_words import word_tokenizer
from test_processing import MEAN, STD
from torch import Tensor, nn

from bridger.config import Config
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import Head, HeadOutput, get_head, list_heads, register_head
from bridger.heads.attention import Attention
from bridger.processing import Placement, Processor
from bridger.texts import Texts


@dataclass(frozen=True)
class CountConfig(Config):
    width: int = 4


class CountHead(Head):
    """The example of `base.py`, so that it stays true."""

    config_class = CountConfig
    config: CountConfig

    def __init__(self, spec: EncoderSpec, config: CountConfig) -> None:
        super().__init__(spec, config)
        self.layer = nn.Linear(spec.sentence_width, 1)

    def forward(
        self,
        features: BridgedFeatures,
        labels: Tensor | None = None,
        expression_mask: Tensor | None = None,
    ) -> HeadOutput:
        return HeadOutput(self.layer(features.sentence).reshape(-1, features.num_expressions))

    def results(
        self,
        output: HeadOutput,
        processor: Processor,
        placements: Sequence[Placement],
        texts: Texts,
    ) -> list[Any]:
        return output.logits.tolist()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    import bridger.heads.registry as registry

    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))


def test_a_registered_head_is_found(names: None) -> None:
    assert register_head("count")(CountHead) is CountHead
    assert get_head("count") is CountHead
    assert CountHead.name == "count"
    assert "count" in list_heads()
    register_head("count")(CountHead)  # importing a module twice is no harm


def test_a_taken_name_is_refused(names: None) -> None:
    with pytest.raises(ValueError, match="belongs to bridger.heads.referring"):
        register_head("referring_segmentation")(CountHead)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'referring_segmentation'"):
        get_head("refering_segmentation")


@dataclass
class Spread(HeadOutput):
    spread: Tensor | None = None


def test_an_output_with_fields_of_its_own_is_not_joined_without_them() -> None:
    head = CountHead.from_spec(SPEC)
    parts = [Spread(torch.zeros(1, n), spread=torch.ones(1, n)) for n in (2, 3)]
    assert head.merge(parts[:1]) is parts[0]
    with pytest.raises(TypeError, match=r"CountHead was asked in 2 chunks.*Spread.*override merge"):
        head.merge(parts)
    assert head.merge([HeadOutput(part.logits) for part in parts]).logits.shape == (1, 5)


def test_words_that_are_no_sentences() -> None:
    head = CountHead.from_spec(SPEC)
    processor = Processor(32, MEAN, STD, word_tokenizer(), 12)
    assert head.texts(processor, np.array(["the dog", "owl"])).names == ("the dog", "owl")
    for words in (5, ["dog", 3], b"dog", [("dog", "owl")]):
        with pytest.raises(TypeError, match="expected sentences, one string each, got"):
            head.texts(processor, words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sentence"):
        head.texts(processor, [])


def test_heads_load_no_heavy_libraries() -> None:
    heavy = "torchvision transformers open_clip timm PIL".split()
    code = f"import sys, bridger.heads; print(*(m for m in {heavy} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("source_width", [None, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torch_s(source_width: int | None, masked: bool) -> None:
    torch.manual_seed(0)
    ours = Attention(16, 4, 0.0, source_width)
    torchs = nn.MultiheadAttention(16, 4, kdim=source_width, vdim=source_width, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    query, (key, value) = torch.randn(2, 5, 16), torch.randn(2, 2, 3, source_width or 16)
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    found = ours(query, key, value, mask)
    padding = None if mask is None else ~mask
    expected, _ = torchs(query, key, value, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(found, expected)


def test_attention_starts_as_torch_s() -> None:
    torch.manual_seed(0)
    ours = Attention(16, 4, 0.1, 12).state_dict()
    torch.manual_seed(0)
    torchs = nn.MultiheadAttention(16, 4, 0.1, kdim=12, vdim=12, batch_first=True).state_dict()
    assert list(ours) == list(torchs)
    assert all(torch.equal(ours[name], torchs[name]) for name in ours)
