"""What Bridgers add to the towers' states, and what it depends on.

    python examples/benchmarks/residuals.py                      # the shipped adapter
    python examples/benchmarks/residuals.py --adapter my-adapter

One scene at a time, with all of its expressions. Of a residual's energy (its mean square), how much
differs from cell to cell of the map (from token to token of a text), how much from expression to
expression of the same picture; a residual that is the same everywhere is no more than a bias. The
last line says what the masks lose when Bridgers are switched off.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bridger
from bridger.data.scenes import make_scene
from bridger.tiny_clip import TINY_ADAPTER


def shares(residual: Tensor, state: Tensor, places: Sequence[int]) -> tuple[float, float, float]:
    """Return the residual's size against the state's, and the shares of its energy.

    Args:
        residual, state: one row per expression.
        places: the dimensions of cells or tokens.
    """
    energy = residual.square().mean()
    size = (energy / state.square().mean()).sqrt()
    by_place = residual.var(dim=tuple(places), correction=0).mean() / energy
    by_expression = residual.var(dim=0, correction=0).mean() / energy
    return float(size), float(by_place), float(by_expression)


def watch(encoder: Any) -> list[list[tuple[float, ...]]]:
    """Collect the figures of every forward, a list for each stage."""
    seen: list[list[tuple[float, ...]]] = []
    for bridger_of_stage in encoder.bridgers.stages:
        figures: list[tuple[float, ...]] = []

        def hook(module: Any, args: Any, output: Any, into: Any = figures) -> None:
            vision, tokens, mask = args[:3]
            words = min(int(mask.sum(dim=1).min()), tokens.shape[1])  # real in every expression
            on_map = shares(output[0], vision, (2, 3))
            into.append((*on_map, *shares(output[1][:, :words], tokens[:, :words], (1,))))

        bridger_of_stage.register_forward_hook(hook)
        seen.append(figures)
    return seen


def mean_iou(model: Any, scenes: Sequence[Any]) -> float:
    """Return the mean IoU over all expressions of the scenes."""
    ious: list[float] = []
    for scene in scenes:
        masks = model.predict(scene.image, [e.sentence for e in scene.expressions]).masks
        for mask, expression in zip(masks, scene.expressions, strict=True):
            truth = scene.objects[expression.target].mask
            ious.append((mask & truth).sum() / ((mask | truth).sum() + 1e-6))
    return sum(ious) / len(ious)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default=TINY_ADAPTER)
    parser.add_argument("--scenes", type=int, default=40)
    args = parser.parse_args()
    vision, text, _ = bridger.load_tiny_clip()
    model = bridger.BridgedModel.from_pretrained(args.adapter, vision, text)
    scenes = [make_scene("val", 10_000 + number) for number in range(args.scenes)]
    scenes = [scene for scene in scenes if len(scene.expressions) > 1]
    with model.disable():
        without = mean_iou(model, scenes)
    seen = watch(model.encoder)
    with_bridgers = mean_iou(model, scenes)
    print("| stage | map: size | by cell | by expression | text: size | by token | by expression |")
    print("| --- " * 7 + "|")
    for stage, figures in enumerate(seen):
        means = torch.tensor(figures).mean(dim=0).tolist()
        cells = [f"{value:.2f}" if k % 3 == 0 else f"{value:.0%}" for k, value in enumerate(means)]
        print(f"| {stage} | " + " | ".join(cells) + " |")
    print(f"\nmIoU with Bridgers {100 * with_bridgers:.1f}, switched off {100 * without:.1f}")


if __name__ == "__main__":
    main()
