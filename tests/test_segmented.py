"""Pictures with label maps: folders of one's own, ADE20K, Pascal VOC."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers_labelled import SIZE, blocks, write_map, write_picture, write_text
from PIL import Image

from bridger.class_phrases import check_class_names
from bridger.data.labelled import SegmentedPicture
from bridger.data.segmented import open_segmented, segmented_splits
from bridger.data.segmented_layouts import VOC_CLASSES
from bridger.labels import BACKGROUND, IGNORE

Change = Callable[[Path], object]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Classes 1 Käuzchen and 2 old owl beside background 0."""
    root = tmp_path / "own"
    write_text(root / "classes.txt", "background", "Käuzchen, little owl", "old_owl")
    for split in ("train", "val"):
        for name, numbers in (("größe", (0, 1)), ("deep/b", (2, 255, 1))):
            write_picture(root / "images" / split / f"{name}.jpg")
            write_map(root / "labels" / split / f"{name}.png", blocks(*numbers))
    return root


def shown(picture: SegmentedPicture) -> tuple[int, ...]:
    """The classes in a label map, in order."""
    return tuple(label for label in np.unique(picture.labels).tolist() if label >= 0)


def test_numbers_become_labels_in_the_order_of_the_list(own: Path) -> None:
    assert segmented_splits(own) == ["train", "val"]
    data = open_segmented(own, "train")
    assert data.classes == (("Käuzchen", "little owl"), "old owl")
    assert [picture.key for picture in data] == ["deep/b.jpg", "größe.jpg"]
    assert all(picture.picture.is_file() for picture in data)
    np.testing.assert_array_equal(data[0].labels[0, [0, 8, 15]], [1, IGNORE, 0])
    np.testing.assert_array_equal(data[1].labels[0, [0, 15]], [BACKGROUND, 0])
    assert data[0].labels.dtype == np.int64 and data[0].labels.shape == SIZE
    assert [shown(data[i]) for i in range(2)] == [(0, 1), (0,)]
    np.testing.assert_array_equal(data[-1].labels, data[1].labels)


def test_labels_are_the_file_s_numbers_whatever_the_png(own: Path) -> None:
    """Against a plain loop over the numbers, for 8 and 16 bits, palettes and 1 bit."""
    names = [f"thing {i}" for i in range(400)]
    write_text(own / "classes.txt", "background", *names)
    rng = np.random.default_rng(0)
    path = own / "labels" / "train" / "größe.png"
    for dtype, least, most, palette in (
        (np.uint8, 0, 255, False),
        (np.uint8, 0, 255, True),
        (np.uint16, 0, 401, False),
        (np.uint16, 250, 401, False),
        (bool, 0, 2, False),
    ):
        numbers = rng.integers(least, most, SIZE).astype(dtype)
        write_map(path, numbers, palette=palette)
        labels = open_segmented(own, "train")[1].labels
        expected = [[int(n) - 1 if n else BACKGROUND for n in row] for row in numbers]
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(("classes", "ignored"), [(20, [255, 65535]), (300, [65535])])
def test_what_is_ignored_in_16_bits(own: Path, classes: int, ignored: list[int]) -> None:
    write_text(own / "classes.txt", *(f"thing {i}" for i in range(classes)))
    numbers = blocks(3, 255, 65535, dtype=np.uint16)
    write_map(own / "labels" / "train" / "größe.png", numbers)
    found = open_segmented(own, "train")[1].labels
    assert (found == IGNORE).tolist() == np.isin(numbers, ignored).tolist()
    assert (found[numbers == 3] == 3).all()


def test_a_split_may_speak_of_some_classes_only(own: Path) -> None:
    write_text(own / "classes_train.txt", "background", "old_owl")
    write_map(own / "labels" / "train" / "größe.png", blocks(0, 2))
    data = open_segmented(own, "train")
    assert data.classes == ("old owl",) and shown(data[1]) == (0,)
    left_out = r"b.png holds \[1\], but 1 is the class 'Käuzchen', which .*classes_train.txt leaves"
    with pytest.raises(ValueError, match=left_out):
        _ = data[0].labels
    write_map(own / "labels" / "train" / "größe.png", blocks(0, 3, 9))
    in_no_list = (
        r"holds \[3, 9\], but .*classes.txt has no class of 3 among its 2: add it there, or"
    )
    with pytest.raises(ValueError, match=in_no_list):
        _ = data[1].labels
    assert len(open_segmented(own, "val").classes) == 2
    write_text(own / "classes_train.txt", "young owl")
    with pytest.raises(ValueError, match="classes_train.txt: found 'young owl', not among"):
        open_segmented(own, "train")


