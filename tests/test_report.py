"""Evaluations as tables and as a page; published figures beside them, and never among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_evaluation import Few, case, evaluation, few, untrained_model
from helpers_page import HOSTILE, Page
from PIL import Image

from bridger.data import PUBLISHED
from bridger.evaluation import Evaluation, evaluate
from bridger.evaluation.page import write_page
from bridger.evaluation.published import PUBLISHED_FIGURES, published_beside
from bridger.evaluation.report import record, tables
from bridger.evaluation.table import Table


def of_refs(count: int, name: str = "refcoco/unc", split: str = "val") -> Evaluation:
    """An evaluation of a split with that many refs, of which one has two sentences."""
    cases = [case(30, 40, 50, index=i, picture=f"p{i % 7}") for i in range(count)]
    return evaluation([*cases, replace(cases[-1], order=1)], name=name, split=split)


# Published figures.


def test_published_figures_stand_where_the_literature_has_them() -> None:
    assert all(f.split in PUBLISHED[f.dataset].splits for f in PUBLISHED_FIGURES)
    assert all(f.split != "train" and f.source and 50 < f.percent < 85 for f in PUBLISHED_FIGURES)
    places = {(f.method, f.dataset, f.split, f.metric, f.source) for f in PUBLISHED_FIGURES}
    assert len(places) == len(PUBLISHED_FIGURES)
    values = {(f.method, f.dataset, f.split, f.metric): f.percent for f in PUBLISHED_FIGURES}
    # One of each corner of the table in docs/method.md's source.
    assert values["ETRIS R50", "refcoco", "val", "mIoU"] == 70.39
    assert values["ETRIS R101", "refcocog", "test", "mIoU"] == 60.42
    assert values["ETRIS ViT-B/16", "refcoco", "testA", "mIoU"] == 73.51
    assert values["CRIS R101", "refcoco+", "testB", "mIoU"] == 53.68
    assert values["DETRIS-L", "refcocog/google", "val", "oIoU"] == 65.0
    assert ("ETRIS R50", "refcoco+", "val", "mIoU") not in values  # not known: not filled in


def test_only_the_split_itself_is_compared() -> None:
    known = PUBLISHED["refcoco"].splits["val"][0]
    assert known is not None
    found = published_beside(of_refs(known))
    assert {(f.dataset, f.split) for f in found} == {("refcoco", "val")}
    assert {f.metric for f in found} == {"mIoU", "oIoU"}
    assert published_beside(of_refs(known).first_sentences()) == found
    for other in (
        of_refs(known - 1),
        of_refs(known, name="refcoco/google"),
        of_refs(known, name="folder"),
        of_refs(known, split="testA"),
        of_refs(known, name="refcocog/umd"),
    ):
        assert published_beside(other) == []
    google = PUBLISHED["refcocog/google"].splits["val"][0]
    assert google is not None
    (dataset,) = {f.dataset for f in published_beside(of_refs(google, name="refcocog/google"))}
    assert dataset == "refcocog/google"


def test_ours_and_theirs_are_told_apart() -> None:
    known = PUBLISHED["refcoco"].splits
    both = [of_refs(known[split][0] or 0, split=split) for split in ("testA", "testB")]
    made = tables(both, "mine")
    theirs = [table for table in made if table.published]
    assert [t.title.split()[0] for t in theirs] == ["mIoU", "oIoU"]
    assert made[-2:] == theirs  # after everything of ours
    for table in theirs:
        assert list(table.header) == ["", "refcoco/unc testA", "refcoco/unc testB", "source"]
        kinds = [row[0].split(": ")[0] for row in table.rows]
        assert kinds == ["OURS"] + ["published"] * (len(kinds) - 1)
        assert all(row[-1] for row in table.rows)
    r101 = next(row for row in theirs[0].rows if row[0] == "published: ETRIS R101")
    assert r101[1:3] == ["74.11", "66.66"]
    words = [cell for table in made if not table.published for row in table.rows for cell in row]
    assert not any("ETRIS" in word for word in words)
    beside = record(both[0])
    assert len(beside["published_by_others"]) == len(published_beside(both[0])) > 0
    assert "ETRIS" not in json.dumps({k: v for k, v in beside.items() if "published" not in k})


# Tables and records.


def test_a_table_is_laid_out_in_columns() -> None:
    table = Table("what", ["who", "n"], [["a", "1.00"], ["bcd", "10.00"]], note="and so on")
    assert table.lines() == [
        "what:",
        "  who      n",
        "  a     1.00",
        "  bcd  10.00",
        "and so on",
    ]


def test_a_wide_table_is_folded_and_loses_nothing() -> None:
    header = ["who", "of", "n", "mIoU", "oIoU"]
    rows = [["a", "val", "7", "1.00 [0.50, 2.00]", "3.00"], ["bcd", "test", "10", "-", "-"]]
    table = Table("what", header, rows, note="words " * 9)
    assert table.lines(33) == [
        "what:",
        "  who  of     n",
        "  a    val    7",
        "  bcd  test  10",
        "  who  of                 mIoU",
        "  a    val   1.00 [0.50, 2.00]",
        "  bcd  test                  -",
        "  who  of    oIoU",
        "  a    val   3.00",
        "  bcd  test     -",
        "words words words words words",
        "words words words words",
    ]
    assert all(len(line) <= 35 for line in table.lines(35)[1:-2])
    assert len(table.lines(80)) == 5
    assert len(table.lines(5)) == 1 + 3 * 3 + 9  # nothing is cut where there is no room at all


def test_protocols_and_parts_have_tables_of_their_own() -> None:
    cases = [
        case(
            40,
            50,
            60 if i % 2 else 2000,
            index=i // 2,
            order=i % 2,
            kind="place" if i % 3 else "colour",
        )
        for i in range(12)
    ]
    whole = evaluation(cases, thresholds=(0.35,))
    made = {table.title: table for table in tables([whole, whole.first_sentences()], "mine")}
    results = made["figures in percent, at threshold 0.35"]
    assert [row[2:4] for row in results.rows] == [
        ["every sentence", "12"],
        ["first sentences", "6"],
    ]
    assert results.header[4:6] == ["mIoU", "oIoU"]
    low, high = (100 * end for end in whole.bootstrap()["mIoU"])
    assert results.rows[0][4] == f"{100 * whole.metrics()['mIoU']:.2f} [{low:.2f}, {high:.2f}]"
    sizes, kinds = (made[f"mIoU in percent by {n}"] for n in ("object size", "kind of expression"))
    assert [row[0] for row in sizes.rows] == ["small", "medium"]
    assert list(kinds.header) == [
        "",
        "refcoco/unc val",
    ]  # the first sentences are a part: no column
    for row in kinds.rows:
        part = whole.by("kind")[row[0]]
        assert row[1] == f"{100 * part.metrics()['mIoU']:.2f} ({len(part)})"


def test_generalized_figures_have_a_table_of_their_own() -> None:
    some = evaluation([case(0, 0, 0), case(4, 5, 6, index=1)], generalized=True)
    all_mean = evaluation([case(4, 5, 6, index=1)], generalized=True, split="testA")
    ordinary = evaluation([case(4, 5, 6)], name="refcoco+/unc")
    made = tables([some, ordinary, all_mean], "mine")
    usual, general = made[0], made[1]
    assert len(usual.rows) == 3 and len(general.rows) == 2
    assert "mean nothing count as missed" in usual.note
    assert "missed" not in tables([ordinary], "mine")[0].note
    assert "gIoU" not in usual.header and "mIoU" not in general.header
    place = list(general.header).index("N-acc")
    assert [row[place] for row in general.rows] == ["100.00", "-"]
    best = [table for table in made if "best threshold" in table.title]
    assert [table.header[-2:] for table in best] == [["mIoU", "oIoU"], ["gIoU", "cIoU"]]
    sizes = [table for table in made if "object size" in table.title]
    assert [table.title.split()[0] for table in sizes] == ["mIoU", "gIoU"]
    assert [row[:2] for row in sizes[1].rows] == [["small", "57.14 (1)"], ["empty", "100.00 (1)"]]


def test_rows_hold_what_the_figures_are_made_of() -> None:
    whole = evaluation(
        [case(4, 5, 6, index=3), case(0, 0, 0, index=4, sentence=HOSTILE)], generalized=True
    )
    first, second = whole.rows()
    assert (first["intersection"], first["union"], first["iou"]) == (4, 7, 4 / 7.000001)
    assert (second["object_size"], second["sentence"]) == ("empty", HOSTILE)
    assert json.loads(json.dumps([first, second])) == [first, second]


# The page.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    torch.manual_seed(0)
    model, folder = untrained_model(), tmp_path_factory.mktemp("page")
    data = few(folder, [(0, 2, 1), (1, 1, 1), (2, 1, 1), (3, 1, 0)])
    hostile = replace(data.samples[1], sentences=(HOSTILE,), kinds=("<i>kind</i>",))
    data = Few([data.samples[0], hostile, *data.samples[2:]], name="<few>", split="val")
    found = evaluate(model, data, 0.47)
    (folder / "page" / "report_pictures").mkdir(parents=True)
    (folder / "page" / "report_pictures" / "old.jpg").touch()
    # A folder of one's own, where many have their pictures.
    (folder / "page" / "pictures").mkdir()
    (folder / "page" / "pictures" / "mine.jpg").touch()
    judged = [(data, found), (data, found.first_sentences())]
    return write_page(folder / "page", model, judged, "my <adapter>", count=3), found


def test_a_page_is_whole_and_harmless(written: tuple[Path, Evaluation]) -> None:
    path, _ = written
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "few", "adapter", "link", "iframe"} & set(page.tags)
    text = " ".join(page.words)
    assert HOSTILE in text and "<i>kind</i>" in text and "my <adapter>" in text and "<few>" in text
    alts = page.values("img", "alt")
    assert f"found: {HOSTILE}" in alts
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_a_page_shows_the_best_and_the_worst_of_each_split_once(
    written: tuple[Path, Evaluation],
) -> None:
    path, found = written
    page = Page(path.read_text(encoding="utf-8"))
    sources = page.values("img", "src")
    assert len(sources) == len(set(sources)) == 2 * 3 * 3
    assert (path.parent / "pictures" / "mine.jpg").exists()
    assert sorted(sources) == sorted(
        f"report_pictures/{p.name}" for p in path.parent.glob("report_pictures/*")
    )
    for source, width in zip(sources, page.values("img", "width"), strict=True):
        with Image.open(path.parent / source) as picture:
            assert max(picture.size) == 448 and picture.width == int(width)
    text = " ".join(page.words)
    for ranked in (found.worst(3), found.best(3)):
        for one, score in ranked:
            assert one.sentence in text and f"IoU {score:.3f}" in text
    assert text.index("the worst cases") < text.index("the best cases")
