"""Recipes: files, what is refused, how long a run is, and what a run takes from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_towers import PAIRS, open_clip_vit
from test_package_recipes import WORDS, processor
from torch import nn
from transformers import Trainer

from bridger.training import Recipe, arguments

HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}

# Files.


def test_recipes_go_to_json_and_back(tmp_path: Path) -> None:
    recipe = Recipe(stages=((3, 3), (7, 5)), bridger_options={"hidden_dim": 32}, steps=7)
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe


def test_a_file_changes_what_it_stands_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"base": "scenes", "head": {"width": 96}, "epochs": 3}')
    mine, scenes = Recipe.load(path), Recipe.preset("scenes")
    assert mine.head == {"width": 96}  # whole groups are replaced
    assert (mine.epochs, mine.steps) == (3, None)
    assert sorted(mine.differences(scenes)) == ["epochs", "head", "steps"]


def test_what_a_file_stands_on_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridger.training.recipe_files.FOLDER", tmp_path)
    for name, base in (("a", "b"), ("b", "a"), ("c", "aa")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"base": base}))
    with pytest.raises(ValueError, match=r"a\.json stands on itself: a -> b"):
        Recipe.preset("a")
    with pytest.raises(ValueError, match=r"c\.json: there is no recipe 'aa': did you mean 'a'"):
        Recipe.preset("c")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"step": 3}, "recipe.json: .*no option 'step'.*'steps'"),
        ({"steps": 0}, "steps must be a positive whole number, got 0"),
        ({"epochs": True}, "epochs must be a positive whole number, got True"),
        ({"steps": 5, "epochs": 1}, "steps=5 or epochs=1 say: give one"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0"),
        ({"bridger_learning_rate": 0}, "bridger_learning_rate must be a number above 0"),
        ({"warmup": 1.5}, "share of all steps"),
        ({"weight_decay": -1}, "weight_decay must be a number, 0 or more"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "multistep"}, "'multistep' and milestones belong together"),
        ({"milestones": [3]}, "'multistep' and milestones belong together"),
        ({"schedule": "multistep", "milestones": [3, 3], "epochs": 9}, "milestones must grow"),
        ({"schedule": "multistep", "milestones": [9], "epochs": 9}, "below the 9 epochs"),
        ({"schedule": "multistep", "milestones": "9"}, "milestones must be numbers"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "'adam' goes without weight decay"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"precision": "bfloat16"}, "did you mean 'float32'"),
        ({"metric": "miou"}, "metric='miou' is unknown: known: .*'mIoU'"),
        ({"augment": ["flips"]}, "augment='flips' is unknown: did you mean 'flip'"),
        ({"augment": "flip"}, "augment must be a list of names"),
        ({"datasets": ["refcocog/umd"]}, "did you mean 'refcocog'"),
        ({"datasets": ["refcoco", "refcoco"]}, "names one twice"),
        ({"accumulation": 3}, "batch_size=16 does not split into accumulation=3"),
        ({"word_length": 17, "max_length": 20}, "leave out max_length=20"),
        ({"connect": 1}, "connect must be true or false"),
        ({"note": None}, "note must be a text"),
        ({"head": [1]}, "head must hold options by name"),
        ({"bridgers": {}}, "bridgers must be a preset's name or null"),
        ({"aims": {"mIoU": 70}}, "aims='mIoU' is unknown"),
        ({"aims": {"metric": "mIoU", "source": "x"}}, "splits is missing"),
        (
            {"aims": {"metric": "mIoU", "source": "x", "splits": {"val": 0.7}}},
            "percentage for every split",
        ),
        ([1], r"must be a JSON object, found \["),
    ],
)
def test_bad_recipes_say_what_is_wrong(tmp_path: Path, values: Any, words: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        Recipe.load(path)


def test_what_is_no_recipe_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        Recipe.load(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        Recipe.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no recipe 'etris-vit-b17'.*did you mean"):
        Recipe.preset("etris-vit-b17")


# How long a run is.


def test_epochs_count_whole_batches() -> None:
    recipe = Recipe.preset("etris-vit-b16-refcoco")
    assert recipe.steps_for(42404) == 50 * 1325  # the released code's, which drops the rest
    with pytest.raises(ValueError, match="31 items holds no batch of 32"):
        recipe.steps_for(31)
    with pytest.raises(ValueError, match="None items"):
        recipe.steps_for()
    assert Recipe(steps=7).steps_for() == Recipe(steps=7).steps_for(5) == 7
    assert Recipe().steps == 1000


def test_another_length_moves_the_milestones_along() -> None:
    recipe = Recipe.preset("detris-b")
    assert recipe.replace(epochs=13).milestones == (7, 11)
    assert recipe.replace(epochs=10, milestones=[4]).milestones == (4,)
    steps = recipe.replace(steps=650)
    assert (steps.epochs, steps.steps, steps.milestones) == (None, 650, (350, 550))
    assert steps.replace(epochs=65) == recipe
    assert recipe.replace(steps=1).milestones == (35 / 65, 55 / 65)  # never reached
    assert recipe.replace(seed=1).milestones == recipe.milestones


# What a run takes from it.


def toy(recipe: Recipe, optimizer: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    return layer, optimizer(layer.parameters(), lr=recipe.learning_rate, **options)


def test_rates_fall_as_in_the_released_loop() -> None:
    recipe = Recipe.preset("etris-vit-b16", epochs=5, milestones=[2, 4])
    items, per_epoch = 100, 3
    _, optimizer = toy(recipe, torch.optim.Adam)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.1)
    expected = []
    for _ in range(5):
        for _ in range(per_epoch):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    make = recipe.scheduler(items)
    assert make is not None
    _, optimizer = toy(recipe, torch.optim.Adam)
    ours = make(optimizer, recipe.steps_for(items))
    found = []
    for _ in range(recipe.steps_for(items)):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        ours.step()
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[5] == 1e-4 and found[6] == pytest.approx(1e-5)


def test_falling_rates_may_warm_up() -> None:
    options = {"schedule": "multistep", "milestones": (6,), "gamma": 0.5, "warmup": 0.4}
    recipe = Recipe(steps=10, learning_rate=1.0, **options)
    make = recipe.scheduler()
    _, optimizer = toy(recipe, torch.optim.Adam)
    scheduler = make and make(optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[union-attr]
    assert rates == [0, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert Recipe().scheduler() is None


def test_the_released_optimizer_is_adam_to_the_bit(tmp_path: Path) -> None:
    recipe = Recipe.preset("etris-vit-b16", precision="float32", steps=4, report_to=())
    args = recipe.arguments(tmp_path, evaluate=False, use_cpu=True)
    build, options = Trainer.get_optimizer_cls_and_kwargs(args)
    decay = {"weight_decay": recipe.weight_decay}
    trained = []
    for made, given in ((build, {**options, **decay}), (torch.optim.Adam, {"fused": True})):
        layer, optimizer = toy(recipe, made, **{k: v for k, v in given.items() if k != "lr"})
        for step in range(5):
            optimizer.zero_grad()
            (layer(torch.full((2, 5), 0.1 + step)) ** 2).mean().backward()
            optimizer.step()
        trained.append(layer.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_arguments_say_what_the_recipe_does(tmp_path: Path) -> None:
    recipe = Recipe.preset(
        "etris-vit-b16", precision="bf16", batch_size=8, accumulation=2, seed=3, metric="oIoU"
    )
    recipe = recipe.replace(report_to=[])
    args = recipe.arguments(tmp_path, evaluate=True, items=40, use_cpu=True)
    assert args.max_steps == 250 and args.save_steps == args.eval_steps == 5  # every epoch
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 2)
    assert (args.bf16, args.fp16, args.seed) == (True, False, 3)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_oIoU", True)
    assert (args.weight_decay, args.max_grad_norm, args.warmup_steps) == (0.0, 0.0, 0)
    assert args.report_to == []
    four = Recipe(steps=10).arguments(tmp_path, evaluate=False, use_cpu=True)
    assert four.save_steps == 3 and four.report_to == ["tensorboard"]
    assert (four.warmup_steps, str(four.lr_scheduler_type.value)) == (1, "cosine")


@pytest.mark.parametrize(("precision", "other"), [("float32", "bf16"), ("bf16", "no")])
def test_the_recipe_s_precision_wins(
    precision: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", other)  # as `accelerate launch` does
    recipe = Recipe(precision=precision, report_to=())
    args = recipe.arguments(tmp_path, evaluate=False, use_cpu=True)
    accelerator = Trainer(nn.Linear(1, 1), args).accelerator
    assert accelerator.mixed_precision == ("no" if precision == "float32" else precision)


def test_the_batch_is_shared_among_devices() -> None:
    recipe = Recipe(batch_size=24, accumulation=2)
    assert arguments._per_device(recipe, SimpleNamespace(world_size=4)) == 3
    with pytest.raises(ValueError, match="does not split into 5 devices x 2 micro-batches"):
        arguments._per_device(recipe, SimpleNamespace(world_size=5))


def test_what_cannot_run_here_is_said_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs an accelerator.*'bf16' or 'float32'"):
        Recipe(precision="fp16").arguments(tmp_path, evaluate=False)
    with pytest.raises(ValueError, match="unknown: did you mean 'tensorboard'"):
        Recipe(report_to=("tensorbord",)).arguments(tmp_path, evaluate=False)
    with pytest.raises(ValueError, match="'wandb', which is not installed"):
        monkeypatch.setattr(
            "transformers.integrations.get_available_reporting_integrations", lambda: []
        )
        Recipe(report_to=("wandb",)).arguments(tmp_path, evaluate=False)


def test_a_recipe_builds_the_same_head_with_bridgers_and_without() -> None:
    recipe = Recipe(stages=2, head=HEAD, bridger_options={"hidden_dim": 16, "num_heads": 2})
    bridged = recipe.build(*PAIRS["open_clip_vit"](), None)
    alone = recipe.replace(bridgers=None).build(*PAIRS["open_clip_vit"](), None)
    assert bridged.encoder.bridgers is not None and alone.encoder.bridgers is None
    first, second = bridged.heads["head"].state_dict(), alone.heads["head"].state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_released_texts_are_cut_and_padded_as_released() -> None:
    clip = open_clip_vit(text=WORDS)
    recipe = Recipe(stages=2, head=HEAD, word_length=7, bridgers=None)
    given = processor(32)
    model = recipe.build(clip.visual, clip, given)
    assert model.processor is not None and given.max_length == 32
    with pytest.warns(UserWarning, match="its end is cut off"):
        said = model.processor.text(["dog", "the dog on the left of the table"])
    start, end = 49406, 49407
    tokens = given.words.encode(["the dog on the left of the table"])[0]
    assert said["input_ids"][1].tolist() == [start, *tokens[1:6], end]
    assert said["input_ids"][0, 3:].tolist() == [0, 0, 0, 0]
    assert model.encoder.word_length == 7
    # A short batch is padded by the encoder: Bridgers read padding there.
    short = model.processor.text("dog")
    features = model.encode(torch.randn(1, 3, 32, 32), short["input_ids"])
    assert features.tokens.shape[1] == 7
    with pytest.raises(ValueError, match="takes 32 tokens, the recipe asks for 40"):
        recipe.replace(word_length=None, max_length=40).build(clip.visual, clip, given)
