"""From raw files to a results table by the commands of examples/refcoco, traps and all."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_traps import set_traps

from bridger.cli.main import main
from bridger.data import open_split
from bridger.data.scenes import write_scenes

EXAMPLES = Path(__file__).parent.parent / "examples" / "refcoco"
SMALL = ["head.width=32", "head.num_layers=1", "steps=2", "evaluations=1", "batch_size=4"]


def run(name: str, *args: str, cwd: Path) -> str:
    argv = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small(*more: str) -> list[str]:
    return [part for change in (*SMALL, *more) for part in ("--set", change)]


@pytest.mark.slow
def test_raw_files_with_traps_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes("raw", {"train": 10, "val": 3, "testA": 2, "testB": 2}, size=64)
    traps = set_traps(Path("raw"))
    assert main(["data", "check", "raw", "--sheet", "sheet.png"]) == 1
    said = capsys.readouterr().out
    wrong, notes = said.split("notes:")
    assert traps["missing"] in wrong and f"ref {traps['twice']}: 2 times" in wrong
    assert f"ref {traps['empty']}: " in wrong and "is 1 x 1" in notes and "has 63" in notes
    # Training says at once that a picture is missing, and not in the middle of the night.
    assert main(["train", "--data", "raw", "--out", "never"]) == 1
    assert traps["missing"] in capsys.readouterr().err and not Path("never").exists()

    assert main(["data", "convert", "raw", "clean", "--drop-broken"]) == 0
    assert main(["data", "check", "clean"]) == 0
    kept = open_split("clean", "train")
    whole = {s.ref_id for s in open_split("raw", "train") if s.image_path.is_file()}
    assert {kept[i].ref_id for i in range(len(kept))} == whole - {traps["empty"]}

    row = ["quickstart", "--data", "clean", "--seeds", "0", "1", *small()]
    run("row.py", *row, cwd=tmp_path)
    assert (tmp_path / "rows/quickstart-seed-1/report/report.html").is_file()
    assert run("row.py", *row, cwd=tmp_path).count("is finished") == 2
    argv = [sys.executable, str(EXAMPLES / "row.py"), *row, "--set", "steps=3"]
    other = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "of another recipe (steps)" in other.stdout
    table = run("table.py", "rows", cwd=tmp_path)
    assert "| refcoco/unc, mIoU in percent | val | testA | testB |" in table
    assert "| **quickstart** |" in table and table.count("(2 seeds)") == 3


@pytest.mark.slow
def test_expressions_that_mean_nothing_or_several_become_a_table(tmp_path: Path) -> None:
    counts = {"train": 8, "val": 3, "testA": 2, "testB": 2}
    for layout in ("refcoco", "grefcoco"):
        write_scenes(tmp_path / "raw", counts, 64, layout=layout)
    # As in the folder of the guide there are several data sets, and the recipe says which.
    which = small("head.no_target=true", 'datasets=["grefcoco"]')
    run("row.py", "quickstart", "--data", "raw", *which, cwd=tmp_path)
    results = json.loads((tmp_path / "rows/quickstart/evaluation.json").read_text())["results"]
    assert all({"gIoU", "cIoU", "N-acc", "T-acc"} <= set(r["metrics"]) for r in results)
    assert "grefcoco/unc, gIoU" in run("table.py", "rows", "--metric", "gIoU", cwd=tmp_path)


def test_rows_of_other_recipes_are_other_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, steps, seed in (("mine", 3, 0), ("mine-seed-1", 3, 1), ("mine-seed-2", 9, 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps({"steps": steps, "seed": seed}))
        result = {"split": "val", "sentences": "first", "metrics": {"mIoU": steps / 10}}
        result |= {"dataset": "folder", "published_by_others": []}
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"results": [result]}))
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / "table.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "| **mine** | 30.00 +- 0.00 (2 seeds) |",
        "| **mine-seed-2** | 90.00 |",
    ]
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path), "--metric", "gIoU"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(EXAMPLES / "table.py"), run_name="__main__")
    assert "metric 'gIoU'" in capsys.readouterr().err


def test_the_table_keeps_published_figures_apart_and_follows_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"method": "ETRIS R50", "metric": "mIoU", "percent": 70.39, "source": "a README"}
    for seed, value in enumerate((0.5, 0.7)):
        results: list[dict[str, Any]] = [
            {"split": "val", "sentences": "every", "metrics": {"mIoU": 0.1}},
            {"split": "val", "sentences": "first", "metrics": {"mIoU": value}},
            {"split": "testA", "sentences": "every", "metrics": {"mIoU": 0.25}},
        ]
        for result in results:
            result |= {"dataset": "refcoco/unc", "published_by_others": []}
        results[1]["published_by_others"] = [theirs, {**theirs, "metric": "oIoU", "percent": 1.0}]
        folder = tmp_path / f"mine-seed-{seed}"
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"results": results}))
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / "table.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "| refcoco/unc, mIoU in percent | val | testA |",
        "| --- | --- | --- |",
        "| **mine** | 60.00 +- 14.14 (2 seeds) | 25.00 +- 0.00 (2 seeds) |",
        "| published: ETRIS R50 (a README) | 70.39 |  |",
    ]
