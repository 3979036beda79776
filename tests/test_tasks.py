"""Every task by its recipe: trained, resumed, judged, said; and how heads share a loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_judging import model_with
from helpers_training import DotHead, adapter, assert_same, make_trainer
from PIL import Image
from torch import Tensor

import bridger
from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.cli import main
from bridger.cli import train as train_command
from bridger.data.scenes import write_scenes
from bridger.heads import get_head, list_heads
from bridger.tasks import find_data, get_task, list_tasks
from bridger.texts import ClassPhrases, Texts
from bridger.training import Recipe, train
from bridger.training.loss_shares import items_by_head

LAYOUTS = {
    "semantic_segmentation": "segmented",
    "detection": "boxed",
    "classification": "classified",
    "referring_comprehension": "refcoco",
    "referring_segmentation": "refcoco",
}
SMALL = {
    "bridger_options": {"hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0},
    "steps": 4,
    "batch_size": 4,
    "evaluations": 2,
    "report_to": (),
}
HEADS: dict[str, dict[str, Any]] = {
    "semantic_segmentation": {"width": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
    "detection": {"width": 32, "num_convs": 1},
    "classification": {},
    "referring_comprehension": {"width": 32, "num_convs": 1},
    "referring_segmentation": {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
}
CLASS_TASKS = ["semantic_segmentation", "detection", "classification"]

Run = Callable[..., tuple[int, str, str]]
Data = Callable[[str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A few scenes for a task."""
    root = tmp_path_factory.mktemp("data")

    def folder(task: str) -> Path:
        place = root / LAYOUTS[task]
        if not place.exists():
            counts = {"train": 8, "val": 3}
            write_scenes(place, counts, size=64, layout=LAYOUTS[task], classes=6)
        return place

    return folder


def small(task: str, **changes: Any) -> Recipe:
    return Recipe(**{**SMALL, "task": task, "head": HEADS[task], "expressions": 3, **changes})


def learn(task: str, root: Path, out: Path, recipe: Recipe | None = None, **options: Any) -> None:
    known = get_task(task)
    splits = {split: known.open(root, split) for split in ("train", "val")}
    made = train(
        recipe or small(task), splits["train"], out, validation=splits["val"], quiet=True, **options
    )
    made.detach()


def history(folder: Path, name: str) -> dict[int, float]:
    entries = json.loads((folder / "history.json").read_text())
    return {entry["step"]: entry[name] for entry in entries if name in entry}


# Whole runs.


def test_every_head_of_the_package_has_a_task() -> None:
    own = [name for name in list_heads() if get_head(name).__module__.startswith("bridger.")]
    assert list_tasks() == own
    for name in own:
        assert Recipe.preset(get_task(name).recipe).task == name


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=() if t == "classification" else pytest.mark.slow) for t in LAYOUTS],
)
def test_a_run_resumes_to_the_same_bits_and_keeps_the_best(
    task: str, data: Data, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    learn(task, data(task), whole)
    metric = get_task(task).metrics[0]
    judged = history(whole, f"eval_{metric}")
    assert list(judged) == [2, 4]
    best = max(judged, key=lambda step: judged[step])
    assert_same(adapter(whole / "checkpoints" / f"checkpoint-{best}"), adapter(whole))
    for step in (2, 4):
        with Image.open(whole / "pictures" / f"step-{step:06}.png") as sheet:
            assert sheet.height > 3 * 200
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "checkpoint-4")
    # The recipe that was given, and not the one in the folder, whose head is whole.
    learn(task, data(task), resumed, resume=True)
    last = Path("checkpoints", "checkpoint-4")
    assert_same(adapter(whole / last), adapter(resumed / last))
    assert history(resumed, "loss") == history(whole, "loss")
    assert history(resumed, f"eval_{metric}") == judged


@pytest.mark.slow
@pytest.mark.parametrize("task", CLASS_TASKS)
def test_the_data_s_classes_are_in_recipe_and_adapter(
    task: str, data: Data, tmp_path: Path
) -> None:
    learn(task, data(task), tmp_path, small(task, steps=1, evaluations=1))
    classes = get_task(task).open(data(task), "train").classes
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written["task"] == task
    assert [
        tuple(names) if isinstance(names, list) else names for names in written["head"]["classes"]
    ] == list(classes)
    config = json.loads((tmp_path / "bridger_config.json").read_text())["heads"]["head"]
    assert config["type"] == task and config["config"]["classes"] == written["head"]["classes"]
    decided = ["metric"] if task == "classification" else []
    differing = ["head", "steps", "evaluations", *decided]
    assert Recipe.load(tmp_path / "recipe.json").differences(small(task)) == differing


