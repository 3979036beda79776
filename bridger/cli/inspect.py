"""`bridger inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.base import megabytes, say, towers_of

HELP = "say what an adapter is, which towers it is for, and how large its parts are"
EXAMPLES = """\
  bridger inspect my-adapter
  bridger inspect my-adapter --json adapter.json
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="an adapter's folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the adapter's folder; towers are not needed."""
    from bridger.checkpoint import WEIGHTS_FILE, read

    if not args.adapter.is_dir():
        raise FileNotFoundError(f"there is no adapter folder {args.adapter}")
    config, tensors = read(args.adapter)
    parts: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        part = parts.setdefault(part_of(name), {"numbers": 0, "bytes": 0})
        part["numbers"] += tensor.numel()
        part["bytes"] += tensor.numel() * tensor.element_size()
    size = (args.adapter / WEIGHTS_FILE).stat().st_size
    say(f"{args.adapter}: adapter of bridger {config['bridger_version']}, {megabytes(size)}")
    for side, tower in config["towers"].items():
        named = f" {tower['name']}" if tower.get("name") else ""
        widths = _short(tower["widths"])
        say(
            f"  {side} tower: {tower['library']} {tower['class']}{named}, "
            f"{tower['num_blocks']} blocks, {widths} wide"
        )
    encoder = config["encoder"]
    say(f"  stages (vision block, text block): {', '.join(map(str, encoder['stages']))}")
    say(f"  Bridgers: {_options(encoder['bridgers'])}")
    if encoder["trainable"]:
        say(f"  trained tower tensors: {', '.join(encoder['trainable'])}")
    for name, head in config["heads"].items():
        say(f"  head {name}: {head['type']} ({_options(head['config'])})")
    for name, part in parts.items():
        say(f"  {name:<16}{part['numbers']:>12,} numbers  {megabytes(part['bytes']):>10}")
    towers = towers_of(args.adapter, None)
    return {"config": config, "parts": parts, "bytes": size, "load_towers": towers}


def part_of(name: str) -> str:
    """Return the part of a model that a saved tensor belongs to."""
    first, _, rest = name.partition(".")
    return f"head {rest.partition('.')[0]}" if first == "heads" else first


def _options(options: dict[str, Any] | None) -> str:
    if options is None:
        return "none"
    return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)


def _short(widths: list[int]) -> str:
    return "/".join(map(str, dict.fromkeys(widths)))
