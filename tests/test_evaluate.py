"""Judging a model: what is counted, in which shares, and what the command makes of it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_evaluation import Few, few, untrained_model
from torch import multiprocessing

from bridger.cli import main
from bridger.data import RefCOCO
from bridger.data.scenes import write_scenes
from bridger.evaluation import SegmentationMetrics, evaluate, pictures
from bridger.evaluation.expressions import plan_batches
from bridger.model import BridgedModel

REFS = [(0, 3, 1), (1, 2, 1), (0, 1, 1), (2, 1, 1), (3, 3, 1), (4, 2, 1), (2, 1, 1)]
"""(picture, sentences, objects) of the refs."""
NEAR_MEDIAN = 0.47
"""A threshold that an untrained head is on both sides of."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> BridgedModel:
    torch.manual_seed(0)
    return untrained_model()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Few:
    return few(tmp_path_factory.mktemp("few"), REFS)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


def predicted_counts(model: BridgedModel, data: Few, threshold: float) -> list[tuple[int, ...]]:
    """Intersection, union and true area of every expression, as `predict` finds them."""
    counts = []
    for index, sentence in data.expressions():
        sample = data[index]
        result: Any = model.predict(sample.image_path, sample.sentences[sentence], threshold)
        found, meant = result.masks[0], sample.mask > 0
        counts.append((int((found & meant).sum()), int((found | meant).sum()), int(meant.sum())))
    return counts


# What is counted.


def test_every_sentence_is_judged_as_predict_answers(model: BridgedModel, data: Few) -> None:
    found = evaluate(model, data, NEAR_MEDIAN, batch_size=5)
    expected = predicted_counts(model, data, NEAR_MEDIAN)
    assert 0.05 < found.metrics()["mIoU"] < 0.95
    ours = list(zip(found.intersections, found.unions, found.areas, strict=True))
    # Batches differ, and so do sums in the last bits: a pixel or two may change sides.
    assert np.abs(np.array(ours) - np.array(expected)).max() <= 2
    metrics = SegmentationMetrics()
    for index, sentence in data.expressions():
        sample = data[index]
        result: Any = model.predict(sample.image_path, sample.sentences[sentence], NEAR_MEDIAN)
        metrics.update(result.masks[0], sample.mask > 0)
    assert found.metrics() == pytest.approx(metrics.compute(), abs=2e-3)


def test_cases_say_what_they_are_of_in_the_order_of_the_data_set(
    model: BridgedModel, data: Few
) -> None:
    found = evaluate(model, data, batch_size=4)
    assert [(case.index, case.order) for case in found.cases] == data.expressions()
    assert (found.name, found.split, found.sentences) == ("few", "val", "every")
    for case in found.cases:
        sample = data[case.index]
        assert case.sentence == sample.sentences[case.order]
        assert (case.kind, case.sent_id) == (
            sample.kinds[case.order],
            sample.sent_ids[case.order],
        )
        assert (case.image, case.ref_id) == (str(sample.image_path), sample.ref_id)
        assert case.size == sample.mask.shape and case.area == sample.mask.sum()
        assert (case.source, case.objects) == ("few/all", 1)
    assert not found.generalized


def test_the_first_sentences_are_a_protocol_of_their_own(model: BridgedModel, data: Few) -> None:
    first = evaluate(model, data, NEAR_MEDIAN, first_sentence=True)
    assert [(case.index, case.order) for case in first.cases] == [(i, 0) for i in range(len(REFS))]
    assert first.sentences == "first"
    part = evaluate(model, data, NEAR_MEDIAN).first_sentences()
    assert part.metrics() == pytest.approx(first.metrics(), abs=2e-3)


def test_every_threshold_of_the_grid_is_counted_in_one_pass(model: BridgedModel, data: Few) -> None:
    whole = evaluate(model, data, 0.33)
    assert len(whole.thresholds) == 20
    for threshold in (0.35, 0.45, 0.5):
        anew = evaluate(model, data, threshold)
        assert whole.at(threshold).metrics() == anew.metrics()
    best = whole.best_threshold()
    scores = {t: whole.at(t).metrics()["mIoU"] for t in whole.thresholds}
    assert scores[best] == max(scores.values()) > min(scores.values())


def test_the_loss_is_the_mean_over_expressions(model: BridgedModel, data: Few) -> None:
    singles = [
        evaluate(model, Few([replace_sentences(data, i, j)])).loss for i, j in data.expressions()
    ]
    assert evaluate(model, data, batch_size=6).loss == pytest.approx(np.mean(singles), rel=1e-4)


