"""Where two towers meet, and how much is trained: lines to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from bridger.towers.vision import grid_of

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder
    from bridger.model import BridgedModel

FINISHED = "finished text"
"""What stands in place of a text block where a stage reads what the tower has made in the end."""

TITLES = ("stage", "vision block", "width", "stride", "map", "text block", "width", "Bridger")


def stage_table(encoder: BridgedEncoder, image_size: tuple[int, int] | None = None) -> str:
    """Return one line per stage: blocks, widths, stride, map, and the Bridger's parameters.

    Where every stage reads the finished text, that stands in place of its block.

    Args:
        encoder: the bridged towers; nothing is run.
        image_size: (H, W) of the pictures in pixels, which gives the maps' sizes; by default what
            the vision tower was built for; "any" where it was built for any size, a dash where
            the family has its own way of rounding.
    """
    rows = [TITLES]
    for stage, (v, t) in enumerate(encoder.stages):
        seen = encoder.vision.blocks[v]
        bridger = None if encoder.bridgers is None else encoder.bridgers.at(stage)
        rows.append(
            (
                str(stage),
                f"{seen.name} ({v + 1} of {len(encoder.vision.blocks)})",
                str(seen.width),
                str(seen.stride),
                _map(encoder, v, image_size or encoder.vision.image_size),
                *_text(encoder, t),
                "none" if bridger is None else f"{count(bridger):,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def saved_stages(stages: Sequence[tuple[int, int | None]]) -> str:
    """Return the stages of an adapter's config, each as (vision block, text block)."""
    return ", ".join(f"({v}, {FINISHED if t is None else t})" for v, t in stages)


def saved_widths(widths: Sequence[int]) -> str:
    """Return the widths of a tower's blocks in an adapter's config, each once."""
    return "/".join(map(str, dict.fromkeys(widths)))


def head_lines(model: BridgedModel) -> list[str]:
    """Return one line per head: its type, the kind of text that it reads, its parameters."""
    return [
        f"head {name}: {head.name} on {head.text}, {count(head):,}"
        for name, head in model.heads.items()
    ]


def trainable_line(model: BridgedModel) -> str:
    """Return how much is trained, part by part, what rests, and the frozen towers."""
    groups = model.parameter_groups()
    counts = {g["name"]: sum(p.numel() for p in g["params"]) for g in groups}
    trained = sum(counts.values())
    frozen = count(model.encoder.towers) - counts.get("peft", 0)
    titles = {name: f"{name} on {head.text}" for name, head in model.heads.items()}
    parts = ", ".join(f"{titles.get(name, name)} {number:,}" for name, number in counts.items())
    resting = ", ".join(
        f"{titles[name]} {count(head):,}"
        for name, head in model.heads.items()
        if not model.loss_weights[name]
    )
    return (
        f"trainable parameters: {trained:,} ({parts}) || "
        + (f"resting, with loss weight 0: {resting} || " if resting else "")
        + f"frozen towers: {frozen:,} || trainable: {100 * trained / (trained + frozen):.2f} %"
    )


def count(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _text(encoder: BridgedEncoder, block: int | None) -> tuple[str, str]:
    if block is None:
        return FINISHED, str(encoder.text.token_width)
    read = encoder.text.blocks[block]
    return f"{read.name} ({block + 1} of {len(encoder.text.blocks)})", str(read.width)


def _map(encoder: BridgedEncoder, block: int, size: tuple[int, int] | None) -> str:
    stride, last = encoder.vision.blocks[block].stride, encoder.vision.blocks[-1].stride
    if size is None or stride is None:
        return "any"
    if stride != last and any(side % stride for side in size):
        return "-"  # families round in their own ways, and say so for the last map alone
    height, width = encoder.vision.map_grid(size) if stride == last else grid_of(size, stride)
    return f"{height} x {width}"