def test_label_maps_are_read_when_they_are_needed(own: Path) -> None:
    data = open_segmented(own, "train")
    assert shown(data[1]) == (0,)
    (own / "labels" / "train" / "größe.png").unlink()
    copy = pickle.loads(pickle.dumps(data))  # as workers get it
    assert shown(copy[0]) == (0, 1)
    with pytest.raises(FileNotFoundError, match="no label map .*größe.png"):
        _ = copy[1].labels


def smaller(root: Path) -> None:
    write_map(root / "labels/train/größe.png", blocks(0, 1)[1:])


def coloured(root: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(root / "labels/train/größe.png")


def unknown(root: Path) -> None:
    write_map(root / "labels/train/größe.png", blocks(0, 3, 254))


def cut_off(root: Path) -> None:
    path = root / "labels/train/größe.png"
    path.write_bytes(path.read_bytes()[:45])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (smaller, r"größe.png is \(11, 16\) but its picture .*größe.jpg is \(12, 16\)"),
        (coloured, "mode RGB; expected one number a pixel"),
        (unknown, r"größe.png holds \[3, 254\], but .*classes.txt .*write 255"),
        (cut_off, "größe.png cannot be read"),
    ],
)
def test_what_is_wrong_with_a_label_map_is_said_when_it_is_read(
    own: Path, change: Change, words: str
) -> None:
    change(own)
    data = open_segmented(own, "train")
    assert data[0].labels.shape == SIZE
    with pytest.raises(ValueError, match=words):
        _ = data[1].labels


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


def classes(*lines: str) -> Change:
    return lambda root: write_text(root / "classes.txt", *lines)


