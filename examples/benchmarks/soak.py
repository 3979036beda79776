"""Ten thousand bridged forwards and a thousand training steps: neither threads nor memory may grow.

    python examples/benchmarks/soak.py [--forwards 10000] [--steps 1000]

The forwards are those of two small towers in lockstep: every tenth is followed by a backward, every
fiftieth is broken by an error in a tower, and four threads call the model at once from time to
time. The steps are those of a small CLIP with Bridgers, the referring head and AdamW, on pictures,
texts and numbers of expressions that change from step to step. What grows is told at the end, and
by the slope of a straight line through all that was seen. Exits with 1 if something has grown.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from adapters import towers
from torch import Tensor, nn

from bridger import attach_bridgers
from bridger.heads import ReferringSegmentationHead
from bridger.lockstep import StageHooks, run_lockstep

WIDTH, DEPTH, STAGES = 32, 4, (1, 2, 3)


class Model:
    """Two small towers of plain blocks, bridged at three stages."""

    def __init__(self) -> None:
        self.towers = [
            nn.Sequential(
                *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(DEPTH))
            )
            for _ in range(2)
        ]
        self.hooks = [
            StageHooks([tower[i] for i in STAGES], [str(i) for i in STAGES], name)
            for tower, name in zip(self.towers, ("vision", "text"), strict=True)
        ]

    def __call__(self, x: Tensor, y: Tensor, fail: bool = False) -> tuple[Tensor, Tensor]:
        vision, text = self.towers

        def bridge(stage: int, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            if fail and stage == 1:
                raise ArithmeticError("on purpose")
            return v + t, t + v

        return run_lockstep(
            (self.hooks[0], lambda: vision(x)), (self.hooks[1], lambda: text(y)), bridge
        )


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def one_forward(model: Model, i: int) -> None:
    x, y = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    if i % 50 == 49:
        try:
            model(x, y, fail=True)
        except ArithmeticError:
            return
        raise SystemExit("an error was lost")
    with torch.set_grad_enabled(i % 10 == 0):
        out = model(x, y)
        if i % 10 == 0:
            sum(o.square().mean() for o in out).backward()


def four_at_once(model: Model) -> None:
    threads = [threading.Thread(target=one_forward, args=(model, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def one_call(model: Model, i: int) -> None:
    one_forward(model, i)
    if i % 500 == 0 or (i < 0 and i % 10 == 0):
        four_at_once(model)


class Training:
    """A small bridged CLIP and its optimiser."""

    def __init__(self) -> None:
        clip = towers(small=True)
        encoder = attach_bridgers(clip.visual, clip)
        self.model = encoder.with_head(ReferringSegmentationHead, width=64).train()
        self.optimizer = torch.optim.AdamW(self.model.trainable_parameters(), lr=1e-4)

    def step(self, i: int) -> None:
        """Train on pictures, texts and expressions as many and as large as the number says."""
        n, length, side = 1 + i % 3, 4 + i % 11, 64 + 32 * (i % 2)
        ids = torch.randint(3, 500, (2, n, length))
        ids[..., -1] = self.model.encoder.text.vocab_size - 1
        labels = (torch.rand(2, n, side, side) > 0.9).float()
        self.model(torch.randn(2, 3, side, side), ids, labels=labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def watch(what: str, run: Callable[[int], None], count: int, warm: int, slack: float) -> bool:
    """Run it `count` times; whether threads and memory stayed as they were after `warm` times."""
    for i in range(-warm, 0):
        run(i)
    gc.collect()
    gc.disable()  # cycles would show as growth
    threads, memory, start = threading.active_count(), resident_mib(), time.perf_counter()
    seen = []
    for i in range(count):
        run(i)
        seen.append(resident_mib())
        if (i + 1) % max(count // 10, 1) == 0:
            print(f"{i + 1:>7} {what}, {threading.active_count()} threads, {seen[-1]:.1f} MiB")
    gc.enable()
    took, now = time.perf_counter() - start, threading.active_count()
    slope = 1000 * float(np.polyfit(range(count), seen, 1)[0]) if count > 1 else 0.0
    print(
        f"{count} {what} in {took:.1f} s: {now - threads:+d} threads (of {threads}), "
        f"{seen[-1] - memory:+.1f} MiB (of {memory:.1f}), {slope:+.2f} MiB per 1000"
    )
    # Four callers at once may meet more or fewer idle workers: eight workers is their most.
    return now <= 9 and seen[-1] - memory <= slack


def main() -> None:
    parser = argparse.ArgumentParser(description="Many forwards and steps without growth.")
    parser.add_argument("--forwards", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--slack", type=float, default=5.0, help="MiB that memory may grow by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    flat = True
    if args.forwards:
        warm = max(args.forwards // 10, 200)
        flat = watch("forwards", partial(one_call, Model()), args.forwards, warm, args.slack)
    if args.steps:
        warm = max(args.steps // 10, 66)  # every kind of batch
        flat = watch("steps", Training().step, args.steps, warm, args.slack) and flat
    raise SystemExit(0 if flat else 1)


if __name__ == "__main__":
    main()
