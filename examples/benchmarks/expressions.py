"""Eight expressions of one picture in one call, against eight calls.

    python examples/benchmarks/expressions.py                       # every pair of full_size.py
    python examples/benchmarks/expressions.py "CLIP RN101" --pairs 3

The part of the vision tower before the first stage runs once in the one call, eight times in the
eight. Forward without gradients, and forward with backward through the referring head; the ratio of
each pair of timings counts. Memory is the largest resident set of a process that does either.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from full_size import PAIRS, inputs

from bridger import attach_bridgers
from bridger.heads import ReferringSegmentationHead

COUNT = 8
COLUMNS = (
    "pair",
    "forward: one",
    "eight",
    "ratio",
    "backward too: one",
    "eight",
    "ratio",
    "memory",
)
Run = Callable[[], None]


def runs(name: str, *, backward: bool) -> tuple[Run, Run]:
    """Return what does it in one call, and what does it in eight."""
    torch.manual_seed(0)
    vision, text, size = PAIRS[name]()
    encoder = attach_bridgers(vision, text)
    model = encoder.with_head(ReferringSegmentationHead).eval()
    pixels, ids, labels = inputs(encoder, size, 1, COUNT)

    def call(words: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.set_grad_enabled(backward):
            loss = model(pixels, words, torch.ones_like(words), labels=targets).loss
        if backward:
            loss.backward()

    def eight() -> None:
        for index in range(COUNT):
            call(ids[:, index], labels[:, index])

    return lambda: call(ids, labels), eight


def compare(name: str, pairs: int, *, backward: bool) -> tuple[str, str, str]:
    """Time both, alternately."""
    both = runs(name, backward=backward)
    for run in both:
        run()
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (pair % 2, 1 - pair % 2):
            start = time.perf_counter()
            both[which]()
            seconds[which].append(time.perf_counter() - start)
    ratio = statistics.median(one / eight for one, eight in zip(*seconds, strict=True))
    one, eight = map(statistics.median, seconds)
    return f"{one:.2f} s", f"{eight:.2f} s", f"{ratio:.2f}"


def memory(name: str, which: int) -> None:
    """Print the peak of a process that does one of the two, with backward."""
    runs(name, backward=True)[which]()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pair", nargs="?", choices=sorted(PAIRS), metavar="PAIR")
    parser.add_argument("--pairs", type=int, default=3, help="timings of each (default: 3)")
    parser.add_argument("--memory", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory is not None:
        memory(args.pair, args.memory)
        return
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    for name in [args.pair] if args.pair else PAIRS:
        times = [compare(name, args.pairs, backward=backward) for backward in (False, True)]
        peaks = [
            subprocess.run(
                [sys.executable, __file__, name, "--memory", str(which)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for which in (0, 1)
        ]
        cells = [name, *times[0], *times[1], f"{peaks[0]} / {peaks[1]} GB"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
