"""`bridger train` and `bridger recipes`: recipes, data, and what chooses the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_coco import ref, write_pictures, write_refs
from helpers_own_data import read_lines, write_lines, write_own_data

from bridger.cli import main, train
from bridger.data import Mixed, ReferringDataset
from bridger.data.scenes import write_scenes
from bridger.training import Recipe
from bridger.training.recipe_files import recipe_names

HEAD = {"width": 64, "num_layers": 1, "num_heads": 2}
QUICK = [f"head={json.dumps(HEAD)}", "batch_size=4", "evaluations=1"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RefCOCO and G-Ref by both: pictures 2 and 3 of trains are in others' val and test."""
    root = tmp_path_factory.mktemp("coco")
    unc = [ref(i, "train", i, i) for i in (1, 2, 3)] + [ref(4, "val", 4, 4), ref(5, "testA", 5, 5)]
    umd = [ref(6, "train", 1, 6), ref(7, "train", 6, 7), ref(8, "val", 2, 8), ref(9, "test", 3, 9)]
    google = [ref(10, "train", 1, 10), ref(11, "train", 2, 11), ref(12, "val", 2, 12)]
    write_refs(root / "refcoco" / "refs(unc).p", unc)
    write_refs(root / "refcocog" / "refs(umd).p", umd)
    write_refs(root / "refcocog" / "refs(google).p", google)
    write_pictures(root / "images" / "train2014", range(1, 7))
    return root


class Trained:
    """Stands in for a run: keeps what it was called with, and saves a file."""

    def __init__(self) -> None:
        self.recipe = Recipe()
        self.training: ReferringDataset | None = None
        self.validation: ReferringDataset | None = None

    def __call__(self, recipe: Recipe, data: Any, out: Path, **options: Any) -> Any:
        self.recipe, self.training, self.validation = recipe, data, options["validation"]
        out.mkdir(parents=True, exist_ok=True)
        (out / "bridger.safetensors").write_bytes(b"")
        return SimpleNamespace(print_trainable_parameters=lambda: None)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    run = Trained()
    monkeypatch.setattr("bridger.training.run.train", run)
    return run


def parsed(line: str) -> Recipe:
    return train.recipe_from(main.build_parser().parse_args(line.split()))


# Recipes.


