"""Time and memory of class names as text, separate and joint, for one picture.

    python examples/benchmarks/class_texts.py
    python examples/benchmarks/class_texts.py --classes 1 80 --repeats 5

The embedded Tiny CLIP at 128 pixels with three Bridgers and the head of semantic segmentation. In
separate mode each name is a sequence of its own, and from the first Bridger on each sequence has a
map of its own; in joint mode names share sequences of at most 24 tokens. Forward without gradients,
and forward with backward; the last rows ask in chunks, as `predict` does. Seconds are the
processor's, on one thread, so that other programs disturb them little: medians after one run that
does not count. Memory is the largest resident set of a process that does nothing else; the line
before the table says what it is after loading the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from bridger import BridgedModel, attach_bridgers
from bridger.answering import ROWS_AT_ONCE, answer
from bridger.data.sprites import TINTS, kinds
from bridger.heads import SemanticSegmentationHead
from bridger.texts import TEXT_MODES, Texts
from bridger.tiny_clip import load_tiny_clip

CLASSES = (1, 10, 80, 150)
MOST_BACKWARD = 80
MANY = 1203  # classes of LVIS
COLUMNS = ("classes", "text", "sequences", "forward", "peak", "with backward", "peak")


def load() -> BridgedModel:
    torch.manual_seed(0)
    vision, text, processor = load_tiny_clip()
    model = attach_bridgers(vision, text, 3).with_head(SemanticSegmentationHead).eval()
    model.processor = processor
    return model


def names(count: int) -> list[str]:
    """Return different names: of the kinds in the scenes, then of the kinds in each colour."""
    nouns = [kind.name for kind in kinds()]
    every = dict.fromkeys([*nouns, *(f"{tint} {noun}" for tint in TINTS for noun in nouns)])
    every |= dict.fromkeys(f"small {name}" for name in list(every))
    return list(every)[:count]


def ask(model: BridgedModel, texts: Texts, rows: int | None, *, backward: bool) -> None:
    """Ask about one picture, in one forward or in chunks."""
    pixels = torch.zeros(1, 3, 128, 128)
    if rows is not None:
        answer(model, "head", pixels, texts, rows)
        return
    labels = torch.arange(128 * 128).reshape(1, 128, 128) % len(texts.names)
    with torch.set_grad_enabled(backward):
        out = model(pixels, **texts.batch(1), labels=labels)
    if backward:
        out.loss.backward()
        model.zero_grad()


def measure(task: dict[str, Any]) -> None:
    """Print what one process finds, as JSON."""
    torch.set_num_threads(1)
    model = load()
    found: dict[str, Any] = {"sequences": 0, "seconds": 0.0}
    if task["classes"]:
        assert model.processor is not None
        texts = Texts.of_classes(model.processor, names(task["classes"]), task["mode"])
        seconds = []
        for _ in range(task["repeats"] + 1):
            start = time.process_time()
            ask(model, texts, task["rows"], backward=task["backward"])
            seconds.append(time.process_time() - start)
        found = {"sequences": len(texts.input_ids), "seconds": statistics.median(seconds[1:])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--many", type=int, default=MANY, help="classes that are asked in chunks")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each (default: 3)")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task is not None:
        measure(args.task)
        return

    def run(classes: int, mode: str = "", rows: int | None = None, backward: bool = False) -> Any:
        task = {"classes": classes, "mode": mode, "rows": rows, "backward": backward}
        task["repeats"] = args.repeats
        command = [sys.executable, __file__, "--task", json.dumps(task)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    def row(classes: int, text: str, forward: Any, both: Any) -> None:
        cells = [str(classes), text, str(forward["sequences"])]
        cells += figures(forward) + (figures(both) if both else ["", ""])
        print("| " + " | ".join(cells) + " |", flush=True)

    print(f"loaded: {run(0)['peak']:.0f} MB\n\n| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|", flush=True)
    for classes in args.classes:
        for mode in TEXT_MODES:
            backward = classes <= MOST_BACKWARD and run(classes, mode, backward=True)
            row(classes, mode, run(classes, mode), backward)
    for mode in TEXT_MODES:
        for rows in (ROWS_AT_ONCE // 4, ROWS_AT_ONCE):
            row(args.many, f"{mode}, {rows} rows at once", run(args.many, mode, rows), None)


def figures(found: dict[str, float]) -> list[str]:
    return [f"{found['seconds']:.3f} s", f"{found['peak']:.0f} MB"]


if __name__ == "__main__":
    main()
