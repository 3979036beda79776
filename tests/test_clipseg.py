"""CLIPSeg's decoder as a head; `test_head_invariants.py` has rows for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange, reduce
from helpers_heads import features
from torch import Tensor
from torch.nn import functional as F

from bridger.data.scenes import write_scenes
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.heads import get_head
from bridger.training import Recipe

SPEC = EncoderSpec((6, 10, 12), (8, 16, 32), 20, 12, True)
SMALL = {"width": 16, "num_heads": 2, "ffn_width": 32}


def head(**options: Any) -> Any:
    torch.manual_seed(0)
    made = get_head("clipseg").from_spec(SPEC, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


def attended(layer: Any, x: Tensor) -> Tensor:
    """A layer's self-attention, as torch's own function computes it."""
    parts = [layer.self_attn.get_submodule(f"{name}_proj") for name in "qkv"]
    out = layer.self_attn.out_proj
    found, _ = F.multi_head_attention_forward(
        *[rearrange(x, "b l c -> l b c")] * 3,
        x.shape[-1],
        SMALL["num_heads"],
        torch.cat([part.weight for part in parts]),
        torch.cat([part.bias for part in parts]),
        None,
        None,
        False,
        0.0,
        out.weight,
        out.bias,
        need_weights=False,
    )
    return rearrange(found, "l b c -> b l c")


def decoded(made: Any, given: BridgedFeatures) -> Tensor:
    """CLIPSeg's decoder, computed once more, for pictures of 64 x 64 pixels."""
    decoder = made.decoder
    fine, same, coarse = given.maps
    cells = [
        F.interpolate(coarse, (4, 4), mode="bilinear"),
        same,
        reduce(fine, "b c (h i) (w j) -> b c h w", "mean", i=2, j=2),
    ]
    x: Tensor = torch.zeros(())
    for number, (grid, reducing, layer) in enumerate(
        zip(cells, decoder.reduces, decoder.layers, strict=True)
    ):
        tokens = rearrange(grid, "b c h w -> b (h w) c")
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        x = x + reducing(tokens)
        if number == 0:
            scale, shift = decoder.film_mul(given.sentence), decoder.film_add(given.sentence)
            x = scale[:, None] * x + shift[:, None]
        x = layer.layer_norm1(x + attended(layer, x))
        x = layer.layer_norm2(x + layer.mlp.fc2(layer.mlp.fc1(x).relu()))
    grown = decoder.transposed_convolution(rearrange(x[:, 1:], "b (h w) c -> b c h w", h=4))
    return rearrange(grown, "(b n) 1 h w -> b n h w", n=given.num_expressions)


@pytest.mark.parametrize("refined", [False, True])
def test_logits_are_those_of_the_decoder(refined: bool) -> None:
    made, given = head(refined=refined), features(SPEC, 2, 3, (64, 64))
    found = made(given).logits
    assert found.shape == (2, 3, 64, 64)
    torch.testing.assert_close(found, decoded(made, given), rtol=1e-4, atol=1e-4)


def test_pictures_of_any_shape_get_logits_at_their_size() -> None:
    for size in ((64, 96), (96, 64), (60, 100)):
        given = features(SPEC, 2, 1, size)
        assert head()(given).logits.shape == (2, 1, *size)


def test_it_starts_from_torchs_own_distributions() -> None:
    """Whatever transformers' version makes of them: no bias is zero, and no weight is small."""
    torch.manual_seed(0)
    made: Any = get_head("clipseg").from_spec(SPEC, **SMALL)
    for layer in made.decoder.layers:
        bound = layer.self_attn.q_proj.in_features**-0.5
        for part in (layer.self_attn.q_proj, layer.self_attn.out_proj, layer.mlp.fc1):
            assert 0.8 * bound < part.weight.abs().max() <= bound
            assert part.bias.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 30, "num_heads": 4}, "width 30 does not split into num_heads=4"),
        ({"ffn_width": 0}, "ffn_width must be a positive integer"),
        ({"refined": 1}, "refined must be True or False"),
        ({"refined": True, "grid_stride": 8}, "cells of 16 pixels .* got grid_stride=8"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_head("clipseg").from_spec(SPEC, **options)


@pytest.mark.slow
def test_it_is_trained_judged_and_asked_in_the_shell(run: Any, tmp_path: Path) -> None:
    scenes, adapter = tmp_path / "scenes", tmp_path / "adapter"
    write_scenes(scenes, {"train": 16, "val": 2, "testA": 2, "testB": 2}, size=64)
    small = "head.ffn_width=32"
    code, _, said = run(
        "train", "--head", "clipseg", "--data", scenes, "--out", adapter, "--steps", 2, "--set",
        small, "--set", "batch_size=4", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, said
    assert Recipe.load(adapter / "recipe.json").head == {"width": 64, "ffn_width": 32}
    code, out, said = run(
        "evaluate", adapter, "--data", scenes, "--split", "val", "--device", "cpu"
    )
    assert code == 0 and "mIoU" in out, said
    picture = next(scenes.rglob("*.png"), None) or next(scenes.rglob("*.jpg"))
    code, out, said = run(
        "predict", picture, "the owl", "the dog", "--adapter", adapter, "--out",
        tmp_path / "mask.png",
    )  # fmt: skip
    assert code == 0, said
    assert (tmp_path / "mask-1.png").exists() and (tmp_path / "mask-2.png").exists()
