"""What lockstep costs: a bridged forward against the same blocks in a plain interleaved loop.

    python examples/benchmarks/lockstep_cost.py                   # a ViT-B/16-sized pair
    python examples/benchmarks/lockstep_cost.py --small --backward

Both sides compute the same numbers (checked first, to the last bit). They are timed alternately, in
one process, in an order that changes with every pair; the ratio of each pair counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measuring import cpu_name
from torch import Tensor, nn

from bridger.lockstep import StageHooks, run_lockstep

STAGES = 3
Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def tower(width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    )


def walk(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class Bridge(nn.Module):
    """Small on purpose: what is measured is the hand-over."""

    def __init__(self, vision: int, text: int) -> None:
        super().__init__()
        self.to_vision, self.to_text = nn.Linear(text, vision), nn.Linear(vision, text)

    def forward(self, vision: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return (
            vision + self.to_vision(text.mean(1, keepdim=True)),
            text + self.to_text(vision.mean(1, keepdim=True)),
        )


def make_pair(vision_width: int, text_width: int, depth: int) -> tuple[Forward, Forward, nn.Module]:
    """Returns the forward in lockstep, the forward by a plain loop, and all the modules."""
    vision, text = tower(vision_width, depth), tower(text_width, depth)
    bridges = nn.ModuleList(Bridge(vision_width, text_width) for _ in range(STAGES))
    ends = [depth * (i + 1) // STAGES for i in range(STAGES)]
    hooks = [
        StageHooks([blocks[end - 1] for end in ends], [str(end - 1) for end in ends], name)
        for blocks, name in ((vision, "vision"), (text, "text"))
    ]

    def lockstep(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return run_lockstep(
            (hooks[0], lambda: walk(vision, x)),
            (hooks[1], lambda: walk(text, y)),
            lambda stage, v, t: bridges[stage](v, t),
        )

    def interleaved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        start = 0
        for bridge, end in zip(bridges, ends, strict=True):
            x, y = walk(vision[start:end], x), walk(text[start:end], y)
            x, y = bridge(x, y)
            start = end
        return x, y

    return lockstep, interleaved, nn.ModuleList([vision, text, bridges]).train()


def seconds(forward: Forward, x: Tensor, y: Tensor, modules: nn.Module | None) -> float:
    """One forward, with its backward when the modules are given."""
    start = time.perf_counter()
    with torch.set_grad_enabled(modules is not None):
        vision, text = forward(x, y)
        if modules is not None:
            (vision.square().mean() + text.square().mean()).backward()
    end = time.perf_counter()
    if modules is not None:
        modules.zero_grad()
    return end - start


def compare(args: argparse.Namespace, backward: bool) -> None:
    widths, depth, tokens = ((768, 512), 12, (197, 77))
    if args.small:
        widths, depth, tokens = ((256, 128), 6, (65, 17))
    torch.manual_seed(0)
    lockstep, interleaved, modules = make_pair(*widths, depth)
    x, y = (torch.randn(args.batch, n, w) for n, w in zip(tokens, widths, strict=True))
    with torch.no_grad():
        same = all(
            torch.equal(a, b) for a, b in zip(lockstep(x, y), interleaved(x, y), strict=True)
        )
    if not same:
        raise SystemExit("lockstep and loop differ: no point in timing them")
    trained = modules if backward else None
    for forward in (lockstep, interleaved):
        seconds(forward, x, y, trained)
    ratios, plain = [], []
    for i in range(args.pairs):
        order = (lockstep, interleaved) if i % 2 else (interleaved, lockstep)
        times = {forward: seconds(forward, x, y, trained) for forward in order}
        ratios.append(times[lockstep] / times[interleaved])
        plain.append(times[interleaved])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{'forward + backward' if backward else 'forward':>18}: ratio {middle:.3f} "
        f"[{low:.3f}, {high:.3f}], plain loop {1000 * statistics.median(plain):.1f} ms, "
        f"{args.pairs} pairs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of lockstep against a plain loop.")
    parser.add_argument("--pairs", type=int, default=30, help="alternated pairs of runs")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--small", action="store_true", help="256 and 128 wide, 6 layers")
    parser.add_argument("--backward", action="store_true", help="forward and backward alone")
    parser.add_argument("--forward", action="store_true", help="forward alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = "256 x 6 and 128 x 6" if args.small else "768 x 12 and 512 x 12 (ViT-B/16)"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} torch threads, {cpu_name()}")
    print(f"towers {size}, batch {args.batch}, {STAGES} stages; median [quartiles]")
    for backward in (False, True):
        if (backward and not args.forward) or (not backward and not args.backward):
            compare(args, backward)


if __name__ == "__main__":
    main()
