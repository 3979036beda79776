"""Single runs of studies: what they leave, and that being killed changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridger import BridgedModel
from bridger.data import RefCOCO
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate
from bridger.studies import perform as performing
from bridger.studies import scheduling
from bridger.studies.conduct import Conduct
from bridger.studies.data import open_data, splits_to_judge
from bridger.studies.meters import Meters
from bridger.studies.perform import order_of, perform
from bridger.studies.scheduling import Machine
from bridger.studies.store import Plan, Run, Store, fingerprint
from bridger.studies.study import Study
from bridger.tasks import get_task
from bridger.training import Recipe

SMALL = Recipe(
    head={"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
    bridger_options={"hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "dropout": 0.0},
    steps=4,
    batch_size=2,
    evaluations=2,
    learning_rate=1e-2,
    report_to=(),
)
COUNTS = {"train": 6, "val": 3, "testA": 2, "testB": 2}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNTS, size=64)
    return folder


@pytest.fixture(scope="module")
def made(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbed."""
    return make(scenes, tmp_path_factory.mktemp("store"))


def planned(scenes: Path, **changes: Any) -> Plan:
    prints = {split: fingerprint(RefCOCO(scenes, split)) for split in ("train", "val", "testA")}
    return Plan("small", SMALL.replace(**changes), scenes, ("val", "testA"), prints)


def make(scenes: Path, root: Path, **changes: Any) -> Run:
    store, plan = Store(root), planned(scenes, **changes)
    asked = [{"split": "testA", "index": 1, "image": "", "words": "the owl"}]
    store.write_questions(plan.fingerprints, asked)
    perform(store.prepare(plan))
    run = store.find(plan)
    assert run is not None
    return run


def figures(run: Run) -> Any:
    return run.result["splits"], [run.cases("testA").intersection.tolist(), run.history()]


def test_a_run_tells_what_its_adapter_does(made: Run, scenes: Path) -> None:
    model = BridgedModel.from_pretrained(made.folder / "adapter")
    for split in ("val", "testA"):
        judged = evaluate(model, RefCOCO(scenes, split))
        for name, value in judged.metrics().items():
            assert made.metric(split, name) == pytest.approx(value, abs=1e-6)
        cases = made.cases(split)
        assert cases.union.tolist() == judged.unions.tolist()
        pictures = [case.picture for case in judged.cases]
        assert len(set(zip(cases.picture.tolist(), pictures, strict=True))) == len(set(pictures))
    counts = made.result["parameters"]
    assert sum(counts.values()) == sum(p.numel() for p in model.trainable_parameters())
    assert counts["head"] == sum(p.numel() for p in model.heads.parameters())
    model.detach()


def test_a_run_leaves_what_reports_need_and_no_more(made: Run, scenes: Path) -> None:
    data, task = RefCOCO(scenes, "train"), get_task("referring_segmentation")
    assert made.result["samples"]["order"] == order_of(SMALL, task, data)
    assert (made.result["steps"], made.result["seed"]) == (4, 0)
    assert made.result["seconds"]["step"] > 0
    assert made.result["memory"]["peak"] >= made.result["memory"]["loaded"]
    steps = [entry["step"] for entry in made.history() if "eval_mIoU" in entry]
    assert steps == [2, 4]
    names = {path.name for path in made.folder.iterdir()}
    assert names >= {"result.json", "plan.json", "history.json", "adapter", "pictures"}
    assert not names & {"trained.json", "meters.json"}
    assert not (made.folder / "adapter" / "checkpoints").exists()
    assert [path.name for path in (made.folder / "pictures").iterdir()] == ["0.jpg"]


def test_a_run_that_diverges_ends_and_says_so(made: Run, scenes: Path, tmp_path: Path) -> None:
    assert made.diverged is None
    run = make(scenes, tmp_path, learning_rate=1e30)
    assert run.diverged == 2
    assert run.metric("testA", "mIoU") == 0 and run.result["splits"]["testA"]["loss"] is None


