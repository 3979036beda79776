"""What all evaluations have in common: order, shares of several processes, reports, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_evaluation import few
from helpers_judging import boxed, classified, model_with, segmented
from torch import multiprocessing

from bridger.evaluation import (
    SemanticEvaluation,
    evaluate_classification,
    evaluate_comprehension,
    evaluate_detection,
    evaluate_semantic,
    pictures,
    summary,
)
from bridger.evaluation.semantic import SemanticCase
from bridger.model import BridgedModel

REFS = [(0, 3, 1), (1, 2, 1), (0, 1, 1), (2, 1, 1), (3, 2, 1)]
KINDS: dict[str, tuple[Callable[..., Any], Callable[[Path], Any]]] = {
    "regions": (evaluate_semantic, segmented),
    "boxes": (evaluate_detection, boxed),
    "phrases": (evaluate_comprehension, lambda folder: few(folder, REFS)),
    "label": (evaluate_classification, classified),
}
"""By the head's name: how it is judged, and on what."""

each_head = pytest.mark.parametrize("head", KINDS)


@pytest.fixture(scope="module")
def model() -> BridgedModel:
    torch.manual_seed(0)
    return model_with(*KINDS)


def judge(head: str, model: BridgedModel, folder: Path, **options: Any) -> Any:
    evaluate, data = KINDS[head]
    return evaluate(model, data(folder), head, **{"batch_size": 2, **options})


def same(first: Any, second: Any) -> bool:
    """Whether two evaluations hold the same to the last bit."""
    pairs = zip(first.cases, second.cases, strict=True)
    return first.metrics() == second.metrics() and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in vars(a)
    )


@each_head
def test_shares_are_disjoint_and_make_up_the_whole(
    head: str, model: BridgedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge(head, model, tmp_path)
    shares, reports = [], []
    for rank in range(2):
        monkeypatch.setattr(pictures, "rank_and_world", lambda r=rank: (r, 2))
        told: list[Any] = []
        shares.append(judge(head, model, tmp_path, report=lambda *args, t=told: t.append(args)))
        reports.append(told)
    assert sum(map(len, shares)) == len(whole) and min(map(len, shares)) > 0
    # As many forwards in each, though their shares differ.
    assert len(reports[0]) == len(reports[1])
    assert [told[-1][:2] for told in reports] == [(len(share),) * 2 for share in shares]


@each_head
def test_a_report_ends_with_the_whole(head: str, model: BridgedModel, tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    found = judge(head, model, tmp_path, report=lambda *args: told.append(args))
    done, total, headline = told[-1]
    assert done == total == len(found)
    assert [each[0] for each in told] == sorted({each[0] for each in told})
    if head == "boxes":  # average precision takes all pictures at once
        assert np.isnan(headline)
    else:
        assert headline == pytest.approx(found.metrics()[found.headline], abs=1e-12)


@each_head
def test_the_models_mode_comes_back(head: str, model: BridgedModel, tmp_path: Path) -> None:
    model.heads.train()
    modes = [module.training for module in model.modules()]
    try:
        judge(head, model, tmp_path)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()


@each_head
def test_what_cannot_be_judged_is_refused(
    head: str, model: BridgedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, data = KINDS[head]
    monkeypatch.setattr(type(model), "encode", lambda *_, **__: pytest.fail("too late"))
    other = next(name for name in KINDS if name != head)
    refused = rf"head '{other}' is a {model.heads[other].name} head, which was not trained to"
    with pytest.raises(ValueError, match=refused):
        evaluate(model, data(tmp_path), other)
    with pytest.raises(ValueError, match="several heads could answer"):
        evaluate(model, data(tmp_path))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        judge(head, model, tmp_path, batch_size=0)
    there = data(tmp_path)
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the \d pictures of .* missing: .*0.png"):
        evaluate(model, there, head)


def semantic(classes: int) -> SemanticEvaluation:
    """Class k has k + 1 pixels, one of which is right; every second one was trained on."""
    names = tuple(f"class {k:02}" for k in range(classes))
    pairs = [((k, k), 1) for k in range(classes)]
    pairs += [((k, classes), k) for k in range(1, classes)]
    true, predicted = zip(*(pair for pair, _ in pairs), strict=True)
    case = SemanticCase("a.png", "a", true, predicted, tuple(count for _, count in pairs))
    return SemanticEvaluation("few", "val", names, (True, False) * (classes // 2), (case,))


@pytest.mark.parametrize("classes", [4, 12])
def test_of_many_classes_the_best_and_the_worst_are_shown(classes: int) -> None:
    figures, shown = summary.tables([semantic(classes)], "mine")
    ranked = [f"class {k:02}" for k in range(classes)]
    names = [row[0] for row in shown.rows]
    assert names == (ranked if classes == 4 else [*ranked[:5], *ranked[-5:]])
    assert list(shown.header) == ["class", "IoU", "accuracy", "trained on"]
    assert list(shown.rows[1]) == ["class 01", "50.00", "50.00", "no"]
    assert ("the best 5 and the worst 5 of 12" in shown.title) == (classes == 12)
    assert list(figures.header[:4]) == ["data set", "split", "pictures", "mIoU"]
    mean = np.mean([1 / (k + 1) for k in range(classes)])
    assert figures.rows[0][3].startswith(f"{100 * mean:.2f} [")
    record = summary.record(semantic(classes))
    assert record["per_class"]["class 01"] == {"IoU": 0.5, "accuracy": 0.5, "seen": False}
    assert record["metrics"]["mIoU"] == pytest.approx(mean)


def judge_in_a_process(rank: int, world: int, folder: Path) -> None:
    """What each process of the test below does."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    model = model_with(*KINDS)
    found = {head: judge(head, model, folder) for head in KINDS}
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_same_as_one_to_the_last_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_with(*KINDS)
    alone = {head: judge(head, model, tmp_path) for head in KINDS}
    multiprocessing.spawn(judge_in_a_process, (2, tmp_path), nprocs=2)
    for rank in range(2):
        found = pickle.loads((tmp_path / f"found-{rank}").read_bytes())
        assert all(same(found[head], alone[head]) for head in KINDS)
