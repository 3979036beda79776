"""`bridger convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.adapters import add_towers_option
from bridger.cli.base import megabytes, say, whole

HELP = "turn released ETRIS checkpoints into adapters, and back"
EXAMPLES = """\
  bridger convert best_model.pth my-adapter
  bridger convert my-adapter etris.pth --to-etris --towers etris:best_model.pth
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("source", type=Path, metavar="CKPT", help="a .pth file, or an adapter")
    parser.add_argument("target", type=Path, metavar="DIR", help="an adapter's folder, or a file")
    parser.add_argument("--to-etris", action="store_true", help="from an adapter to a .pth file")
    parser.add_argument(
        "--word-length", type=whole(1), default=17, metavar="N", help="tokens (default: 17)"
    )
    add_towers_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert one way or the other."""
    return _to_etris(args) if args.to_etris else _from_etris(args)


def _from_etris(args: argparse.Namespace) -> dict[str, Any]:
    from bridger import etris
    from bridger.adapter_files import WEIGHTS_FILE

    if not args.source.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {args.source}")
    model = etris.load(args.source, word_length=args.word_length)
    model.save_pretrained(args.target)
    size = (args.target / WEIGHTS_FILE).stat().st_size
    towers = f"etris:{args.source}"
    say(
        f"saved {args.target} ({megabytes(size)}); its towers stay in {args.source}",
        f"next: bridger predict IMAGE WORDS --adapter {args.target} --towers {towers}",
    )
    return {"adapter": str(args.target), "bytes": size, "towers": towers}


def _to_etris(args: argparse.Namespace) -> dict[str, Any]:
    from bridger import BridgedModel, etris

    model = BridgedModel.from_pretrained(args.source, towers=args.towers)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    etris.save(model, args.target)
    say(f"wrote {args.target} ({megabytes(args.target.stat().st_size)})")
    return {"file": str(args.target), "bytes": args.target.stat().st_size}