@pytest.mark.slow
def test_classes_to_train_on_may_be_chosen(data: Data, tmp_path: Path) -> None:
    task, root = "semantic_segmentation", data("semantic_segmentation")
    known = get_task(task)
    names = [str(name) for name in known.open(root, "train").classes]
    head = {**HEADS[task], "classes": [names[2], names[0]]}
    learn(task, root, tmp_path, small(task, head=head, metric="mIoU unseen"))
    assert set(history(tmp_path, "eval_mIoU unseen")) == {2, 4}
    with pytest.raises(ValueError, match="head.classes names 'nothing'"):
        learn(task, root, tmp_path / "o", small(task, head={**head, "classes": ["nothing"]}))
    everything = [str(name) for name in known.open(root, "val").classes]
    recipe = small(task, metric="mIoU unseen", head={"classes": everything})
    val = known.open(root, "val")
    with pytest.raises(ValueError, match="'mIoU unseen' is over classes that are not trained on"):
        known.check(recipe, val, val)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_joint_text_trains_too(data: Data, tmp_path: Path) -> None:
    for task in CLASS_TASKS:
        head = {**HEADS[task], "text_mode": "joint", "templates": ("{}", "a {}")}
        learn(task, data(task), tmp_path / task, small(task, steps=2, evaluations=1, head=head))
        losses = history(tmp_path / task, "loss")
        assert losses and all(value == value for value in losses.values())


def test_a_fixed_list_is_always_asked_whole(data: Data, tmp_path: Path) -> None:
    for task in ("classification", "detection"):
        known = get_task(task)
        root = data(task)
        recipe = small(task, expressions=2, head={**HEADS[task], "scores": "fixed"})
        training = known.open(root, "train")
        recipe = recipe.with_head_options(known.head_options(training))
        model = recipe.build(*bridger.load_tiny_clip())
        schedule = known.schedule(recipe, training, 4)
        batch = known.collator(recipe, model, "head", training, 0)([schedule[0], schedule[3]])
        assert batch["mentions"].num_classes == len(training.classes) > 2
        assert model(**batch).loss.isfinite()
        model.detach()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_fixed_list_is_validated_and_judged_where_others_are_shown(
    task: str, data: Data, tmp_path: Path
) -> None:
    known, root = get_task(task), data(task)
    training, val = known.open(root, "train"), known.open(root, "val")
    assert set(val.classes) - set(training.classes)
    head = {**HEADS[task], "scores": "fixed"}
    learn(task, root, tmp_path, small(task, steps=2, evaluations=1, head=head))
    metric = known.metrics[0]
    (judged,) = history(tmp_path, f"eval_{metric}").values()
    model = BridgedModel.from_pretrained(tmp_path, *bridger.load_tiny_clip()[:2])
    model.processor = model.processor or bridger.load_tiny_clip()[2]
    found = known.evaluate(model, val, "head").metrics()
    assert found[metric] == pytest.approx(judged, abs=1e-6)
    model.detach()


def test_few_shots_are_all_that_is_seen(data: Data, tmp_path: Path) -> None:
    known, root = get_task("classification"), data("classification")
    training = known.open(root, "train")
    recipe = small("classification", shots=1, seed=2)
    shown = {label for index in range(len(training)) for label in training[index].labels}
    assert known.items(recipe, training) == len(shown) < len(training)
    schedule: Any = known.schedule(recipe, training, 20)
    seen = {schedule[index].picture.key: schedule[index].picture.labels for index in range(20)}
    assert sorted(seen.values()) == [(label,) for label in sorted(shown)]
    with pytest.raises(ValueError, match="shots=1 has no meaning for the task detection"):
        small("detection", shots=1)