def replace_sentences(data: Few, index: int, sentence: int) -> Any:
    sample = data[index]
    return replace(
        sample,
        sentences=(sample.sentences[sentence],),
        sent_ids=(sample.sent_ids[sentence],),
        kinds=(sample.kinds[sentence],),
    )


def test_batches_hold_pictures_of_as_many_expressions_each_once(data: Few) -> None:
    for size in (1, 4, 100):
        batches = plan_batches(data, size, first_sentence=False)
        assert sorted(pair for b in batches for pairs in b for pair in pairs) == data.expressions()
        for batch in batches:
            assert len({len(pairs) for pairs in batch}) == 1
            assert len(batch) == 1 or sum(map(len, batch)) <= size
            for pairs in batch:
                assert len({data[index].image_path for index, _ in pairs}) == 1


def test_what_means_nothing_is_right_when_nothing_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = untrained_model(no_target=True)
    data = few(tmp_path, [(0, 2, 1), (1, 2, 0), (2, 1, 3), (3, 1, 0)])
    bias = model.heads["head"].no_target[-1].bias
    found = {}
    for name, value in (("nothing", 50.0), ("something", -50.0)):
        with torch.no_grad():
            bias.fill_(value)
        found[name] = evaluate(model, data, 0.1)
        assert found[name].generalized
        for case, pixels in zip(found[name].cases, found[name].predicted, strict=True):
            result: Any = model.predict(case.image, case.sentence, 0.1)
            assert pixels == result.masks.sum()
    assert not found["nothing"].predicted.any() and found["something"].predicted.all()
    none, some = found["nothing"].metrics(), found["something"].metrics()
    assert (none["N-acc"], none["T-acc"], none["gIoU"]) == (1, 0, 0.5)
    assert (some["N-acc"], some["T-acc"]) == (0, 1) and 0 < some["gIoU"] < 0.5
    assert list(found["nothing"].by("size")) == ["small", "empty"]


def test_a_broken_mask_in_ordinary_data_is_no_reason_for_other_figures(
    model: BridgedModel, tmp_path: Path
) -> None:
    data = few(tmp_path, [(0, 1, 1), (1, 1, 0)])
    data.samples[1] = replace(data.samples[1], ann_ids=(7,))  # an object, but no pixel of it
    assert not evaluate(model, data).generalized


def test_a_report_ends_with_the_whole(model: BridgedModel, data: Few) -> None:
    said: list[tuple[int, int, float]] = []
    found = evaluate(model, data, NEAR_MEDIAN, batch_size=3, report=lambda *args: said.append(args))
    assert [done for done, _, _ in said] == sorted({done for done, _, _ in said})
    assert said[-1] == (13, 13, pytest.approx(found.metrics()["mIoU"], abs=1e-12))


def test_the_models_mode_comes_back(model: BridgedModel, data: Few) -> None:
    model.heads.train()
    modes = [module.training for module in model.modules()]
    try:
        evaluate(model, Few(data.samples[:1]))
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()


# What is refused.


def test_missing_pictures_are_named_before_anything_is_computed(
    model: BridgedModel, data: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = data.samples[0].image_path.with_name("gone.png")
    samples = [*data.samples[:5], replace(data.samples[5], image_path=gone)]
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("too late"))
    with pytest.raises(FileNotFoundError, match=r"1 of the 5 pictures of .* missing: .*gone.png"):
        evaluate(model, Few(samples), batch_size=1)


