"""What bridged towers cost: forward, training step and peak memory beside the towers alone.

    python examples/benchmarks/speed.py                          # CLIP ViT-B/16, 4 pictures
    python examples/benchmarks/speed.py --small                  # towers of 4 blocks, seconds
    python examples/benchmarks/speed.py --batch 1 8 --precision f32 bf16-autocast --parts
    python examples/benchmarks/speed.py --device cuda --tf32 --batch 1 4 16 64 --json speed.json

Random weights, nothing is downloaded. All ways of one table are timed alternately in this process
and run on the same weights with the same head, whose training is part of every step; quartiles
stand beside the medians, "to floor" is the median over rounds of the ratio. The floor is the towers
and the head with nothing between them; its step runs gradients from the last to the first stage of
both towers, as Bridgers need them, and trains the head. "In lockstep" is attach_bridgers(...,
config=None), whose step needs no gradient in the towers. LoRA stands in all linear layers of both
towers' blocks, of the rank that comes closest to the Bridgers' parameters. Peak memory is that of
the first two steps above the level after building, optimiser states included, each way in a process
of its own: "tensors" by torch's count, "resident" by the system's. Options that take several values
make a table for each combination. What lockstep itself costs is measured by lockstep_cost.py.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from full_size import PAIRS
from measuring import Timing, alternate, in_child, machine_line, peak_memory, table, write_json
from speed_cases import FORWARD, PRECISIONS, STEP, WHAT, Case, Setting, build, load
from speed_parts import Timeline

from bridger.recomputing import LEVELS


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    """Yield every combination of what was asked for."""
    compiled = {"off": [False], "on": [True], "both": [False, True]}[args.compile]
    for batch, expressions, precision, memory, on in product(
        args.batch, args.expressions, args.precision, args.memory, compiled
    ):
        yield Setting(
            pair=args.pair,
            small=args.small,
            size=args.size,
            batch=batch,
            expressions=expressions,
            precision=precision,
            memory=memory,
            compiled=on,
            device=args.device,
        )


def title(setting: Setting, size: int) -> str:
    towers = "towers of 4 blocks" if setting.small else setting.pair
    words = [f"{size} px", f"batch {setting.batch}", f"N = {setting.expressions}"]
    words += [setting.precision, setting.memory, setting.device]
    return f"{towers}: " + ", ".join(words) + (", compiled" if setting.compiled else "")


def rows_of(timings: dict[str, Timing], setting: Setting) -> list[dict[str, Any]]:
    """Return a row of a table for every way that was timed."""
    floor = timings.get("floor")
    return [
        {
            "way": WHAT[name],
            "s": timing.median,
            "low": timing.low,
            "high": timing.high,
            "to floor": None if floor is None else timing.ratio(floor),
            "pictures / s": setting.batch / timing.median,
        }
        for name, timing in timings.items()
    ]


def measure(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one setting, and print its tables."""
    towers = load(setting)
    print(f"\n## {title(setting, towers.size)}", flush=True)
    found: dict[str, Any] = {"setting": asdict(setting), "size": towers.size}
    names = {kind: [n for n in ways if n in args.cases] for kind, ways in WAYS.items()}
    wanted = {n: None for kind in args.measure for n in names[kind] if kind != "memory"}
    cases = {n: Case(build(n, towers, setting), setting, towers.size) for n in wanted}
    for kind in ("forward", "step"):
        if kind in args.measure:
            for case in cases.values():
                case.module.train(kind == "step")
            calls = {n: getattr(cases[n], kind) for n in names[kind]}
            found[kind] = alternate(calls, args.rounds, args.warmups, setting.device)
            show(kind, rows_of(found[kind], setting))
    found["trained"] = {n: case.trained for n, case in cases.items()}
    cases.clear()
    gc.collect()
    if "memory" in args.measure:
        arguments = {n: child_arguments(setting, n, args) for n in names["memory"]}
        found["memory"] = {n: in_child(__file__, arguments[n]) for n in arguments}
        show("peak memory of two steps", memory_rows(found["memory"]))
    if args.parts and not setting.compiled:
        timeline = Timeline(Case(build("bridged", towers, setting).train(), setting, towers.size))
        found["parts"] = timeline.run(args.rounds, args.warmups)
        show("bridged step, part by part", timeline.rows())
    return found


WAYS = {"forward": FORWARD, "step": STEP, "memory": STEP}


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"\n{name}\n\n{table(rows, list(rows[0]))}", flush=True)


def memory_rows(peaks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every way whose peak was measured."""
    floor = peaks.get("floor")
    return [
        {
            "way": WHAT[name],
            "trained M": peak["trained"] / 1e6,
            "tensors MB": peak["tensors"] / 1e6,
            "to floor": None if floor is None else peak["tensors"] / floor["tensors"],
            "resident MB": None if peak["resident"] is None else peak["resident"] / 1e6,
        }
        for name, peak in peaks.items()
    ]


def child_arguments(setting: Setting, case: str, args: argparse.Namespace) -> list[str]:
    """Return the command line that prints the peak memory of one way."""
    chosen = ["--peak-of", case, "--pair", setting.pair, "--device", setting.device]
    chosen += ["--batch", str(setting.batch), "--expressions", str(setting.expressions)]
    chosen += ["--precision", setting.precision, "--memory", setting.memory]
    chosen += ["--compile", "on" if setting.compiled else "off"]
    chosen += ["--size", str(setting.size)] if setting.size else []
    return chosen + ["--small"] * args.small + ["--tf32"] * args.tf32


def peak_of(name: str, setting: Setting) -> dict[str, int | None]:
    """Return the peak memory of the first two steps of one way, and how much it trains."""
    towers = load(setting)
    case = Case(build(name, towers, setting), setting, towers.size)
    del towers
    case.module.eval()
    case.forward()  # what libraries load at their first call
    case.module.train()

    def two_steps() -> None:
        case.optimizer.state.clear()
        case.step()
        case.step()

    return {**asdict(peak_memory(two_steps, setting.device)), "trained": case.trained}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pair", default=Setting.pair, choices=sorted(PAIRS), metavar="PAIR")
    parser.add_argument("--small", action="store_true", help="towers of 4 blocks, 128 wide")
    parser.add_argument("--size", type=int, help="side of the pictures (default: the pair's)")
    parser.add_argument("--batch", type=int, nargs="+", default=[Setting.batch])
    parser.add_argument("--expressions", type=int, nargs="+", default=[1], help="N")
    parser.add_argument("--precision", nargs="+", default=["f32"], choices=PRECISIONS)
    parser.add_argument("--memory", nargs="+", default=["fast"], choices=LEVELS)
    parser.add_argument("--compile", default="off", choices=("off", "on", "both"))
    parser.add_argument("--cases", nargs="+", default=list(WHAT), choices=list(WHAT))
    parser.add_argument("--measure", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--parts", action="store_true", help="time a bridged step part by part")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round f32 products to TF32")
    parser.add_argument("--json", metavar="FILE", help="write every round's seconds too")
    parser.add_argument("--peak-of", choices=STEP, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if args.peak_of:
        print(json.dumps(peak_of(args.peak_of, next(settings(args)))))
        return
    print(machine_line())
    found = [measure(setting, args) for setting in settings(args)]
    if args.json:
        write_json(args.json, {"tf32": args.tf32, "tables": found})


if __name__ == "__main__":
    main()
