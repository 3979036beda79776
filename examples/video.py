"""Video: one sentence for many frames, many sentences for one frame, and what each costs.

    python examples/video.py                                   # makes a moving scene
    python examples/video.py --frames film.gif --adapter my-adapter --say "the dog" "the red ball"

Frames are pictures: a list of them is answered in one call, several in a forward. Several sentences
about one frame share what the vision tower computes before the first Bridger, so that one call
costs less than one call each. --frames takes an animated picture, or a folder of pictures in the
order of their names, as written by `ffmpeg -i film.mp4 frames/%04d.png`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from bridger import BridgedModel
from bridger.data.painting import Placement, paint, paint_background
from bridger.data.sprites import kinds
from bridger.predictions.side_by_side import beside, stacked

SAID = ["the taxi", "the owl", "the animal", "the umbrella"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="a folder, or an id on the Hub")
    parser.add_argument("--frames", type=Path, help="an animated picture, or a folder of pictures")
    parser.add_argument("--count", type=int, default=24, help="frames of the moving scene")
    parser.add_argument("--say", nargs="+", default=SAID, help="sentences, each in quotes")
    parser.add_argument("--out", type=Path, default=Path("video.gif"))
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter)
    frames = read_frames(args.frames) if args.frames else moving_scene(args.count)
    model.predict(frames[0], args.say[0])  # the first call is slower than all others

    # One sentence, many frames: a list of pictures, and a sentence for each.
    started = time.perf_counter()
    answers = model.predict(frames, [args.say[0]] * len(frames))
    seconds = (time.perf_counter() - started) / len(frames)
    print(f"{len(frames)} frames, one sentence: {1000 * seconds:.0f} ms a frame")
    shown = [
        answer.overlay(frame, args.say[0], least_side=256)
        for answer, frame in zip(answers, frames, strict=True)
    ]
    shown[0].save(args.out, save_all=True, append_images=shown[1:], duration=80, loop=0)

    # One frame, many sentences: one call shares the frame, calls one by one do not.
    together, alone = seconds_of(
        lambda: model.predict(frames[0], args.say),
        lambda: [model.predict(frames[0], said) for said in args.say],
    )
    print(f"one frame, {len(args.say)} sentences: {1000 * together:.0f} ms in one call, ", end="")
    print(f"{1000 * alone:.0f} ms in {len(args.say)} calls")
    chosen = [frames[round(i * (len(frames) - 1) / 3)] for i in range(4)]
    all_said = [model.predict(frame, args.say).overlay(frame, args.say) for frame in chosen]
    sheet = args.out.with_suffix(".png")
    stacked([beside(all_said[:2]), beside(all_said[2:])]).save(sheet)
    print(f"wrote {args.out} (one sentence) and {sheet} (all sentences in four frames)")


def seconds_of(*calls: Callable[[], Any]) -> list[float]:
    """Return the median of five runs of each; they take turns, so that all see the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(5):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def read_frames(path: Path) -> list[Image.Image]:
    """Return the frames of an animated picture, or the pictures of a folder by their names."""
    if path.is_dir():
        return [Image.open(file).convert("RGB") for file in sorted(path.iterdir())]
    with Image.open(path) as film:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]


def moving_scene(count: int, size: int = 128) -> list[Image.Image]:
    """Paint a taxi that drives under an owl that flies, and an umbrella that stands."""
    index = {kind.name: kind.index for kind in kinds()}
    ground = paint_background(np.random.default_rng(4), size, size)
    frames = []
    for moment in (i / max(count - 1, 1) for i in range(count)):
        things = [
            Placement(index["umbrella"], x=0.78, y=0.3, size=0.32),
            Placement(index["taxi"], x=0.15 + 0.7 * moment, y=0.78, size=0.34),
            Placement(
                index["owl"], x=0.4, y=0.32 + 0.12 * math.sin(2 * math.pi * moment), size=0.3
            ),
        ]
        frames.append(Image.fromarray(paint(things, ground)[0]))
    return frames


if __name__ == "__main__":
    main()
