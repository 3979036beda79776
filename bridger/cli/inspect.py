"""`bridger inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.adapters import ADAPTER, add_import_option, find
from bridger.cli.base import megabytes, say, whole

HELP = "say what an adapter is, or where two towers would meet"
ABOUT = """\
Of an adapter: its towers, stages, Bridgers and heads, and how large its parts
are; the towers are not loaded. Of two towers: the blocks that Bridgers would
join, their widths and maps, and how many parameters would be trained.
"""
EXAMPLES = """\
  bridger inspect my-adapter
  bridger inspect tiny-heads
  bridger inspect somebody/their-adapter@v1.0
  bridger inspect my-adapter --json adapter.json
  bridger inspect timm:convnext_base transformers:roberta-base --stages 3
  bridger inspect open_clip:ViT-B-16 open_clip:ViT-B-16 --size 416
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "what",
        nargs="+",
        metavar="ADAPTER|TOWER",
        help=f"an adapter ({ADAPTER}), or a vision and a text tower, VISION TEXT or VISION,TEXT",
    )
    parser.add_argument("--stages", type=whole(1), metavar="K", help="default: 3")
    parser.add_argument("--bridgers", metavar="PRESET", help="their preset (default: paper)")
    parser.add_argument(
        "--size",
        type=whole(1),
        metavar="PIXELS",
        help="side of the pictures (default: the tower's)",
    )
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Look at an adapter's folder, or at two towers.

    Raises:
        ValueError: neither one name nor two.
    """
    if len(args.what) == 1 and "," in args.what[0] and not Path(args.what[0]).exists():
        return _towers(args.what[0], args)
    if len(args.what) == 1:
        if any(given is not None for given in (args.stages, args.bridgers, args.size)):
            raise ValueError("--stages, --bridgers and --size are for two towers, not an adapter")
        return _adapter(args.what[0], args)
    if len(args.what) == 2:
        return _towers(",".join(args.what), args)
    raise ValueError(f"expected an adapter, or a vision and a text tower, got {args.what}")


def _towers(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from bridger.attach import attach_bridgers
    from bridger.model import BridgedModel
    from bridger.named_towers import load_towers

    vision, text, _ = load_towers(name)
    options = {"stages": args.stages, "config": args.bridgers}
    given = {name: value for name, value in options.items() if value is not None}
    encoder = attach_bridgers(vision, text, **given)
    say(BridgedModel(encoder, {}).summary(args.size and (args.size, args.size)))
    towers = {"vision": encoder.vision.describe(), "text": encoder.text.describe()}
    return {"towers": towers, "stages": encoder.stages}


def _adapter(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Read an adapter's folder; towers are not needed."""
    from bridger.adapter_files import WEIGHTS_FILE, part_sizes, read
    from bridger.hub_cache import commit_of
    from bridger.named_towers.of_adapter import towers_of
    from bridger.summary import saved_stages, saved_widths

    adapter = find(name, args)
    config, tensors = read(adapter)
    parts = part_sizes(tensors)
    size = (adapter / WEIGHTS_FILE).stat().st_size
    say(f"{name}: adapter of bridger {config['bridger_version']}, {megabytes(size)}")
    if commit := commit_of(adapter):
        say(f"  from the Hub: commit {commit}")
    for side, tower in config["towers"].items():
        named = f" {tower['name']}" if tower.get("name") else ""
        say(
            f"  {side} tower: {tower['library']} {tower['class']}{named}, "
            f"{tower['num_blocks']} blocks, {saved_widths(tower['widths'])} wide"
        )
    encoder = config["encoder"]
    say(f"  stages (vision block, text block): {saved_stages(encoder['stages'])}")
    say(f"  Bridgers: {_options(encoder['bridgers'])}")
    for tuned in encoder.get("peft", []):
        say(f"  peft in the {tuned['side']} tower: {tuned['config']['peft_type']}")
    if encoder["trainable"]:
        say(f"  trained tower tensors: {', '.join(encoder['trainable'])}")
    for head_name, head in config["heads"].items():
        say(f"  head {head_name}: {head['type']} ({_options(head['config'])})")
    for part_name, part in parts.items():
        say(f"  {part_name:<16}{part['numbers']:>12,} numbers  {megabytes(part['bytes']):>10}")
    towers = towers_of(adapter)
    say(f"  towers: {towers or 'unknown, name them with --towers'}")
    return {
        "config": config,
        "parts": parts,
        "bytes": size,
        "load_towers": towers,
        "commit": commit,
    }


def _options(options: dict[str, Any] | None) -> str:
    if options is None:
        return "none"
    return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
