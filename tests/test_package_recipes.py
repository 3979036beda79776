"""The recipes in the package: released values, published figures, models that can learn."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_head_rows import CLASSES, ROWS
from helpers_towers import fill, open_clip_resnet, open_clip_vit
from torch import nn

from bridger import load_towers
from bridger.data import PUBLISHED
from bridger.evaluation.published import PUBLISHED_FIGURES
from bridger.processing import Processor
from bridger.texts import Texts
from bridger.tiny_clip import TINY_ADAPTER, load_tiny_clip
from bridger.training import Recipe
from bridger.training.recipe_files import FOLDER, recipe_names

GOLDEN = Path(__file__).parent / "golden"
SETS = {
    "refcoco": ("refcoco", 17),
    "refcoco+": ("refcoco+", 17),
    "refcocog": ("refcocog", 22),
    "refcocog-google": ("refcocog/google", 22),
}
"""The data sets by the ends of recipes' names, and the tokens of a text: `word_len`."""
WORDS = dict(context_length=32, vocab_size=49408)


def processor(size: int) -> Processor:
    from open_clip import SimpleTokenizer

    return Processor(size, (0.5,) * 3, (0.5,) * 3, SimpleTokenizer(), 32)


def small_towers(name: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Towers of the families that a recipe names, as small as they come."""
    if name == "tiny":
        return load_tiny_clip()
    if "RN" in name:
        clip = open_clip_resnet(text=WORDS)
        return clip.visual, clip, processor(64)
    clip = open_clip_vit(text=WORDS)
    if "dinov2" in name:
        return small_dinov2(), clip, processor(56)
    return clip.visual, clip, processor(32)


def small_dinov2() -> nn.Module:
    """timm's DINOv2 with four registers: twelve blocks, 48 wide."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = dict(img_size=56, patch_size=14, embed_dim=48, depth=12, num_heads=3, num_classes=0)
    return fill(VisionTransformer(**sizes, reg_tokens=4, no_embed_class=True, init_values=1e-5))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_in_the_package_is_whole(name: str, tmp_path: Path) -> None:
    recipe = Recipe.preset(name)
    given = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    options = {field.name for field in dataclasses.fields(Recipe)}
    assert set(given) <= options | {"base"}
    assert recipe.note and recipe.cost
    assert "note" in given, "what the base is says nothing of this one"
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    for split, figure in recipe.aims.get("splits", {}).items():
        (dataset,) = recipe.datasets
        assert split in PUBLISHED[dataset].splits
        asked = [f for f in PUBLISHED_FIGURES if (f.dataset, f.split) == (dataset, split)]
        assert figure in [f.percent for f in asked if f.metric == recipe.aims["metric"]]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_and_learns_on_small_towers_of_its_families(name: str) -> None:
    recipe = Recipe.preset(name)
    vision, text, words = small_towers(recipe.towers)
    row = next(row for row in ROWS.values() if row.name == recipe.task)
    small = {key: value for key, value in recipe.head.items() if key not in row.options}
    model = recipe.replace(head={**small, **row.options}).build(vision, text, words).train()
    assert model.processor is not None
    asked = recipe.word_length or recipe.max_length
    assert model.processor.max_length == (asked or words.max_length)
    size = model.processor.image_size[0]
    said: dict[str, Any] = model.processor.text(["the owl on the left", "the small red car"])
    if row.classes:
        said = Texts.of_classes(
            model.processor, CLASSES, recipe.head.get("text_mode", "separate")
        ).batch(2)
    labels = row.labels(2, len(CLASSES) if row.classes else 1, (size, size))
    model(torch.randn(2, 3, size, size), **said, labels=labels).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert (model.encoder.bridgers is None) == (recipe.bridgers is None)


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("backbone", ["vit-b16", "r50", "r101"])
def test_released_recipes_have_the_released_configs_values(backbone: str, data: str) -> None:
    recipe = Recipe.preset(f"etris-{backbone}-{data}")
    resnet = backbone != "vit-b16"
    clip = {"vit-b16": "ViT-B-16", "r50": "RN50", "r101": "RN101"}[backbone]  # clip_pretrain
    assert recipe.towers == f"open_clip:{clip}-quickgelu:openai@416"  # input_size
    assert (recipe.datasets, recipe.word_length) == ((SETS[data][0],), SETS[data][1])
    assert recipe.stages == 3 and not recipe.bridger_options  # multi_stage
    assert recipe.bridgers == ("etris_resnet" if resnet else "etris_vit")
    assert recipe.head == {"preset": "etris"}
    assert recipe.trainable == (("positions", "statistics") if resnet else ("positions",))
    assert recipe.connect == resnet
    assert (recipe.epochs, recipe.steps, recipe.batch_size, recipe.expressions) == (50, None, 32, 1)
    assert (recipe.schedule, recipe.milestones, recipe.gamma, recipe.warmup) == (
        "multistep",
        (35,),
        0.1,
        0.0,
    )
    assert (recipe.optimizer, recipe.betas, recipe.eps) == ("adam", (0.9, 0.999), 1e-8)
    rates = (recipe.learning_rate, recipe.bridger_learning_rate, recipe.tower_learning_rate)
    assert rates == (1e-4, None, None)  # base_lr, one for everything
    assert (recipe.weight_decay, recipe.max_grad_norm) == (0.0, 0.0)
    assert (recipe.precision, recipe.metric, recipe.augment) == ("fp16", "mIoU", ())
    assert (recipe.evaluations, recipe.accumulation, recipe.seed) == (None, 1, 0)


@pytest.mark.parametrize("data", SETS)
def test_the_papers_recipes_differ_by_their_rates_alone(data: str) -> None:
    paper = Recipe.preset(f"etris-vit-b16-{data}-paper")
    assert paper.differences(Recipe.preset(f"etris-vit-b16-{data}")) == ["bridger_learning_rate"]
    assert (paper.learning_rate, paper.bridger_learning_rate) == (1e-4, 1e-3)


@pytest.mark.parametrize("backbone", ["vit-b16", "r50"])
def test_the_baselines_lack_bridgers_alone(backbone: str) -> None:
    alone = Recipe.preset(f"etris-{backbone}-alone")
    assert alone.differences(Recipe.preset(f"etris-{backbone}-refcoco")) == ["bridgers"]
    assert not alone.aims


def test_detris_follows_its_schedule() -> None:
    for data, (dataset, _) in SETS.items():
        recipe = Recipe.preset(f"detris-b-{data}")
        google = data == "refcocog-google"
        assert (recipe.epochs, recipe.milestones) == ((50, (35,)) if google else (65, (35, 55)))
        assert recipe.datasets == (dataset,)
        assert recipe.max_length == (22 if data == "refcocog" else 17)
        assert recipe.stages == tuple((block, None) for block in (1, 3, 5, 7, 9, 11))


def test_the_adapter_in_the_package_was_made_by_the_recipe_scenes() -> None:
    assert Recipe.load(TINY_ADAPTER / "recipe.json").differences(Recipe.preset("scenes")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "golden"), [("vit-b16", "vit_b16"), ("r50", "rn50")])
def test_the_released_recipes_train_what_the_released_code_does(name: str, golden: str) -> None:
    recipe = Recipe.preset(f"etris-{name}-refcoco")
    model = recipe.build(*load_towers(recipe.towers.replace(":openai", "")))
    shapes = json.loads((GOLDEN / f"etris_{golden}.layout.json").read_text())["shapes"]
    counts = {name: math.prod(shape) for name, shape in shapes.items()}

    def count(prefix: str, kind: str = "") -> int:
        return sum(
            n
            for name, n in counts.items()
            if name.startswith(prefix) and kind in name and "running_" not in name
        )

    groups = {g["name"]: sum(p.numel() for p in g["params"]) for g in model.parameter_groups()}
    assert groups["bridgers"] == count("bridger.")
    assert groups["tower_tensors"] == count("backbone.", "positional_embedding")
    whole = sum(p.numel() for p in model.heads["head"].parameters())
    assert whole == count("neck.") + count("decoder.") + count("proj.")
    assert model.processor is not None and model.processor.image_size == (416, 416)
    model.detach()
