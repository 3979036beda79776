"""Ten thousand bridged forwards: neither threads nor memory may grow.

    python examples/benchmarks/soak.py [--forwards 10000]

Every tenth forward is followed by a backward, every fiftieth is broken by an error in a tower, and
four threads call the model at once from time to time. Exits with 1 if something has grown.
"""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

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


def main() -> None:
    parser = argparse.ArgumentParser(description="Many forwards without growth.")
    parser.add_argument("--forwards", type=int, default=10_000)
    parser.add_argument("--slack", type=float, default=5.0, help="MiB that memory may grow by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Model()
    warm = max(args.forwards // 10, 200)
    for i in range(warm):
        one_forward(model, i)
        if i % 10 == 0:
            four_at_once(model)
    gc.collect()
    gc.disable()  # cycles would show as growth
    threads, memory, start = threading.active_count(), resident_mib(), time.perf_counter()
    for i in range(args.forwards):
        one_forward(model, i)
        if i % 500 == 0:
            four_at_once(model)
        if (i + 1) % max(args.forwards // 10, 1) == 0:
            print(
                f"{i + 1:>7} forwards, {threading.active_count()} threads, {resident_mib():.1f} MiB"
            )
    took = time.perf_counter() - start
    more_threads, more_memory = threading.active_count() - threads, resident_mib() - memory
    print(
        f"{args.forwards} forwards in {took:.1f} s: {more_threads:+d} threads (of {threads}), "
        f"{more_memory:+.1f} MiB (of {memory:.1f})"
    )
    # Four callers at once may meet more or fewer idle workers: eight workers is their most.
    if threading.active_count() > 9 or more_memory > args.slack:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
