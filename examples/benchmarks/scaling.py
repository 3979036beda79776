"""How cost grows: with picture, text, expressions, stages, width and towers, beside the counts.

    python examples/benchmarks/scaling.py                    # CLIP ViT-B/16, one picture
    python examples/benchmarks/scaling.py --quick            # towers of 4 blocks, under a minute
    python examples/benchmarks/scaling.py --axes text expressions --json scaling.json

Along each axis, medians of alternated forwards and training steps, and the floating-point
operations of the same calls, counted by torch where matrices are multiplied. Slopes are those of
straight lines through the logarithms: 1 means twice the cost for twice as much. The verdict holds
the measured slope against the counted one, or against 1 where that is less: what is above it by
more than 0.1 costs more than it should. Pictures count in pixels, towers in parameters.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from adapters import SMALL
from measuring import Timing, alternate, machine_line, random_clip, table, write_json
from speed_cases import Case, Setting, Towers, bridged, load
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bridger import BridgerConfig
from bridger.summary import count

SLACK = 0.1
KINDS = ("forward", "step")
Cases = dict[float, Case]  # by where they lie on the axis


@dataclass(frozen=True)
class Scale:
    """What is varied, and from where.

    Attributes:
        setting: of all points.
        sizes, lengths, expressions, stages, widths: the values along the axes.
        towers: names, memory in GB and makers of the pairs, small to large.
    """

    setting: Setting
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    expressions: tuple[int, ...]
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    towers: Mapping[str, tuple[float, Callable[[], Any]]]


def small_clip(width: int) -> Any:
    """Build a CLIP of 4 blocks."""
    import open_clip

    vision = {**SMALL["vision_cfg"], "width": width}
    text = {**SMALL["text_cfg"], "width": width, "heads": width // 64}
    return open_clip.CLIP(128, vision, text, quick_gelu=True)


QUICK = Scale(
    Setting(small=True, batch=1),
    sizes=(64, 96, 128),
    lengths=(4, 8, 16),
    expressions=(1, 2, 4),
    stages=(1, 2, 4),
    widths=(16, 32, 64),
    towers={str(w): (0.5, partial(small_clip, w)) for w in (64, 128, 256)},
)
WHOLE = Scale(
    Setting(batch=1),
    sizes=(112, 160, 224, 320, 448),
    lengths=(10, 20, 40, 77),
    expressions=(1, 2, 4, 8),
    stages=(1, 2, 3, 4, 6, 12),
    widths=(16, 32, 64, 128, 256),
    towers={
        name: (gigabytes, partial(random_clip, name))
        for name, gigabytes in {"ViT-B-16": 3, "ViT-L-14": 5, "ViT-H-14": 9}.items()
    },
)


def free_gigabytes(device: str) -> float:
    """Return the memory that is free for another model."""
    on_gpu = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    return free / 1e9


def along_size(scale: Scale, towers: Towers) -> Cases:
    model = bridged(towers, scale.setting)
    return {side**2: Case(model, scale.setting, side) for side in scale.sizes}


def along_text(scale: Scale, towers: Towers) -> Cases:
    model = bridged(towers, scale.setting)
    return {n: Case(model, scale.setting, towers.size, length=n) for n in scale.lengths}


def along_expressions(scale: Scale, towers: Towers) -> Cases:
    model = bridged(towers, scale.setting)
    settings = {n: replace(scale.setting, expressions=n) for n in scale.expressions}
    return {n: Case(model, setting, towers.size) for n, setting in settings.items()}


def along_stages(scale: Scale, towers: Towers) -> Cases:
    models = {k: bridged(towers.another(), scale.setting, stages=k) for k in scale.stages}
    return {k: Case(model, scale.setting, towers.size) for k, model in models.items()}


def along_width(scale: Scale, towers: Towers) -> Cases:
    configs = {d: BridgerConfig.preset("paper", hidden_dim=d) for d in scale.widths}
    models = {d: bridged(towers.another(), scale.setting, config=c) for d, c in configs.items()}
    return {d: Case(model, scale.setting, towers.size) for d, model in models.items()}


def along_towers(scale: Scale, towers: Towers) -> Cases:
    cases: Cases = {}
    for name, (gigabytes, make) in scale.towers.items():
        if free_gigabytes(scale.setting.device) < gigabytes:
            print(f"\n{name} is left out: it takes {gigabytes} GB", flush=True)
            continue
        clip = make().eval().requires_grad_(False).to(scale.setting.device)
        model = bridged(Towers(clip.visual, clip, 0), scale.setting)
        cases[count(clip)] = Case(model, scale.setting, clip.visual.image_size[0])
    return cases


AXES: dict[str, tuple[str, Callable[[Scale, Towers], Cases]]] = {
    "size": ("pixels", along_size),
    "text": ("tokens", along_text),
    "expressions": ("N", along_expressions),
    "stages": ("stages", along_stages),
    "width": ("hidden_dim", along_width),
    "towers": ("tower parameters", along_towers),
}


def operations(call: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products and convolutions in a call.

    Attention runs as plain products meanwhile: torch does not count its fused forms on a CPU.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def slope(values: Mapping[float, float]) -> float:
    """Return the slope of the line through the logarithms of costs by place."""
    found: float = np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0]
    return float(found)


def verdict(measured: float, counted: float) -> str:
    """Say whether a cost grows as it should."""
    return "ok" if measured <= max(counted, 1.0) + SLACK else "ABOVE"


def measure(cases: Cases, rounds: int, device: str) -> dict[str, Any]:
    """Time and count every point of an axis, forward and step."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for case in cases.values():
            case.module.train(kind == "step")
        calls = {str(place): getattr(case, kind) for place, case in cases.items()}
        timings: dict[str, Timing] = alternate(calls, rounds, 1, device)
        counts = {name: operations(call) for name, call in calls.items()}
        found[kind] = {"timings": timings, "operations": counts}
    return found


