"""A folder of ten pictures of one's own, with a mask of every kind and words of all alphabets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as rle

SIZE = (24, 36)  # height, width
Mask = npt.NDArray[np.uint8]


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def corners(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def run_lengths(mask: Mask) -> list[int]:
    """Count the runs of 0 and 1 by hand, column by column, as COCO has them."""
    flat, runs, value = mask.flatten(order="F").tolist(), [0], 0
    for pixel in flat:
        if pixel != value:
            value = pixel
            runs.append(0)
        runs[-1] += 1
    return runs


def compressed(mask: Mask) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def write_own_data(folder: Path) -> list[tuple[dict[str, Any], Mask]]:
    """Write `train.jsonl` with ten refs and `val.jsonl` with one; return train's lines and masks.

    Nothing is wrong with it; there are notes on the picture of 1 x 1 pixel.
    """
    rng = np.random.default_rng(0)
    (folder / "Bilder").mkdir(parents=True)
    (folder / "masks").mkdir()

    def picture(name: str, size: tuple[int, int] = SIZE) -> str:
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "Bilder" / name)
        return f"Bilder/{name}"

    a, b = (4, 3, 20, 15), (22, 10, 35, 23)
    one, two = rectangle(*a), rectangle(*b)
    Image.fromarray(one * 255).save(folder / "masks" / "größe.png")
    Image.fromarray(one * 3 + two * 7).save(folder / "masks" / "numbered.png")

    # Stored lying, shown upright: EXIF says so, and the mask is drawn on what is shown.
    turned = folder / "Bilder" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(turned, exif=exif)
    upright = rectangle(1, 2, 9, 30, (36, 24))
    Image.fromarray(upright * 255).save(folder / "masks" / "turned.png")

    polygons, runs = [corners(*a)], {"size": list(SIZE), "counts": run_lengths(two)}
    rows: list[tuple[dict[str, Any], Mask]] = [
        ({"image": picture("größe.png"), "mask": "masks/größe.png"}, one),
        ({"image": picture("b.png"), "mask": "masks/numbered.png", "value": 7}, two),
        ({"image": picture("c.png"), "polygons": polygons}, one),
        ({"image": picture("d.png"), "box": list(b)}, two),
        ({"image": picture("e.png"), "segmentation": compressed(one)}, one),
        ({"image": picture("f.png"), "segmentation": [polygons, runs]}, one | two),
        ({"image": picture("g.png"), "segmentation": [corners(*b)]}, two),
        ({"image": picture("h.png"), "none": True}, np.zeros(SIZE, dtype=np.uint8)),
        ({"image": picture("dot.png", (1, 1)), "box": [0, 0, 1, 1]}, rectangle(0, 0, 1, 1, (1, 1))),
        ({"image": "Bilder/turned.jpg", "mask": "masks/turned.png"}, upright),
    ]
    words = ["the dog", "der größte Bär", "左の犬", "le chien à gauche", "собака слева"]
    for number, (values, _) in enumerate(rows):
        if number % 2:
            values["sentence"] = words[number // 2]
        else:
            values["sentences"] = [words[number // 2], f"thing {number}"]
    rows[3][0].update(ref_id=300, ann_ids=[4, 5], sent_ids=[77], kinds=["colour"], size=list(SIZE))
    write_lines(folder / "train.jsonl", [values for values, _ in rows])
    last = {"image": picture("last.png"), "sentence": "the cat", "box": list(a)}
    write_lines(folder / "val.jsonl", [last])
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in rows)
    path.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
