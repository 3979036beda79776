"""Pictures with classes: sorted into folders, or listed in a table."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_labelled import write_picture, write_text

from bridger.data.class_lists import read_class_list
from bridger.data.classified import ClassifiedPictures, classified_splits, open_classified

Change = Callable[[Path], object]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "folders"
    for name in ("train/Käuzchen/a.jpg", "train/Käuzchen/deep/b.png", "train/old_owl/c.JPG"):
        write_picture(root / name)
    write_picture(root / "validation" / "old_owl" / "größe.jpg")
    (root / "train" / "old_owl" / "notes.md").touch()
    (root / "train" / "old_owl" / ".hidden.jpg").touch()
    (root / "pictures").mkdir()
    return root


@pytest.fixture
def table(tmp_path: Path) -> Path:
    root = tmp_path / "table"
    write_text(root / "train.csv", "image,label", "p/größe.jpg,Käuzchen", '"p/b,c.jpg", old_owl ')
    write_text(root / "val.csv", "label,image,note", "young,p/d.jpg,x")
    for name in ("größe", "b,c", "d"):
        write_picture(root / "p" / f"{name}.jpg")
    return root


def labelled(data: ClassifiedPictures) -> list[tuple[str, tuple[int, ...]]]:
    assert all(picture.picture.is_file() for picture in data)
    return [(picture.key, picture.labels) for picture in data]


def test_folders_of_classes(folders: Path) -> None:
    assert classified_splits(folders) == ["train", "val"]
    train, val = (open_classified(folders, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("Käuzchen", "old owl") and not train.multi_label
    assert labelled(train) == [
        ("Käuzchen/a.jpg", (0,)),
        ("Käuzchen/deep/b.png", (0,)),
        ("old_owl/c.JPG", (1,)),
    ]
    assert labelled(val) == [("old_owl/größe.jpg", (1,))]
    assert labelled(pickle.loads(pickle.dumps(train))) == labelled(train)


def test_tables(table: Path) -> None:
    assert classified_splits(table) == ["train", "val"]
    train, val = (open_classified(table, split) for split in ("train", "val"))
    assert train.classes == ("Käuzchen", "old owl")  # it shows no others
    assert val.classes == ("Käuzchen", "old owl", "young")
    assert labelled(train) == [("p/größe.jpg", (0,)), ("p/b,c.jpg", (1,))]
    assert labelled(val) == [("p/d.jpg", (2,))] and not val.multi_label


def test_a_split_to_train_on_has_the_classes_that_it_shows(folders: Path) -> None:
    write_picture(folders / "validation" / "Amsel" / "a.jpg")
    train, val = (open_classified(folders, split) for split in ("train", "val"))
    assert train.classes == ("Käuzchen", "old owl")
    assert val.classes == ("Amsel", "Käuzchen", "old owl")
    assert [labels for _, labels in labelled(train)] == [(0,), (0,), (1,)]
    assert [labels for _, labels in labelled(val)] == [(0,), (2,)]
    write_text(folders / "classes.txt", "old_owl", "Amsel", "Käuzchen")  # which says so
    assert open_classified(folders, "train").classes == ("old owl", "Amsel", "Käuzchen")


def test_several_labels_of_a_picture(table: Path) -> None:
    write_text(
        table / "train.csv", "image,labels", "p/größe.jpg,old_owl; Käuzchen;old_owl", "p/d.jpg,"
    )
    data = open_classified(table, "train")
    assert data.multi_label
    assert labelled(data) == [("p/größe.jpg", (0, 1)), ("p/d.jpg", ())]


def test_a_list_of_classes_gives_order_names_and_synonyms(folders: Path) -> None:
    write_text(folders / "classes.txt", "none", "old_owl\tTyto alba, barn owl", "Käuzchen, Kauz")
    data = open_classified(folders, "train")
    assert data.classes == ("none", ("Tyto alba", "barn owl"), ("Käuzchen", "Kauz"))
    assert [labels for _, labels in labelled(data)] == [(2,), (2,), (1,)]


def test_a_split_may_speak_of_some_classes_only(folders: Path) -> None:
    write_text(folders / "classes_val.txt", "old_owl")
    data = open_classified(folders, "val")
    assert data.classes == ("old owl",) and labelled(data) == [("old_owl/größe.jpg", (0,))]
    write_text(folders / "classes_train.txt", "old_owl")
    words = "train: found 'Käuzchen', not among the 1 classes of .*classes_train.txt: .* add a line"
    with pytest.raises(ValueError, match=words):
        open_classified(folders, "train")


@pytest.mark.parametrize(
    "line",
    [
        "n01440764\ttench, Tinca tinca",
        "n01440764 tench, Tinca tinca",
        "n01440764,tench,Tinca_tinca",
        "n01440764\ttench,  Tinca tinca , tench",
    ],
)
def test_lists_of_imagenet(tmp_path: Path, line: str) -> None:
    path = write_text(tmp_path / "classes.txt", line, "n02012849\tcrane (bird)", "owl", "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = read_class_list(path)
    assert found.keys == ("n01440764", "n02012849", "owl")
    assert found.names == (("tench", "Tinca tinca"), "crane (bird)", "owl")


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


def classes(*lines: str) -> Change:
    return lambda root: write_text(root / "classes.txt", *lines)


def rows(*lines: str) -> Change:
    return lambda root: write_text(root / "train.csv", *lines)


WRONG_FOLDERS: list[tuple[Change, str]] = [
    (remove("train/old_owl/c.JPG"), "no pictures in .*old_owl: fill the folder, or remove it"),
    (classes("Käuzchen", "old owl"), "train: found 'old_owl', not among the 2 classes"),
    (classes("n02012849\tcrane", "n03126707\tcrane"), "'crane' stands twice"),
    (classes("a\tb", "a\tc"), "'a' stands before two names"),
    (classes("a\t, c", "b"), "class number 0 has an empty name"),
    (lambda root: (root / "train/old owl").mkdir(), "'old owl' stands twice"),
    (
        lambda root: write_picture(root / "val/old_owl/a.jpg"),
        "both .*val.* and .*val.* would be the split 'val'",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG_FOLDERS)
def test_what_is_wrong_with_folders(folders: Path, change: Change, words: str) -> None:
    change(folders)
    with pytest.raises(ValueError, match=words):
        open_classified(folders, "train")


WRONG_ROWS: list[tuple[Change, str]] = [
    (classes("Käuzchen", "young"), "train.csv, line 3: found 'old_owl', not among the 2 classes"),
    (rows("file,label", "a.jpg,owl"), "expected columns image and label.*; found file, label"),
    (rows("image,label,labels", "a.jpg,owl,owl"), "expected columns image and label"),
    (rows("image;label", "a.jpg;owl"), "expected columns .*found image;label"),
    (rows("image,label", "a.jpg,owl;uhu"), "line 2: expected one class, .*call the column labels"),
    (rows("image,label", "a.jpg,owl", "b.jpg,"), "line 3: expected one class, found ''"),
    (rows("image,label", "a.jpg"), "line 2: expected an image and its label"),
    (rows("image,label", ",owl"), "line 2: expected an image and its label"),
    (rows("image,label", "a.jpg,owl", "a.jpg,uhu"), "line 3: a.jpg was in line 2 already"),
    (rows("image,label", '"a.jpg,owl'), "train.csv cannot be read as a table"),
    (rows("image,label"), "train.csv has no line with a picture"),
    (lambda root: (root / "train.csv").write_bytes(b"image,label\n\xff,a\n"), "in UTF-8"),
]


@pytest.mark.parametrize(("change", "words"), WRONG_ROWS)
def test_what_is_wrong_with_a_table(table: Path, change: Change, words: str) -> None:
    change(table)
    with pytest.raises(ValueError, match=words):
        open_classified(table, "train")


def test_pictures_of_a_table_that_are_missing(table: Path) -> None:
    (table / "p" / "d.jpg").unlink()
    data = open_classified(table, "val")
    with pytest.raises(FileNotFoundError, match="1 of the 1 pictures .*d.jpg"):
        data.require_pictures()


def test_splits_and_folders_that_are_not_there(folders: Path, table: Path) -> None:
    for root in (folders, table):
        with pytest.raises(ValueError, match="no split 'test', it has train, val"):
            open_classified(root, "test")
        for opening in (classified_splits, lambda root: open_classified(root, "train")):
            with pytest.raises(FileNotFoundError, match="there is no folder"):
                opening(root / "missing")
    for inner in (folders / "train", table / "p"):
        with pytest.raises(FileNotFoundError, match="expected one of these layouts"):
            classified_splits(inner)


def test_label_maps_are_not_taken_for_classes(tmp_path: Path) -> None:
    for name in ("images/train/a.jpg", "labels/train/a.png", "images/val/b.jpg"):
        write_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="holds no pictures with classes"):
        classified_splits(tmp_path)
