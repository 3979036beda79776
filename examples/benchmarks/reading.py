"""Opening a split of a large made-up `instances.json`: time and memory, against `json.load`.

python examples/benchmarks/reading.py                 # 330 MB
python examples/benchmarks/reading.py --objects 20000

A fifth of the objects has a ref, and nine tenths of those are in train. Every way runs in a process
of its own; seconds are of processor time, memory is the largest resident set beyond that of the
imports.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_IMAGE = 10
WAYS = ("json.load", "train", "val")


def write(root: Path, count: int) -> str:
    """Write a data set of polygons with 40 corners, in RefCOCO's layout; its pictures are empty."""
    draw = random.Random(0)
    (root / "refcoco").mkdir()
    (root / "images" / "train2014").mkdir(parents=True)
    images, annotations, refs = [], [], []
    for i in range(count):
        image_id = i // PER_IMAGE
        name = f"COCO_train2014_{image_id:012d}.jpg"
        if i % PER_IMAGE == 0:
            images.append({"id": image_id, "file_name": name, "height": 480, "width": 640})
        polygon = [round(draw.uniform(0, 480), 2) for _ in range(80)]
        annotations.append({"id": i, "image_id": image_id, "segmentation": [polygon], "iscrowd": 0})
        if i % 5 == 0:
            sentences = [{"sent_id": i, "sent": "a thing", "raw": "a thing", "tokens": ["a"]}]
            ref = {"ref_id": i, "ann_id": i, "image_id": image_id, "sentences": sentences}
            refs.append({**ref, "split": "val" if i % 50 == 0 else "train"})
    (root / "images" / "train2014" / name).touch()
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = root / "refcoco" / "instances.json"
    instances.write_text(json.dumps({"images": images, "annotations": annotations}))
    return f"instances.json: {instances.stat().st_size / 1e6:.0f} MB, {count} objects"


def peak() -> float:
    """The process's largest resident set so far, in MB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)


def measure(way: str, root: Path) -> str:
    """Open the data one way; return processor seconds and megabytes."""
    from bridger.data import open_split

    before, started = peak(), time.process_time()
    if way == "json.load":
        with open(root / "refcoco" / "instances.json") as file:
            kept: object = json.load(file)
    else:
        kept = open_split(root, way)
    seconds, memory = time.process_time() - started, peak() - before
    del kept
    return f"{way:10} {seconds:6.1f} s {memory:8.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=480_000)
    parser.add_argument("--way", choices=("write", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(
            write(args.root, args.objects) if args.way == "write" else measure(args.way, args.root)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        # Writing too: a process starts with the largest resident set of the one that started it.
        for way in ("write", *WAYS):
            options = ["--way", way, "--root", folder, "--objects", str(args.objects)]
            subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