WRONG: list[tuple[Change, str]] = [
    (remove("classes.txt"), "no list of classes .*classes.txt"),
    (remove("labels/train/größe.png"), "größe.jpg has no label map .*größe.png"),
    (remove("images/train/größe.jpg"), "größe.png is the label map of a picture that is not in"),
    (classes("owl", "Eule", "owl"), "classes.txt: .*'owl' stands twice"),
    (classes("owl, uhu", "Eule, uhu", "owl_"), "classes.txt: .*'owl' stands twice"),
    (classes("owl", "", "Eule"), "classes.txt: class number 1 has an empty name"),
    (classes("owl", "Eule, ,Uhu"), "classes.txt: class number 1 has an empty name"),
    (classes(""), "classes.txt is empty"),
    (classes("background"), "no class beside the background"),
    (lambda root: (root / "classes.txt").write_bytes(b"\xff"), "classes.txt is not UTF-8"),
    (lambda root: write_picture(root / "images/train/größe.png"), "would share a label map"),
    (
        lambda root: (root / "labels/train/größe.png").rename(root / "labels/train/größe.jpg"),
        "größe.jpg is no PNG, which numbers need",
    ),
    (
        lambda root: (root / "labels/val").rename(root / "labels/Training"),
        "labels/Training and .*/labels/train would be the split 'train'",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_is_wrong_with_a_folder_is_said_at_once(own: Path, change: Change, words: str) -> None:
    change(own)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_segmented(own, "train")


def test_splits_and_folders_that_are_not_there(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'test', it has train, val"):
        open_segmented(own, "test")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_segmented(own / "missing", "train")
    for opening in (segmented_splits, lambda root: open_segmented(root, "train")):
        with pytest.raises(FileNotFoundError, match="expected one of these layouts"):
            opening(own / "images")
    data = open_segmented(own, "train")
    (own / "images/train/größe.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 2 pictures"):
        data.require_pictures()


# ADE20K.

ADE_TABLE = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1576\t11664\t1172\t1\twall
2\t0.1072\t6046\t612\t1\tbuilding, edifice
3\t0.0102\t1691\t157\t1\tearth, ground
4\t0.0027\t435\t45\t1\tland, ground, soil
5\t0.0007\t400\t40\t0\tscreen door, screen
6\t0.0004\t300\t30\t0\tscreen, silver screen
"""


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for folder, split in (("training", "train"), ("validation", "val")):
        for i, numbers in enumerate(((0, 1, 6), (2, 3))):
            name = f"ADE_{split}_{i + 1:08d}"
            write_picture(root / "images" / folder / f"{name}.jpg")
            write_map(root / "annotations" / folder / f"{name}.png", blocks(*numbers))
    (root / "objectInfo150.txt").write_text(ADE_TABLE)
    return root


def test_ade20k_as_it_unpacks(ade: Path) -> None:
    for root in (ade, ade.parent):
        assert segmented_splits(root) == ["train", "val"]
        data = open_segmented(root, "val")
        assert (data.name, len(data)) == ("ade20k", 2)
        assert data[0].key == "ADE_val_00000001.jpg"
        np.testing.assert_array_equal(data[0].labels[0, [0, 8, 15]], [IGNORE, 0, 5])
        assert [shown(data[i]) for i in range(2)] == [(0, 5), (1, 2)]


def test_a_word_that_two_of_ade20k_s_classes_share_is_no_synonym(ade: Path) -> None:
    classes = open_segmented(ade, "train").classes
    assert classes[:2] == ("wall", ("building", "edifice"))
    assert classes[2:4] == ("earth", ("land", "soil"))
    assert classes[4:] == ("screen door", ("screen", "silver screen"))
    check_class_names(classes)


def test_another_table_is_not_taken_for_ade20k_s(ade: Path) -> None:
    (ade / "objectInfo150.txt").write_text(ADE_TABLE.replace("\n4\t", "\n5\t"))
    with pytest.raises(ValueError, match="is not ADE20K's table; expected rows 1, 2, 3"):
        open_segmented(ade, "train")


# Pascal VOC.


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    ids = {"train": ["2007_000032"], "val": ["2007_000033", "2011_003271"]}
    for name in ids["train"] + ids["val"]:
        write_picture(root / "JPEGImages" / f"{name}.jpg")
        write_map(root / "SegmentationClass" / f"{name}.png", blocks(0, 1, 255, 20), palette=True)
    write_picture(root / "JPEGImages" / "2008_000001.jpg")  # most have no label map
    ids["trainval"] = ids["train"] + ids["val"]
    for split, names in {**ids, "test": ["2008_000001"]}.items():
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
    return root


def test_voc_as_it_unpacks(voc: Path) -> None:
    for root in (voc, voc.parent, voc.parent.parent):
        assert segmented_splits(root) == ["train", "val", "trainval"]
        data = open_segmented(root, "val")
        assert (data.name, len(data), len(data.classes)) == ("voc2012", 2, 20)
        np.testing.assert_array_equal(data[0].labels[0, [0, 4, 8, 12]], [BACKGROUND, 0, IGNORE, 19])
        assert shown(data[1]) == (0, 19)
    assert VOC_CLASSES[0] == "aeroplane" and VOC_CLASSES[19] == "tv monitor"


def test_voc_s_lists_and_years(voc: Path) -> None:
    (voc / "SegmentationClass" / "2007_000033.png").unlink()
    assert len(open_segmented(voc, "train")) == 1
    with pytest.raises(FileNotFoundError, match="val.txt names '2007_000033', but there is no"):
        open_segmented(voc, "val")
    write_text(voc.parent / "VOC2007" / "ImageSets" / "Segmentation" / "train.txt", "000032")
    (voc.parent / "VOC2007" / "SegmentationClass").mkdir()
    with pytest.raises(ValueError, match="several years of VOC: give one of .*VOC2007, .*VOC2012"):
        segmented_splits(voc.parent)
    assert segmented_splits(voc) == ["train", "val", "trainval"]


def test_numbers_beyond_voc_s_classes_are_named(voc: Path) -> None:
    write_map(voc / "SegmentationClass" / "2007_000032.png", blocks(0, 21), palette=True)
    with pytest.raises(ValueError, match=r"holds \[21\], .* among its 20"):
        _ = open_segmented(voc, "train")[0].labels


def test_a_label_map_of_a_turned_picture_is_of_the_upright_one(own: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = own / "images/train/größe.jpg"
    Image.new("RGB", SIZE).save(path, exif=exif)  # which makes it SIZE, height and width
    assert open_segmented(own, "train")[1].labels.shape == SIZE
