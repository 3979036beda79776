"""Studies: what they ask, which runs that means, and that each is made once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_examples import EXAMPLES

from bridger.data import RefCOCO
from bridger.data.scenes import write_scenes
from bridger.studies import scheduling
from bridger.studies.perform import order_of
from bridger.studies.scheduling import Machine, RunFailed, run_all
from bridger.studies.search import Rates
from bridger.studies.store import Cases, Plan, Run, Store, fingerprint
from bridger.studies.study import COMPARISON, Study, study_names
from bridger.tasks import get_task
from bridger.training import Recipe

SMALL = {"name": "small", "base": "quickstart"}
STUDIES = [*study_names(), *sorted((EXAMPLES / "studies").glob("*.json"))]


def study(**values: Any) -> Study:
    return Study.from_dict({**SMALL, "settings": {"usual": {}}, **values})


def plan(name: str = "usual", seed: int = 0, **changes: Any) -> Plan:
    recipe = Recipe.preset("quickstart", seed=seed, **changes)
    return Plan(name, recipe, Path("data"), ("val",), {"train": "a", "val": "b"})


# What a study asks.


@pytest.mark.parametrize("name", STUDIES, ids=lambda name: Path(name).stem)
def test_every_study_can_be_followed(name: str | Path) -> None:
    asked = Study.load(name)
    recipes = {setting: asked.recipe(setting) for setting in asked.runnable()}
    assert asked.note and asked.reference in recipes
    differing = {json.dumps(recipe.to_dict(), sort_keys=True) for recipe in recipes.values()}
    assert len(differing) == len(recipes)  # no two settings are the same run


@pytest.mark.parametrize("name", STUDIES, ids=lambda name: Path(name).stem)
def test_the_settings_of_a_study_share_one_budget(name: str | Path) -> None:
    asked = Study.load(name)
    budgets = {
        (recipe.steps, recipe.batch_size, recipe.expressions, recipe.schedule, recipe.accumulation)
        for recipe in map(asked.recipe, asked.runnable())
    }
    assert len(budgets) == 1


def test_groups_of_options_are_merged_with_the_bases() -> None:
    asked = study(settings={"wide": {"changes": {"bridger_options": {"hidden_dim": 128}}}})
    base = Recipe.preset("quickstart")
    expected = {**base.bridger_options, "hidden_dim": 128}
    assert asked.recipe("wide").bridger_options == expected
    assert asked.recipe("wide", seed=3).seed == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"settings": {}}, "needs settings to run"),
        ({"settings": {"a": {"change": {}}}}, "'a'.*did you mean 'changes'"),
        ({"settings": {"a": {}, "b": {"reason": "no", "changes": {"eps": 1}}}}, "with a reason"),
        ({"settings": {"a": {}}, "reference": "b"}, "reference 'b' is no setting"),
        ({"settings": {"a": {"rates": "b"}}}, "a.rates 'b' is no setting"),
        ({"settings": ["a"]}, "settings must be a JSON object"),
        ({"settings": {"a": {"changes": ["x"]}}}, "'a'.*changes must be options"),
        ({"settings": {"a": {"changes": {"seed": 3}}}}, "'a'.*the seed is the runs'"),
        ({"settings": {"a": {"search": ["eps"]}}}, "'a'.*search"),
        ({"settings": {"a": {"search": "learning_rate"}}}, "'a'.*a list of rates"),
        ({"settings": {"a": {"search": ["learning_rate"]}}}, "the study has no search"),
        ({"settings": {"a": {}, "b": {"rates": "a"}}, "search": {"values": [1]}}, "not searched"),
        ({"scenes": {"trian": 3}}, "scenes"),
        ({"search": {"values": []}}, "needs values"),
        ({"search": {"values": [1e-3], "first": "b"}}, "search.first 'b' is no setting"),
    ],
)
def test_a_study_that_cannot_be_followed_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(**values)


def test_a_file_with_an_unknown_option_names_the_setting_and_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"settings": {"odd": {"changes": {"stepz": 3}}}}))
    with pytest.raises(ValueError, match=r"mine\.json.*'odd'.*did you mean 'steps'"):
        Study.load(path)
    with pytest.raises(ValueError, match="did you mean 'positions'"):
        Study.load("position")


def test_other_presets_and_empty_groups_are_not_merged() -> None:
    settings = {
        "gate": {"changes": {"bridgers": "etris_vit", "bridger_options": {"hidden_dim": 32}}},
        "plain": {"changes": {"bridger_options": {}, "head": {}}},
        "CLIPSeg": {"changes": {"task": "clipseg", "head": {"width": 32}}},
        "no peft": {"changes": {"peft": {}}},
    }
    base = {"peft": {"text": {"peft_type": "LORA", "target_modules": ["c_fc"]}}}
    asked = study(settings=settings, changes=base)
    assert asked.recipe("gate").bridger_options == {"hidden_dim": 32}
    assert asked.recipe("plain").bridger_options == asked.recipe("plain").head == {}
    assert asked.recipe("CLIPSeg").head == {"width": 32}
    assert asked.recipe("no peft").peft == {} != asked.recipe("plain").peft


def test_a_base_is_looked_for_beside_its_study(tmp_path: Path) -> None:
    Recipe.preset("quickstart", steps=7).save(tmp_path / "base.json")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": "base.json", "settings": {"usual": {}}}))
    assert Study.load(path).recipe("usual").steps == 7


@pytest.mark.parametrize("name", ["runs", "scenes", "../mine", ""])
def test_a_study_whose_report_would_lie_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        study(name=name).check()


def test_a_search_for_an_unknown_metric_is_refused_before_it_runs() -> None:
    asked = study(
        settings={"usual": {"search": ["learning_rate"]}},
        search={"values": [1e-3], "metric": "mIuO"},
    )
    with pytest.raises(ValueError, match="mIuO"):
        asked.check()


def test_some_settings_bring_those_that_they_need() -> None:
    asked = Study.load(COMPARISON)
    kept = asked.only(["BitFit, text"]).settings
    assert set(kept) == {asked.reference, "the head alone", "BitFit", "BitFit, text"}
    with pytest.raises(ValueError, match="did you mean .*'LoRA, rank 56'"):
        asked.only(["LoRA, rank 65"])


def test_rivals_of_equal_size_are_compared_at_rates_of_their_own() -> None:
    asked = Study.load(COMPARISON)
    sized = [name for name in asked.runnable() if asked.settings[name].size]
    borrowed = [name for name in sized if asked.rates_of(name) != name]
    assert borrowed == ["CLIPSeg's decoder, 64, and Bridgers, 64"]


# Which run that is.


def test_a_run_is_told_by_what_decides_it() -> None:
    usual = plan()
    assert plan(seed=1).digest == usual.digest
    assert plan(note="other words", cost="much").digest == usual.digest
    assert plan("another name").digest == usual.digest
    others = [
        plan(steps=7),
        plan(bridgers=None),
        replace(usual, splits=("val", "testA")),
        replace(usual, fingerprints={"train": "a", "val": "c"}),
    ]
    assert len({usual.digest, *(other.digest for other in others)}) == 5


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, asked = Store(tmp_path), plan(seed=2, trainable=("positions",))
    read = Plan.read(store.prepare(asked))
    assert (read.recipe, read.seed, read.digest) == (asked.recipe, 2, asked.digest)
    assert store.find(asked) is None


def test_cases_are_read_as_they_were_written(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << 20, size=(3, 50))
    Cases(*numbers).save(tmp_path / "cases.npz")
    read = Cases.load(tmp_path / "cases.npz")
    assert (np.stack([read.picture, read.intersection, read.union]) == numbers).all()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 6, "val": 2, "testA": 2, "testB": 2}, size=64)
    return folder


def test_data_are_told_by_what_they_hold_and_not_by_their_place(
    scenes: Path, tmp_path: Path
) -> None:
    write_scenes(tmp_path, {"train": 6, "val": 2, "testA": 2, "testB": 2}, size=64)
    first, second = (RefCOCO(folder, "train") for folder in (scenes, tmp_path))
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(RefCOCO(scenes, "testA"))
    path = next(tmp_path.glob("**/instances.json"))
    annotations = json.loads(path.read_text())
    for outline in annotations["annotations"]:
        outline["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    path.write_text(json.dumps(annotations))
    assert fingerprint(first) != fingerprint(RefCOCO(tmp_path, "train"))  # other masks alone


def test_all_settings_of_a_seed_see_the_same_pictures_and_words(scenes: Path) -> None:
    data, task = RefCOCO(scenes, "train"), get_task("referring_segmentation")
    asked = Study.load(COMPARISON)
    short = {"steps": 3, "batch_size": 2}
    orders = {
        order_of(asked.recipe(name, **short, seed=1), task, data) for name in asked.runnable()
    }
    assert len(orders) == 1
    assert orders != {order_of(asked.recipe(asked.reference, **short, seed=2), task, data)}


# Making runs.

WORKER = """
import json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
with (folder.parent.parent / "made").open("a") as made:
    print(folder.parent.name, folder.name, time.time(), "begin", file=made)
{work}
(folder / "result.json").write_text(json.dumps({{"setting": "x", "seed": 0}}))
with (folder.parent.parent / "made").open("a") as made:
    print(folder.parent.name, folder.name, time.time(), "end", file=made)