def test_recipes_are_listed_with_what_they_aim_at(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = run("recipes", "--json", tmp_path / "r.json")
    lines = said.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert code == 0 and names == recipe_names()
    assert all(len(line) <= 80 for line in lines)
    r101 = said.partition("\netris-r101-refcocog ")[2].partition("\netris")[0]
    assert "Published mIoU on val / test: 60.28 / 60.42." in " ".join(r101.split())
    assert list(json.loads((tmp_path / "r.json").read_text())) == recipe_names()


@pytest.mark.parametrize("name", ["etris-vit-b16-refcoco+", "detris-b", "quickstart"])
def test_a_printed_recipe_is_the_recipe(name: str, run: Run, tmp_path: Path) -> None:
    code, said, _ = run("recipes", name)
    (tmp_path / "mine.json").write_text(said)
    assert code == 0 and Recipe.load(tmp_path / "mine.json") == Recipe.preset(name)
    assert run("recipes", tmp_path / "mine.json")[1] == said


def test_recipes_are_named_or_lie_in_files(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"base": "scenes", "steps": 5}')
    assert parsed(f"train {tmp_path}/mine.json --data d --out o").steps == 5
    assert parsed("train --data d --out o") == Recipe.preset("quickstart")
    assert parsed("train scenes --data d --out o --seed 4").seed == 4
    with pytest.raises(ValueError, match="no recipe 'scene': did you mean 'scenes'"):
        parsed("train scene --data d --out o")


def test_the_length_is_given_in_steps_or_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = parsed("train etris-r50 --data d --out o --steps 100")
    assert (recipe.steps, recipe.epochs, recipe.milestones) == (100, None, (70,))
    line = "train etris-r50 --data d --out o --set milestones=[2]"
    for length in ("--epochs 3", "--set epochs=3"):
        recipe = parsed(f"{line} {length}")
        assert (recipe.epochs, recipe.milestones) == (3, (2,))
    recipe = parsed("train scenes --data d --out o --epochs 3")
    assert (recipe.steps, recipe.epochs) == (None, 3)
    with pytest.raises(SystemExit):
        parsed("train scenes --data d --out o --epochs 3 --steps 4")
    assert "not allowed with" in capsys.readouterr().err


def test_an_option_inside_an_option_leaves_the_others() -> None:
    recipe = parsed(
        "train --data d --out o --set head.width=96 --set bridger_options.pre_norm=true"
    )
    usual = Recipe.preset("quickstart")
    assert recipe.head == {**usual.head, "width": 96}
    both = parsed('train --data d --out o --set head={"width":8} --set head.dropout=0')
    assert both.head == {"width": 8, "dropout": 0}
    assert recipe.bridger_options == {**usual.bridger_options, "pre_norm": True}


def test_a_changed_option_is_json_or_a_word() -> None:
    assert train._parse_change("bridgers=null") == ("bridgers", None)
    assert train._parse_change("schedule=linear") == ("schedule", "linear")
    assert train._parse_change('head={"width": 64}') == ("head", {"width": 64})


def test_reports_go_where_they_are_asked_to() -> None:
    line = "train --data d --out o"
    assert parsed(line).report_to == ("tensorboard",)
    assert parsed(f"{line} --report-to wandb tensorboard").report_to == ("wandb", "tensorboard")
    assert parsed(f"{line} --report-to none").report_to == ()


def test_other_data_has_other_figures_to_aim_at() -> None:
    line = "train etris-r101-refcoco --data d --out o"
    assert parsed(f"{line} --dataset refcoco").aims["splits"]["val"] == 71.06
    other = parsed(f"{line} --dataset refcoco+ refcocog")
    assert other.datasets == ("refcoco+", "refcocog") and not other.aims
    assert not parsed(f'{line} --set datasets=["refcoco+"]').aims
    with pytest.raises(ValueError, match="did you mean 'refcoco'"):
        parsed(f"{line} --dataset refcoc")


# Data.


def test_the_run_says_what_chooses_the_checkpoint(
    run: Run, scenes: Path, tmp_path: Path, trained: Trained
) -> None:
    code, said, err = run("train", "--data", scenes, "--out", tmp_path)
    assert code == 0, err
    refs = len(trained.validation or [])
    assert refs and (
        f"the best checkpoint is chosen by mIoU on val (refcoco/unc, {refs} first sentences), "
        "never on a test split" in said
    )
    run("train", "--data", scenes, "--out", tmp_path, "--set", "metric=oIoU")
    assert trained.recipe.metric == "oIoU"


def test_a_test_split_never_chooses(run: Run, scenes: Path, tmp_path: Path) -> None:
    for split in ("test", "testA", "testB"):
        code, _, err = run("train", "--data", scenes, "--out", tmp_path, "--validation", split)
        assert code == 1 and "never chosen on a test split" in err and split in err


def test_without_a_val_split_the_last_adapter_is_kept(
    run: Run, tmp_path: Path, trained: Trained
) -> None:
    write_own_data(tmp_path / "own")
    argv = ["train", "--data", tmp_path / "own", "--out", tmp_path / "o"]
    assert "(folder, 1 first sentences)" in run(*argv)[1] and len(trained.training or []) == 10
    assert "no checkpoint is chosen" in run(*argv, "--validation", "none")[1]
    assert trained.validation is None
    (tmp_path / "own" / "val.jsonl").unlink()
    code, said, _ = run(*argv)
    assert code == 0 and trained.validation is None
    assert "there is no split val (--validation names another), so no checkpoint is chosen" in said
    code, _, err = run(*argv, "--validation", "val")
    assert code == 1 and "val" in err  # it was asked for


def test_several_data_sets_are_mixed_without_each_others_pictures(
    run: Run, coco: Path, tmp_path: Path, trained: Trained
) -> None:
    code, said, err = run(
        "train", "--data", coco, "--out", tmp_path, "--dataset", "refcoco", "refcocog"
    )
    assert code == 0 and "warning" not in err, err
    assert isinstance(trained.training, Mixed) and isinstance(trained.validation, Mixed)
    kept = {trained.training[i].ref_id for i in range(len(trained.training))}
    assert kept == {1, 6, 7}
    assert "left out of train: 1 refs whose pictures are in refcocog/umd val" in said
    assert "left out of train: 1 refs whose pictures are in refcocog/umd test" in said
    assert "(refcoco/unc + refcocog/umd, 2 first sentences)" in said


def test_a_split_that_shares_pictures_with_val_is_warned_of(
    run: Run, coco: Path, tmp_path: Path, trained: Trained
) -> None:
    argv = ["train", "etris-vit-b16-refcocog-google", "--data", coco, "--out", tmp_path]
    code, _, err = run(*argv)
    assert code == 0 and (
        "1 of 2 refs to train on are of pictures that are in refcocog/google val" in err
    )
    assert "tokens" not in err
    argv[1] = "etris-vit-b16-refcoco"
    _, _, err = run(*argv, "--dataset", "refcocog")
    assert "cuts sentences to 17 tokens; for refcocog the released code takes 22" in err
    assert "to train on" not in err


def boxes_of_years(root: Path, *names: str) -> list[object]:
    """A folder with boxes, its train split under other names; what trains a detector on it."""
    write_scenes(root, {"train": 2, "val": 1}, size=64, layout="boxed", classes=6)
    for name in names:
        shutil.copy(root / "annotations" / "train.json", root / "annotations" / f"{name}.json")
        shutil.copytree(root / "images" / "train", root / "images" / name)
    (root / "annotations" / "train.json").unlink()
    return ["train", "--head", "detection", "--data", root, "--out", root / "out"]


def test_of_several_splits_to_train_on_one_is_named(
    run: Run, tmp_path: Path, trained: Trained
) -> None:
    argv = boxes_of_years(tmp_path, "train2014", "train2017")
    code, _, err = run(*argv)
    assert code == 1 and "has no split train, but train2014, train2017: name" in err
    code, _, err = run(*argv, "--split", "train2017")
    assert code == 0 and trained.training is not None, err
    assert trained.training.split == "train2017" and "warning" not in err
    code, _, err = run(*argv, "--split", "train2015")
    assert code == 1 and "has no split 'train2015'" in err


def test_the_only_split_to_train_on_may_have_another_name(
    run: Run, tmp_path: Path, trained: Trained
) -> None:
    argv = boxes_of_years(tmp_path, "trainval")
    code, said, err = run(*argv)
    assert code == 0 and "training on coco trainval: 2 pictures" in said, (said, err)
    code, _, err = run(*argv, "--validation", "trainval")
    assert "2 of 2 pictures to train on are such that are in trainval, too" in err


def test_several_data_sets_in_a_folder_must_be_chosen_from(
    run: Run, coco: Path, tmp_path: Path
) -> None:
    code, _, err = run("train", "--data", coco, "--out", tmp_path)
    assert code == 1 and "refcoco, refcocog, refcocog/google" in err


# Runs.


def test_weights_that_cannot_be_had_are_one_line(
    run: Run, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("open_clip.create_model", fail)
    small = ("--set", "batch_size=2", "--set", "precision=float32")
    argv = ("train", "etris-vit-b16-refcoco", "--data", coco, "--out", tmp_path)
    code, _, err = run(*argv, *small)
    assert code == 1 and len(err.splitlines()) == 1
    assert "--set towers=open_clip:ViT-B-16-quickgelu:/path/to/weights.pt@416" in err


@pytest.mark.parametrize("trained", [True, False])
def test_an_interrupted_training_offers_to_go_on_where_it_can(
    trained: bool, run: Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridger.training.run.train", interrupted)
    monkeypatch.setattr("bridger.training.run.has_checkpoint", lambda out: trained)
    options = ["--split", "train", "--validation", "none"]
    code, _, err = run("train", "--data", scenes, "--out", tmp_path, *options)
    assert code == 130 and ("--split train --validation none --resume" in err) == trained, err


@pytest.mark.slow
def test_train_resume_evaluate(run: Run, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    argv = ["train", "--data", scenes, "--out", out]
    changes = [word for change in QUICK for word in ("--set", change)]
    code, said, err = run(*argv, "--steps", 3, *changes)
    assert code == 0, err
    assert "trainable parameters" in said and f"bridger evaluate {out}" in said
    assert "kept step 3: mIoU" in err
    assert Recipe.load(out / "recipe.json").head == HEAD
    assert run(*argv, "--steps", 3, *changes)[0] == 1  # the folder holds a run
    code, _, err = run(*argv, "--resume", "--steps", 5)
    assert code == 1 and "differs in steps" in err
    assert run(*argv, "--resume")[0] == 0  # nothing is left to do
    code, said, _ = run("evaluate", out, "--data", scenes, "--json", tmp_path / "e.json")
    assert code == 0 and "testB" in said
    figures = json.loads((tmp_path / "e.json").read_text())["results"]
    assert [result["split"] for result in figures] == ["val", "val", "testA", "testB"]
    names = {"mIoU", "oIoU", *(f"P@0.{i}" for i in range(5, 10))}
    assert all(set(result["metrics"]) == names for result in figures)


def test_words_that_no_tokenizer_knows_are_said_before_training(run: Run, tmp_path: Path) -> None:
    write_own_data(tmp_path / "own")
    lines = read_lines(tmp_path / "own" / "train.jsonl")
    lines[3]["sentence" if "sentence" in lines[3] else "sentences"] = (
        "左の丸" if "sentence" in lines[3] else ["左の丸"]
    )
    write_lines(tmp_path / "own" / "train.jsonl", lines)
    code, _, err = run("train", "--data", tmp_path / "own", "--out", tmp_path / "out", "--steps", 2)
    assert code == 1 and "'左の丸' holds no word that the tokenizer knows; leave it out" in err
    assert "folder train" in err and not (tmp_path / "out" / "checkpoints").exists()