def test_impossible_evaluations_are_refused(model: BridgedModel, data: Few) -> None:
    for options, words in (
        ({"threshold": 35}, "between 0 and 1, got 35"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"head": "haed"}, "haed"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(model, data, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no expression to judge"):
        evaluate(model, Few([]))


# Several processes.


@pytest.mark.parametrize("world", [2, 3])
def test_shares_are_disjoint_and_make_up_the_whole(
    world: int, model: BridgedModel, data: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(model, data, NEAR_MEDIAN, batch_size=4)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(pictures, "rank_and_world", lambda r=rank: (r, world))
        shares.append(evaluate(model, data, NEAR_MEDIAN, batch_size=4).cases)
    cases = sorted((case for share in shares for case in share), key=lambda c: (c.index, c.order))
    assert tuple(cases) == whole.cases and min(map(len, shares)) > 0


def test_every_process_runs_as_many_batches(
    model: BridgedModel, data: Few, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where parameters are sharded, a forward that one process leaves out stops the others."""
    batches = len(plan_batches(data, 100, first_sentence=False))
    runs, reports, whole = [], [], type(model).encode

    def reporting(*args: Any) -> None:
        reports[-1] += 1

    def counting(*args: Any) -> Any:
        runs[-1] += 1
        return whole(*args)

    monkeypatch.setattr(type(model), "encode", counting)
    for rank in range(2):
        runs.append(0)
        monkeypatch.setattr(pictures, "rank_and_world", lambda r=rank: (r, 2))
        reports.append(0)
        evaluate(model, data, batch_size=100, report=reporting)
    assert batches % 2 == 1 and runs == reports == [(batches + 1) // 2] * 2


def judge_in_a_process(rank: int, world: int, folder: Path) -> None:
    """What each process of the test below does."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    found = evaluate(untrained_model(), few(folder, REFS), NEAR_MEDIAN, batch_size=4)
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_same_as_one_to_the_last_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    alone = evaluate(untrained_model(), few(tmp_path, REFS), NEAR_MEDIAN, batch_size=4)
    multiprocessing.spawn(judge_in_a_process, (2, tmp_path), nprocs=2)
    for rank in range(2):
        assert pickle.loads((tmp_path / f"found-{rank}").read_bytes()) == alone


# The command.


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 2, "val": 3, "testA": 2, "testB": 2}, size=64)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model: BridgedModel) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model.save_pretrained(folder)
    return folder


def test_the_command_judges_all_splits_but_train(
    run: Run, adapter: Path, scenes: Path, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"out/{name}" for name in ("json", "rows")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    code, said, err = run("evaluate", adapter, "--data", scenes, *options)
    assert code == 0, err
    figures = json.loads(files["json"].read_text())["results"]
    assert [(r["split"], r["sentences"]) for r in figures] == [
        ("val", "every"),
        ("val", "first"),
        ("testA", "every"),
        ("testB", "every"),
    ]
    rows = [json.loads(line) for line in files["rows"].read_text().splitlines()]
    for result in figures:
        split = RefCOCO(scenes, result["split"])
        every = result["sentences"] == "every"
        assert result["refs"] == len(split)
        assert result["expressions"] == (len(split.expressions()) if every else len(split))
        metrics, ends = result["metrics"], result["intervals"]
        assert all(ends[name][0] <= metrics[name] <= ends[name][1] for name in ("mIoU", "oIoU"))
        assert sum(part["expressions"] for part in result["by"]["kind"].values()) == len(
            split.expressions() if every else split
        )
        assert result["published_by_others"] == []  # scenes are not RefCOCO
        if every:
            own = [row["iou"] for row in rows if row["split"] == result["split"]]
            assert np.mean(own) == pytest.approx(metrics["mIoU"], abs=1e-12)
    assert len(rows) == sum(r["expressions"] for r in figures if r["sentences"] == "every")
    assert "first sentences" in said and "not comparable" in said and "published" not in said
    assert "mIoU so far" in err


def test_the_protocol_can_be_named(run: Run, adapter: Path, scenes: Path, tmp_path: Path) -> None:
    for sentences in ("first", "every"):
        options = ["--sentences", sentences, "--split", "val", "--json", tmp_path / "a.json"]
        assert run("evaluate", adapter, "--data", scenes, *options)[0] == 0
        (result,) = json.loads((tmp_path / "a.json").read_text())["results"]
        assert (result["split"], result["sentences"]) == ("val", sentences)


def test_what_the_command_cannot_do_is_said_before_it_judges(
    run: Run, adapter: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridger.cli.evaluate.load_model", lambda *_: pytest.fail("too late"))
    (tmp_path / "file").touch()
    for options, words in (
        (["--split", "test"], "has no split 'test'"),
        (["--report", tmp_path / "file"], "is a file, not a folder"),
        (["--rows", tmp_path], "is a folder; expected a file"),
    ):
        code, _, err = run("evaluate", adapter, "--data", scenes, *options)
        assert code == 1 and words in err, err


@pytest.mark.slow
def test_two_processes_under_a_launcher_say_the_same_once(
    run: Run, adapter: Path, scenes: Path, tmp_path: Path
) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["evaluate", adapter, "--data", scenes, "--split", "testA", "--batch-size", "4"]
    results = []
    for name in ("alone", "together"):
        files = ["--json", tmp_path / f"{name}.json", "--rows", tmp_path / f"{name}.jsonl"]
        if name == "alone":
            assert run(*command, *files)[0] == 0
        else:
            argv = [sys.executable, *launcher, "-m", "bridger", *map(str, [*command, *files])]
            done = subprocess.run(
                argv, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("figures in percent") == 1
        rows = (tmp_path / f"{name}.jsonl").read_text()
        results.append((json.loads((tmp_path / f"{name}.json").read_text()), rows))
    assert results[0] == results[1]