"""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a few lines in the place of training."""

    def put(work: str = "") -> None:
        command = (sys.executable, "-c", WORKER.format(work=work))
        monkeypatch.setattr(scheduling, "PERFORM", command)

    return put


def test_every_run_is_made_once(tmp_path: Path, worker: Callable[..., None]) -> None:
    worker()
    store, told = Store(tmp_path), []
    plans = [plan(seed=seed, steps=steps) for seed in (0, 1) for steps in (1, 2)]
    run_all([*plans, *plans], store, Machine(2, 1), lambda done, *_: told.append(done))
    run_all(plans, store, Machine(2, 1))
    lines = (tmp_path / "made").read_text().split("\n")
    assert sum("begin" in line for line in lines) == 4
    assert all(store.find(each) is not None for each in plans)
    assert told[-1] == 8


def test_no_more_runs_at_once_than_asked_for(tmp_path: Path, worker: Callable[..., None]) -> None:
    worker("time.sleep(0.3)")
    run_all([plan(seed=seed) for seed in range(4)], Store(tmp_path), Machine(2, 1))
    events = [line.split() for line in (tmp_path / "made").read_text().splitlines()]
    running, most = 0, 0
    for event in sorted(events, key=lambda event: float(event[2])):
        running += 1 if event[3] == "begin" else -1
        most = max(most, running)
    assert most == 2