def by_place(cases: Cases, found: Mapping[str, Any], kind: str) -> tuple[dict[float, float], ...]:
    """Return the median seconds and the operations by place."""
    timings, counts = found[kind]["timings"], found[kind]["operations"]
    seconds = {place: timings[str(place)].median for place in cases}
    return seconds, {place: float(counts[str(place)]) for place in cases}


def point_rows(unit: str, cases: Cases, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row of a table for every point of an axis."""
    rows: list[dict[str, Any]] = [{unit: place} for place in cases]
    for kind in KINDS:
        seconds, counts = by_place(cases, found, kind)
        for row, place in zip(rows, cases, strict=True):
            row[f"{kind} ms"] = 1000 * seconds[place]
            row[f"{kind} GFLOP"] = counts[place] / 1e9
    return rows


def slope_row(name: str, cases: Cases, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an axis' row of the last table."""
    row: dict[str, Any] = {"axis": name}
    for kind in KINDS:
        measured, counted = map(slope, by_place(cases, found, kind))
        row[kind], row[f"{kind}: counted"] = measured, counted
        row[f"{kind}: verdict"] = verdict(measured, counted)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="towers of 4 blocks, 128 wide")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", help="write every round's seconds too")
    args = parser.parse_args()
    chosen = QUICK if args.quick else WHOLE
    scale = replace(chosen, setting=replace(chosen.setting, device=args.device))
    print(machine_line(), flush=True)
    towers, results, slopes = load(scale.setting), {}, []
    for name in args.axes:
        unit, along = AXES[name]
        cases = along(scale, towers.another())
        results[name] = measure(cases, args.rounds, args.device)
        rows = point_rows(unit, cases, results[name])
        print(f"\n{name}\n\n{table(rows, list(rows[0]))}", flush=True)
        slopes.append(slope_row(name, cases, results[name]))
        cases.clear()
        gc.collect()
    print(f"\nslopes\n\n{table(slopes, list(slopes[0]))}")
    if args.json:
        write_json(args.json, {"axes": results, "slopes": slopes})


if __name__ == "__main__":
    main()
