"""bridger beside the released ETRIS code, on the same weights.

    git clone https://github.com/kkakkkka/ETRIS ~/ETRIS
    python examples/benchmarks/against_etris.py --etris ~/ETRIS
    python examples/benchmarks/against_etris.py --etris ~/ETRIS --dtype f32 bf16 --parts
    python examples/benchmarks/against_etris.py --etris ~/ETRIS --device cuda --tf32 --batch 16 \\
        --dtype f32 bf16 fp16 --largest-batch --json etris.json

The clone's own model runs on today's torch by the patches of etris_patches.py, which change no
result, with random weights of CLIP's sizes; bridger's is made of its state dict. First both are
compared: logits, loss, gradients, running statistics. Then they are timed alternately in this
process: forwards in eval mode without gradients, and training steps in train mode (forward, loss,
backward, Adam as in the released config; with fp16 its gradient scaler). The released code trains
the towers' position embeddings: "same training" trains them too, "positions frozen" does not. On a
GPU it runs with cudnn off, as its train.py sets it, and again with cudnn on.

Times are medians with their quartiles; "x as fast" is the median over rounds of the first row's
seconds to a row's own. Peak memory is that of the first two steps above the level after building,
each row in a process of its own: "tensors" by torch's count, "resident" by the system's, "share" of
the first row's by each. The largest batch is the largest one whose steps fit on the GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from etris_cases import (
    DTYPES,
    PARTS,
    Case,
    Setting,
    clocked,
    differences,
    draw,
    module_of,
    titles,
)
from etris_patches import CONFIGS, Released, load
from measuring import Timing, alternate, in_child, machine_line, peak_memory, table, write_json
from torch import Tensor, nn

Rows = dict[str, dict[str, Any]]
MEASURES = ("check", "forward", "step", "memory")
FAST = "x as fast"
COLUMNS = (
    *("", "trained M", "forward s", f"forward, {FAST}", "step s", f"step, {FAST}"),
    *("tensors MB", "tensors, share", "resident MB", "resident, share", "largest batch"),
)
TOLERANCE = 1e-4  # of logits, relative to the largest


def set_tf32(on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def give_back() -> None:
    """Leave a GPU's memory to others."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def build(args: argparse.Namespace) -> tuple[Released, dict[str, Tensor]]:
    """Build the released model on the CPU, and copy its state dict."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    released = load(args.etris, args.backbone)
    return released, {name: t.clone() for name, t in released.model.state_dict().items()}


def check(
    released: Released, state: Mapping[str, Tensor], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Compare both models, and print by how much they differ."""
    set_tf32(False)
    batch = draw(min(args.batch, 2), released, args.device)
    dtypes = {"f32": torch.float32, "f64": torch.float64}
    found = {name: differences(released, state, batch, dtype) for name, dtype in dtypes.items()}
    give_back()
    rows = [{"": n, **{d: f"{found[d][n]:.1e}" for d in found}} for n in found["f32"]]
    print(
        f"\nlargest differences to ETRIS' largest values\n\n{table(rows, ('', *found))}", flush=True
    )
    if not found["f32"]["logits"] < TOLERANCE:
        raise SystemExit("the models differ: no point in timing them")
    return found


def spread(timing: Timing) -> str:
    return f"{timing.median:.3g} [{timing.low:.3g}, {timing.high:.3g}]"


def add_timings(rows: Rows, label: str, timings: Mapping[str, Timing]) -> None:
    """Write timings into rows; the first one is the reference."""
    reference = next(iter(timings.values()))
    for name, timing in timings.items():
        speed = reference.ratio(timing)
        rows[name] |= {f"{label} s": spread(timing), f"{label}, {FAST}": f"{speed:.2f}"}