def test_a_run_that_fails_is_named_after_the_others_were_made(
    tmp_path: Path, worker: Callable[..., None]
) -> None:
    worker("if folder.name == 'seed-1': raise SystemExit('the disk is full')")
    store = Store(tmp_path)
    (store.prepare(plan(seed=1)) / "log.txt").write_text("an older error\n")
    with pytest.raises(RunFailed, match=r"1 runs.*\n.*usual, seed 1: the disk is full.*log\.txt"):
        run_all([plan(seed=seed) for seed in range(3)], store, Machine(1, 1))
    assert [store.find(plan(seed=seed)) is not None for seed in range(3)] == [True, False, True]


def test_a_run_that_was_killed_says_so(tmp_path: Path, worker: Callable[..., None]) -> None:
    worker("import os; os.kill(os.getpid(), 9)")
    store = Store(tmp_path)
    (store.prepare(plan()) / "log.txt").write_text("an older error\n")
    with pytest.raises(RunFailed, match=r"usual, seed 0: killed by signal 9 \("):
        run_all([plan()], store, Machine(1, 1))


def test_gpus_that_the_user_chose_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5a")
    chosen = Machine.here()
    shown = [chosen.variables(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert (chosen.jobs, shown) == (2, ["2", "GPU-5a", "2"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Machine.here(jobs=4).devices == ("0", "1")
    alone = Machine.here(jobs=3, use_cpu=True)
    assert (alone.jobs, alone.threads, alone.devices, alone.use_cpu) == (3, 1, (), True)
    assert alone.variables(0)["CUDA_VISIBLE_DEVICES"] == ""


def test_an_interrupted_study_interrupts_its_runs(
    tmp_path: Path, worker: Callable[..., None]
) -> None:
    worker(
        "try:\n    (folder / 'ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    (folder / 'saved').touch(); raise SystemExit\n"
    )
    store, asked = Store(tmp_path), plan()

    start = scheduling._Pool.ended

    def ended(pool: Any) -> Any:
        if (store.folder(asked) / "ready").exists():
            raise KeyboardInterrupt
        return start(pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling._Pool, "ended", ended)
        with pytest.raises(KeyboardInterrupt):
            run_all([asked], store, Machine(1, 1))
    assert (store.folder(asked) / "saved").exists()
    assert store.find(asked) is None


# Searching rates.


def searched(figures: dict[tuple[str, float], float]) -> tuple[Rates, list[Plan]]:
    """Search where val gives these figures; return the rates and the plans that were made."""
    asked = study(
        settings={
            "alone": {"changes": {"bridgers": None}, "search": ["learning_rate"]},
            "one": {"group": "ones", "search": ["bridger_learning_rate"]},
            "two": {"group": "ones", "changes": {"bridger_options": {"hidden_dim": 16}}},
            "other": {"changes": {"bridgers": None, "steps": 9}},
        },
        search={"values": [0.1, 0.2, 0.4], "steps": 5, "first": "alone"},
    )
    made: list[Plan] = []

    def planning(name: str, splits: Sequence[str], **changes: Any) -> Plan:
        recipe = asked.recipe(name, **changes)
        return Plan(name, recipe, Path("data"), tuple(splits), {})

    def make(plans: Sequence[Plan]) -> list[Run | None]:
        made.extend(plans)
        return [
            Run(
                Path(),
                each.setting,
                each.seed,
                {
                    "splits": {"val": {"mIoU": figures[each.setting, _rate(each)]}},
                    "seconds": {"all": 2.0},
                },
            )
            for each in plans
        ]

    return Rates(asked, planning, make), made


def _rate(each: Plan) -> float:
    recipe = each.recipe
    return recipe.learning_rate if each.setting == "alone" else recipe.bridger_learning_rate or 0


FIGURES = {
    ("alone", 0.1): 0.5,
    ("alone", 0.2): 0.7,
    ("alone", 0.4): 0.6,
    ("one", 0.1): 0.1,
    ("one", 0.2): 0.2,
    ("one", 0.4): 0.3,
}


def test_rates_are_the_best_of_the_grid_and_the_first_holds_for_all() -> None:
    rates, _ = searched(FIGURES)
    assert rates.of("alone") == {"learning_rate": 0.2}
    assert rates.of("one") == {"learning_rate": 0.2, "bridger_learning_rate": 0.4}
    assert rates.of("two") == rates.of("one")
    assert rates.of("other") == rates.of("alone")
    assert [found.at_an_end for found in rates.found] == [False, True]
    assert [found.seconds for found in rates.found] == [6.0, 6.0]


def test_a_search_touches_val_alone_and_has_a_seed_of_its_own() -> None:
    _, made = searched(FIGURES)
    assert len(made) == 6
    assert {each.splits for each in made} == {("val",)}
    assert {each.seed for each in made} == {1000}
    assert {each.recipe.steps for each in made} == {5}
    assert {each.recipe.learning_rate for each in made if each.setting == "one"} == {0.2}


# All of it.


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_table(scenes: Path, tmp_path: Path) -> None:
    def ablate(out: Path) -> subprocess.Popen[bytes]:
        words = ("ablate", "padding", "--data", str(scenes), "--out", str(out), "--quick")
        command = [sys.executable, "-m", "bridger", *words, "--json", str(out / "told.json")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    first = ablate(killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("runs/*/*/log.txt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    first.send_signal(signal.SIGKILL)  # its runs live on, and the next study waits for them
    assert first.wait(10) != 0
    for out in (killed, whole):
        assert ablate(out).wait(300) == 0
    tables = [json.loads((out / "told.json").read_text()) for out in (killed, whole)]
    rows = [table["padding"]["rows"] for table in tables]
    assert rows[0] == rows[1]
    assert set(rows[0]) == {"masked", "not masked"}
