"""Four pictures learned by heart: picture, words, Bridgers, head and loss fit together."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from bridger.etris import MEAN, STD
from bridger.processing import Processor
from bridger.training import Recipe

SCRIPT = Path(__file__).parent.parent / "examples" / "overfit.py"


@pytest.mark.slow
def test_four_layers_fit_four_pictures(tmp_path: Path) -> None:
    """The recipe for ViT-B/16, on towers of 4 layers, with a head as narrow at a higher rate."""
    overfit = runpy.run_path(str(SCRIPT))
    clip = open_clip.CLIP(
        embed_dim=64,
        vision_cfg=dict(image_size=224, patch_size=16, width=128, layers=4, head_width=32),
        text_cfg=dict(context_length=77, vocab_size=49408, width=128, heads=4, layers=4),
        quick_gelu=True,
    )
    recipe = Recipe.preset(
        "etris-vit-b16",
        steps=150,
        batch_size=4,
        precision="float32",
        head={"preset": "etris", "width": 64},
        learning_rate=1e-3,
    )
    processor = Processor(224, MEAN, STD, open_clip.tokenizer.SimpleTokenizer(), 77)
    model = recipe.build(clip.visual, clip, processor)
    samples = overfit["choose"](tmp_path, model.processor, recipe.batch_size)
    assert len({sample.image_path for sample in samples}) == 4
    assert max(overfit["judge"](model, samples)) < 0.5
    lowest = (min(scores) for _, _, scores in overfit["fit"](model, recipe, samples))
    assert any(score > overfit["GOAL"] for score in lowest)


@pytest.mark.slow
def test_the_script_says_when_it_did_not_fit(tmp_path: Path) -> None:
    argv = [sys.executable, str(SCRIPT), "--steps", "1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "targets" in done.stdout and "is not above 0.9 after 1 steps" in done.stderr
