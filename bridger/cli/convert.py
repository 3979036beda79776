"""`bridger convert`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.adapters import ADAPTER, add_import_option, add_towers_option, find
from bridger.cli.base import check_writable, command, megabytes, say, whole

HELP = "turn released ETRIS checkpoints into adapters, and back"
EXAMPLES = """\
  bridger convert best_model.pth my-adapter
  bridger convert my-adapter etris.pth --to-etris
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "source", metavar="CKPT|ADAPTER", help=f"a .pth file; with --to-etris an adapter: {ADAPTER}"
    )
    parser.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help="becomes an adapter's folder; with --to-etris a .pth file",
    )
    parser.add_argument("--to-etris", action="store_true", help="from an adapter to a .pth file")
    parser.add_argument(
        "--word-length",
        type=whole(1),
        default=17,
        metavar="N",
        help="tokens of a text, which checkpoints do not tell: 17, or 22 for G-Ref (default: 17)",
    )
    add_towers_option(parser)
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert one way or the other."""
    return _to_etris(args) if args.to_etris else _from_etris(args)


def _from_etris(args: argparse.Namespace) -> dict[str, Any]:
    from bridger import etris
    from bridger.adapter_files import WEIGHTS_FILE

    if not Path(args.source).is_file():
        raise FileNotFoundError(f"there is no checkpoint file {args.source}")
    model = etris.load(args.source, word_length=args.word_length)
    model.save_pretrained(args.target)
    size = (args.target / WEIGHTS_FILE).stat().st_size
    say(
        f"saved {args.target} ({megabytes(size)}); its towers stay in {args.source}",
        "next: " + command("predict", "IMAGE", "WORDS", "--adapter", args.target),
    )
    return {"adapter": str(args.target), "bytes": size, "towers": model.tower_source}


def _to_etris(args: argparse.Namespace) -> dict[str, Any]:
    from bridger import BridgedModel, etris

    check_writable(args.target)
    model = BridgedModel.from_pretrained(
        find(args.source, args), towers=args.towers, download=args.download
    )
    args.target.parent.mkdir(parents=True, exist_ok=True)
    etris.save(model, args.target)
    say(f"wrote {args.target} ({megabytes(args.target.stat().st_size)})")
    return {"file": str(args.target), "bytes": args.target.stat().st_size}