def add_peaks(rows: Rows, peaks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write peaks of memory into rows; the first one is the reference."""
    for kind in ("tensors", "resident"):
        reference = peaks.get("etris", {}).get(kind)
        for name, peak in peaks.items():
            if reference and peak[kind]:
                rows[name] |= {f"{kind} MB": round(peak[kind] / 1e6)}
                rows[name] |= {f"{kind}, share": f"{peak[kind] / reference:.2f}"}


def measure(
    dtype: str, released: Released, modules: Mapping[str, nn.Module], args: argparse.Namespace
) -> dict[str, Any]:
    """Measure in one precision, and print the table.

    Children come first, while nothing of this process is on the GPU.
    """
    rows: Rows = {n: {"": title} for n, title in titles(args.device, args.memory).items()}
    found: dict[str, Any] = {}
    if "memory" in args.measure:
        found["memory"] = in_children("memory", dtype, args)
        add_peaks(rows, found["memory"])
    if args.largest_batch:
        found["largest"] = in_children("largest", dtype, args)
        for name, largest in found["largest"].items():
            rows[name]["largest batch"] = largest["batch"]
    setting = Setting(args.batch, dtype, args.device)
    cases = {n: Case(modules[n], released, setting, cudnn=n != "etris") for n in rows}
    for name, case in cases.items():
        rows[name]["trained M"] = f"{case.trained / 1e6:.2f}"
    timed = {"rounds": args.rounds, "warmups": args.warmups, "device": args.device}
    if "forward" in args.measure:
        calls = {n: case.forward for n, case in cases.items() if not n.startswith("frozen")}
        found["forward"] = alternate(calls, **timed)
        add_timings(rows, "forward", found["forward"])
    if "step" in args.measure:
        found["step"] = alternate({n: case.step for n, case in cases.items()}, **timed)
        add_timings(rows, "step", found["step"])
    filled = [c for c in COLUMNS if any(c in row for row in rows.values())]
    print(f"\n## {dtype}\n\n" + table(list(rows.values()), filled), flush=True)
    if args.parts:
        pair = {n: cases[n] for n in ("etris", "bridger")}
        found["parts"] = parts_of(pair, args)
    for module in modules.values():
        module.to("cpu").zero_grad()
    del cases
    give_back()
    return found


def parts_of(cases: Mapping[str, Case], args: argparse.Namespace) -> dict[str, dict[str, Timing]]:
    """Time the parts of forwards in eval mode, and print them."""
    with ExitStack() as stack:
        clocks = {n: stack.enter_context(clocked(c.module, args.device)) for n, c in cases.items()}
        calls = {n: case.forward for n, case in cases.items()}
        alternate(calls, args.rounds, args.warmups, args.device)
    found = {
        name: {part: Timing(tuple(seconds[args.warmups :])) for part, seconds in clock.items()}
        for name, clock in clocks.items()
    }
    rows = []
    for part in PARTS:
        released, ours = (found[name][part] for name in cases)
        speed = f"{released.ratio(ours):.2f}"
        row = {"part of a forward": part, "ETRIS s": spread(released), "bridger s": spread(ours)}
        rows.append({**row, FAST: speed})
    print("\n" + table(rows, list(rows[0])), flush=True)
    return found


def in_children(kind: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every row by itself; what fails is told, and the others go on."""
    chosen = ["--etris", args.etris, "--backbone", args.backbone, "--dtype", dtype]
    chosen += ["--device", args.device, "--batch", str(args.batch)] + ["--tf32"] * args.tf32
    chosen += ["--threads", str(args.threads)] if args.threads else []
    found = {}
    for name in titles(args.device, args.memory):
        try:
            found[name] = in_child(__file__, [*chosen, "--child", kind, name])
        except subprocess.CalledProcessError as error:
            print(f"{kind} of {name} is missing: {error}", file=sys.stderr)
    return found


def alone(kind: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one row by itself: its memory, or its largest batch."""
    set_tf32(args.tf32)
    released, state = build(args)
    module = module_of(name, released, state)
    if module is not released.model:
        released = replace(released, model=nn.Identity(), groups=[])
    del state
    setting = Setting(args.batch, args.dtype[0], args.device)
    case = Case(module, released, setting, cudnn=name != "etris")
    if kind == "largest":
        return case.largest_batch()
    case.two_steps()  # what libraries load, and keep of their own, at their first calls
    return asdict(peak_memory(case.two_steps, args.device))


def trained(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """Count what is trained, and print it; frozen query and key weights have no effect."""
    counts: dict[str, dict[str, int]] = {}
    for name, module in modules.items():
        named = {n: p.numel() for n, p in module.named_parameters() if p.requires_grad}
        positions = sum(size for n, size in named.items() if "positional_embedding" in n)
        counts[name] = {"parameters": sum(named.values()), "positions": positions}
    for name in ("etris", "bridger", "frozen"):
        count = counts[name]
        print(f"{name} trains {count['parameters']:,} numbers, {count['positions']:,} of positions")
    apart = counts["etris"]["parameters"] - counts["bridger"]["parameters"]
    print(f"{apart:,} query and key weights of attention over one key get no gradient: frozen here")
    return counts


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--etris", required=True, metavar="PATH", help="a clone of kkakkkka/ETRIS")
    result.add_argument("--backbone", default="ViT-B/16", choices=sorted(CONFIGS))
    result.add_argument("--batch", type=int, default=4)
    result.add_argument("--device", default="cpu", help="cpu, or cuda")
    result.add_argument("--dtype", nargs="+", default=["f32"], choices=list(DTYPES))
    result.add_argument("--tf32", action="store_true", help="on GPUs, in f32")
    result.add_argument("--memory", nargs="*", default=[], choices=["low", "balanced"])
    result.add_argument("--measure", nargs="+", default=list(MEASURES), choices=MEASURES)
    result.add_argument("--parts", action="store_true", help="time parts of the forward too")
    result.add_argument("--largest-batch", action="store_true", help="on a GPU")
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--warmups", type=int, default=1)
    result.add_argument("--threads", type=int, help="torch threads")
    result.add_argument("--json", metavar="FILE", help="write all results there")
    result.add_argument("--child", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.largest_batch and args.device == "cpu":
        parser().error("--largest-batch needs --device cuda")
    if args.child:
        kind, name = args.child
        print(json.dumps(alone(kind, name, args)))
        return
    released, state = build(args)
    print(
        f"{machine_line()}\n{args.backbone}, {released.options.input_size} px, batch {args.batch}"
    )
    print(f"ETRIS at {released.commit}:", "; ".join(released.patches), flush=True)
    asked = {n: value for n, value in vars(args).items() if n not in ("etris", "json", "child")}
    found: dict[str, Any] = {"asked": asked, "commit": released.commit, "patches": released.patches}
    if "check" in args.measure:
        found["differences"] = check(released, state, args)
    set_tf32(args.tf32)
    modules = {n: module_of(n, released, state) for n in titles(args.device, args.memory)}
    found["trained"] = trained(modules)
    for dtype in args.dtype:
        found[dtype] = measure(dtype, released, modules, args)
        if args.json:
            write_json(args.json, found)


if __name__ == "__main__":
    main()