# Recipes.


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("detection", {"metric": "mIoU"}, "metric='mIoU' is unknown: known: .'mAP'"),
        ("detection", {"augment": ["crop"]}, "augment='crop' is unknown: known: .'colour', 'flip'"),
        ("detection", {"datasets": ["refcoco"]}, "a folder holds one data set for detection"),
        ("referring_comprehension", {"augment": ["crop"]}, "augment='crop' is unknown"),
        ("detections", {}, "task='detections' is unknown: did you mean 'detection'"),
        ("classification", {"shots": 0}, "shots must be a positive whole number"),
    ],
)
def test_recipes_fit_their_task(task: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(task=task, **changes)


def test_a_task_has_a_metric_of_its_own() -> None:
    assert Recipe().metric == "mIoU" and Recipe(task="detection").metric == "mAP"
    assert Recipe(metric="oIoU").replace(task="detection").metric == "mAP"
    assert Recipe(metric="oIoU").replace(task="classification", metric="top5").metric == "top5"


def table(path: Path, data: Any, column: str, *labels: str) -> None:
    """Write a table of a data set's pictures with other labels."""
    rows = [f"{data[i].image_path},{label}" for i, label in enumerate(labels)]
    path.write_text("\n".join([f"image,{column}", *rows]))


def test_the_metric_of_classification_follows_the_labels(data: Data, tmp_path: Path) -> None:
    known = get_task("classification")
    pictures = known.open(data("classification"), "train")
    for split in ("train", "val"):
        table(tmp_path / f"{split}.csv", pictures, "labels", "a;b", "a", "b", "")
    several = known.open(tmp_path, "train")
    opened = Recipe.preset("scenes-classification")
    assert opened.metric == ""
    with pytest.raises(ValueError, match="the metric of classification follows the labels"):
        opened.arguments(tmp_path, evaluate=True)
    assert opened.with_head_options(known.head_options(pictures)).metric == "top1"
    whole = opened.with_head_options(known.head_options(several))
    assert (whole.metric, whole.head["multi_label"]) == ("mAP", True)
    chosen = opened.replace(metric="mAP seen").with_head_options(known.head_options(several))
    assert chosen.metric == "mAP seen"
    known.check(whole, several, known.open(tmp_path, "val"))


@pytest.mark.slow
def test_a_multi_label_table_trains_by_the_usual_recipe(data: Data, tmp_path: Path) -> None:
    pictures = get_task("classification").open(data("classification"), "train")
    for split in ("train", "val"):
        table(tmp_path / f"{split}.csv", pictures, "labels", "a;b", "a", "b", "")
    recipe = small("classification", steps=1, evaluations=1)
    learn("classification", tmp_path, tmp_path / "out", recipe)
    assert set(history(tmp_path / "out", "eval_mAP")) == {1}
    assert Recipe.load(tmp_path / "out" / "recipe.json").metric == "mAP"


def test_what_val_cannot_give_ends_no_run_late(data: Data, tmp_path: Path) -> None:
    known = get_task("classification")
    pictures = known.open(data("classification"), "train")
    table(tmp_path / "train.csv", pictures, "label", "a", "b", "c", "a")
    table(tmp_path / "val.csv", pictures, "labels", "a", "b;c")
    training, val = known.open(tmp_path, "train"), known.open(tmp_path, "val")
    recipe = small("classification").with_head_options(known.head_options(training))
    with pytest.raises(ValueError, match="val.* show any number: give all splits labels of one k"):
        known.check(recipe, training, val)
    with pytest.raises(ValueError, match="'top5' needs more than 5 classes, and .* has 3: choose"):
        known.check(recipe.replace(metric="top5"), training, training)
    # The list of classes has an unseen one, the labels have not.
    names = [str(name) for name in known.open(data("classification"), "val").classes]
    shown = known.open(data("classification"), "val")
    rest = sorted({names[shown[index].labels[0]] for index in range(len(shown))})
    (tmp_path / "classes.txt").write_text("\n".join([*rest, "extra"]))
    chosen = {"classes": rest}
    for split in ("train", "val"):
        labels = [names[shown[index].labels[0]] for index in range(len(shown))]
        table(tmp_path / f"{split}.csv", shown, "label", *labels)
    recipe = small(
        "classification", head=chosen, metric="top1 unseen", batch_size=2, steps=1, evaluations=1
    )
    with pytest.raises(
        ValueError, match="does not give metric='top1 unseen', .* choose one of top1"
    ):
        learn("classification", tmp_path, tmp_path / "out", recipe)


def test_pictures_of_classes_that_are_not_trained_on_are_left_out(
    data: Data, tmp_path: Path
) -> None:
    known = get_task("classification")
    pictures = known.open(data("classification"), "train")
    table(tmp_path / "train.csv", pictures, "label", *"aabbbcca")
    training = known.open(tmp_path, "train")
    recipe = small("classification", head={"classes": ["b", "a"]})
    assert known.items(recipe, training) == 6
    schedule: Any = known.schedule(recipe, training, 12)
    seen = {schedule[index].picture.key for index in range(12)}
    assert seen == {training[index].key for index in (0, 1, 2, 3, 4, 7)}
    assert known.items(recipe.replace(shots=2), training) == 4
    assert known.items(recipe.replace(head={}), training) == 8
    assert known.items(recipe.replace(head={}, shots=2), training) == 6
    table(tmp_path / "train.csv", pictures, "labels", "a", "a;c", "c", "")
    negatives = recipe.replace(head={"classes": ["a"], "multi_label": True})
    assert known.items(negatives, known.open(tmp_path, "train")) == 4
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd")
    with pytest.raises(ValueError, match="no picture of .* shows a class of head.classes"):
        table(tmp_path / "train.csv", pictures, "label", *"aabbbcca")
        training = known.open(tmp_path, "train")
        known.check(recipe.replace(head={"classes": ["d"], "multi_label": False}), training, None)


def test_labels_and_metric_are_of_one_kind(tmp_path: Path, data: Data) -> None:
    known = get_task("classification")
    training = known.open(data("classification"), "train")
    one = Recipe(task="classification").with_head_options(known.head_options(training))
    assert one.head["multi_label"] is False and one.metric == "top1"
    with pytest.raises(ValueError, match="'mAP' does not fit .* one class each: .* top1, top5"):
        known.check(one.replace(metric="mAP"), training, training)
    rows = [f"{training[i].image_path},{'a;b' if i else 'a'}" for i in range(3)]
    (tmp_path / "train.csv").write_text("\n".join(["image,labels", *rows]))
    several = known.open(tmp_path, "train")
    recipe = Recipe(task="classification", metric="top1", head={"multi_label": False})
    given = recipe.with_head_options(known.head_options(several))
    assert given.head["multi_label"] is False  # it was asked for
    with pytest.raises(ValueError, match="multi_label is false.* show any number"):
        known.check(given, several, several)
    whole = recipe.replace(head={"classes": []}).with_head_options(known.head_options(several))
    assert whole.head == {"classes": several.classes, "multi_label": True}
    with pytest.raises(ValueError, match="'top1' does not fit .* any number of classes: .* mAP"):
        known.check(whole, several, several)


# Data and command line.


def parsed(line: str) -> Recipe:
    return train_command.recipe_from(main.build_parser().parse_args(line.split()))


def test_a_head_has_a_recipe_of_its_own(tmp_path: Path) -> None:
    for name in list_tasks():
        recipe = parsed(f"train --head {name} --data d --out o")
        assert recipe == Recipe.preset(get_task(name).recipe)
        recipe.save(tmp_path / "mine.json")
        assert parsed(f"train {tmp_path}/mine.json --head {name} --data d --out o") == recipe
    with pytest.raises(
        ValueError, match="--head detection does not fit the recipe, which trains r"
    ):
        parsed("train scenes --head detection --data d --out o")
    with pytest.raises(ValueError, match="no task is called 'detector': did you mean 'detection'"):
        parsed("train --head detector --data d --out o")


def test_recipes_are_listed_with_their_task(run: Run) -> None:
    code, said, _ = run("recipes")
    assert code == 0
    listed = [line.split() for line in said.splitlines() if not line.startswith(" ")]
    assert listed
    for name, task in listed:
        assert Recipe.preset(name).task == task


@pytest.mark.parametrize("task", LAYOUTS)
def test_other_data_than_the_task_s_are_named(task: str, data: Data) -> None:
    known = get_task(task)
    assert find_data(known, data(task)) == [None] or known.datasets
    for other in LAYOUTS:
        if LAYOUTS[other] == LAYOUTS[task]:
            continue
        with pytest.raises(FileNotFoundError, match="no data for|no folder") as refused:
            find_data(known, data(other))
        owners = sorted(name for name in LAYOUTS if LAYOUTS[name] == LAYOUTS[other])
        said = f"but for another task: {' or '.join(owners)} (--head {owners[0]} in the shell)"
        assert said in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("task", CLASS_TASKS)
def test_train_says_what_it_learns_from(task: str, data: Data, tmp_path: Path, run: Run) -> None:
    small(task, steps=1, evaluations=1).save(tmp_path / "mine.json")
    out = tmp_path / "out"
    code, said, err = run("train", tmp_path / "mine.json", "--data", data(task), "--out", out)
    assert code == 0, err
    metric = get_task(task).metrics[0]
    assert (
        f"training on {get_task(task).open(data(task), 'train').name} train: 8 pictures, 5" in said
    )
    assert f"chosen by {metric} on val" in said and "validation: " in err
    assert f"{metric} " in err and "mIoU" not in err.replace(metric, "")
    code, _, err = run("train", "--head", task, "--data", tmp_path, "--out", tmp_path / "o")
    assert code == 1 and "expected" in err


# Several heads.


def two_heads(**weights: float) -> BridgedModel:
    """Masks of expressions and a class for the picture, without BatchNorm or dropout."""
    torch.manual_seed(0)
    vision, text, processor = bridger.load_tiny_clip()
    heads = {"masks": (DotHead, {}), "label": (get_head("classification"), {})}
    config = BridgerConfig.preset("paper", dropout=0.0)
    model = BridgedModel.build(attach_bridgers(vision, text, 2, config), heads, weights)
    model.processor = processor
    return model


def batch_of(model: BridgedModel, images: int, expressions: list[int], first: int = 0) -> Any:
    """A batch with ragged expressions for one head, and classes for the other."""
    assert model.processor is not None
    dice = torch.Generator().manual_seed(first)
    n, (height, width) = max(expressions), model.processor.image_size
    said = Texts.of_sentences(model.processor, ["a red owl", "the drum"][:n]).batch(images)
    mask = torch.arange(n) < torch.tensor(expressions)[:, None]
    classes = ClassPhrases(model.processor, ["owl", "drum", "car"])
    return {
        "pixel_values": torch.randn(images, 3, height, width, generator=dice),
        "texts": {
            "expressions": {**said, "expression_mask": mask},
            "classes": classes.batch([[(0, 0), (1, 0), (2, 0)]] * images),
        },
        "labels": {
            "masks": torch.rand(images, n, height, width, generator=dice).round(),
            "label": torch.randint(3, (images,), generator=dice),
        },
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both batches in one; the texts of classes are the same."""
    texts = {
        kind: {
            name: torch.cat([first["texts"][kind][name], second["texts"][kind][name]])
            for name in first["texts"][kind]
            if name != "mentions"
        }
        for kind in first["texts"]
    }
    mentions = first["texts"]["classes"]["mentions"]
    tokens = mentions.tokens[:1]
    texts["classes"]["mentions"] = type(mentions)(
        mentions.rows, mentions.classes, tokens, mentions.num_classes
    )
    labels = {
        name: torch.cat([first["labels"][name], second["labels"][name]]) for name in first["labels"]
    }
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    return {"pixel_values": pixels, "texts": texts, "labels": labels}


def test_each_head_counts_its_own_items(tmp_path: Path) -> None:
    model = two_heads()
    batch = batch_of(model, 3, [2, 1, 2])
    assert items_by_head(model, batch) == {"masks": 5, "label": 3}
    only = {**batch, "labels": {"label": batch["labels"]["label"]}}
    assert items_by_head(model, only) == {"masks": 0, "label": 3}
    single = model_with("label")
    flat = {**batch["texts"]["classes"], "pixel_values": batch["pixel_values"], "labels": 0}
    assert items_by_head(single, flat) == {"label": 3}


def test_accumulated_batches_are_one_for_every_head(tmp_path: Path) -> None:
    model = two_heads(masks=0.5, label=2.0).train()
    trainer = make_trainer(tmp_path, model, remove_unused_columns=False)
    parts = [batch_of(model, 1, [2], 1), batch_of(model, 3, [2, 1, 2], 2)]
    parts[0]["texts"]["expressions"]["expression_mask"][0, 1] = False
    counts = trainer._get_num_items_in_batch(parts, trainer.args.device)
    assert counts == {"masks": 6, "label": 4}
    shares = [trainer.compute_loss(model, part, num_items_in_batch=counts) for part in parts]
    torch.stack(shares).sum().backward()
    shares = [share.detach() for share in shares]
    accumulated = gradients(model)
    logged = trainer.losses.take()
    model.zero_grad()
    whole = model(**joined(*parts))
    whole.loss.backward()
    expected = gradients(model)
    assert sum(map(float, shares)) == pytest.approx(float(whole.loss.detach()), rel=1e-5)
    for name, gradient in accumulated.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-5), name
    assert logged == {
        "loss/masks": pytest.approx(0.5 * float(whole.heads["masks"].loss.detach()), rel=1e-5),
        "loss/label": pytest.approx(2.0 * float(whole.heads["label"].loss.detach()), rel=1e-5),
    }


def gradients(model: BridgedModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_the_summands_of_a_loss_are_logged(data: Data, tmp_path: Path) -> None:
    learn("detection", data("detection"), tmp_path, small("detection", evaluations=1))
    losses = history(tmp_path, "loss")
    parts = [history(tmp_path, f"loss/{p}") for p in ("classification", "boxes", "centerness")]
    for step, loss in losses.items():
        assert sum(part[step] for part in parts) == pytest.approx(loss, rel=1e-4)