def test_a_run_killed_while_it_is_judged_ends_the_same(
    made: Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(performing, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            make(scenes, tmp_path)
    run = make(scenes, tmp_path)
    assert figures(run) == figures(made)
    assert run.result["steps"] == 4
    assert run.result["seconds"]["step"] > 0


def test_a_run_killed_in_training_goes_on_and_ends_the_same(
    made: Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Meters.on_step_end

    def dying(self: Meters, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        ended(self, args, state, *rest, **kwargs)
        if state.global_step == 3:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Meters, "on_step_end", dying)
        with pytest.raises(MemoryError):
            make(scenes, tmp_path)
    run = make(scenes, tmp_path)
    assert figures(run) == figures(made)
    assert run.result["steps"] == 4  # two of the first sitting, two of the second


def test_a_run_on_data_that_changed_is_refused(scenes: Path, tmp_path: Path) -> None:
    plan = planned(scenes)
    changed = Plan(plan.setting, SMALL, scenes, plan.splits, {**plan.fingerprints, "val": "b"})
    with pytest.raises(ValueError, match=r"val in .* has changed"):
        perform(Store(tmp_path).prepare(changed))


# Data.


def test_splits_are_those_of_the_data_set_that_a_recipe_names(scenes: Path) -> None:
    assert splits_to_judge(SMALL, scenes, "val") == ["val", "testA", "testB"]
    assert list(open_data(SMALL, scenes, ["val"])) == ["train", "val"]
    with pytest.raises(FileNotFoundError, match=r"refcoco\+"):
        splits_to_judge(SMALL.replace(datasets=["refcoco+"]), scenes, "val")
    with pytest.raises(ValueError, match="has train, val, testA, testB: name the splits so"):
        splits_to_judge(SMALL, scenes, "validation")


def test_heads_that_give_no_masks_are_refused(scenes: Path) -> None:
    recipe = Recipe(task="referring_comprehension")
    with pytest.raises(ValueError, match="referring_comprehension gives none"):
        splits_to_judge(recipe, scenes, "val")


# A whole study, with made-up trainings.

WORKER = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
plan = json.loads((folder / "plan.json").read_text())
if plan["recipe"]["bridger_options"].get("hidden_dim") == 99:
    raise SystemExit("out of memory")
split = {"mIoU": plan["recipe"]["learning_rate"], "oIoU": 0.5}
result = {"setting": plan["setting"], "seed": plan["recipe"]["seed"], "seconds": {"all": 1.0},
          "splits": dict.fromkeys(plan["splits"], split), "recipe": plan["recipe"]}
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def conduct(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Conduct]:
    def build(settings: dict[str, Any], **options: Any) -> Conduct:
        monkeypatch.setattr(scheduling, "PERFORM", (sys.executable, "-c", WORKER))
        asked = Study.from_dict({"name": "small", "settings": settings, **options})
        return Conduct(asked, scenes, Store(tmp_path), Machine(2, 1), seeds=2)

    return build


def test_a_rival_whose_search_fails_has_a_row_that_says_so(
    conduct: Callable[..., Conduct],
) -> None:
    wide = {"changes": {"bridger_options": {"hidden_dim": 99, "num_heads": 9}}}
    conducted = conduct(
        {
            "alone": {"changes": {"bridgers": None}, "search": ["learning_rate"]},
            "wide": {**wide, "search": ["bridger_learning_rate"]},
            "as wide": {"rates": "wide"},
            "usual": {},
            "absent": {"reason": "nobody has it"},
        },
        search={"values": [0.001, 0.002], "first": "alone"},
    )
    rows = {row.name: row for row in conducted().rows}
    assert list(rows) == ["alone", "wide", "as wide", "usual", "absent"]
    assert [run.seed for run in rows["usual"].runs] == [0, 1]
    assert rows["usual"].runs[0].result["recipe"]["learning_rate"] == 0.002
    assert "no learning rate was found for wide" in str(rows["wide"].reason)
    assert rows["as wide"].reason == rows["wide"].reason
    assert rows["absent"].reason == "nobody has it"
    assert "out of memory" in conducted.failures[0]


def test_questions_are_those_of_the_data(conduct: Callable[..., Conduct], tmp_path: Path) -> None:
    conducted = conduct({"usual": {}})
    conducted()
    asked = conducted.store.questions(conducted.fingerprints)
    assert [question["split"] for question in asked] == ["testA", "testA", "testB", "testB"]
    folder = conducted.store.questions_folder(conducted.fingerprints)
    assert {path.name for path in folder.glob("*.jpg")} == {f"{i}.jpg" for i in range(4)}
    write_scenes(tmp_path / "others", {**COUNTS, "testA": 4}, size=64)
    other = Conduct(conducted.study, tmp_path / "others", conducted.store, Machine(1, 1), seeds=1)
    other()
    assert other.store.questions_folder(other.fingerprints) != folder


def test_settings_on_different_data_are_refused(conduct: Callable[..., Conduct]) -> None:
    other = {"changes": {"datasets": ["refcoco+"]}}
    with pytest.raises(ValueError, match="different data sets"):
        conduct({"usual": {}, "other": other})()


def test_imported_files_tell_runs_apart(conduct: Callable[..., Conduct], tmp_path: Path) -> None:
    conducted = conduct({"usual": {}})
    digests = {conducted.plan("usual").digest}
    for text in ("a = 1", "a = 2"):
        file = tmp_path / "mine.py"
        file.write_text(text)
        other = Conduct(
            conducted.study,
            conducted.data,
            conducted.store,
            Machine(1, 1),
            imports=[str(file)],
        )
        digests.add(other.plan("usual").digest)
    assert len(digests) == 3
