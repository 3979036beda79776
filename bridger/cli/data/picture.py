"""`bridger data picture`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bridger.cli.base import check_picture, command, say
from bridger.cli.data.scenes import add_scene_options

HELP = "make one scene, and say what can be asked of it"
EXAMPLES = """\
  bridger data picture picture.png
  bridger data picture other.png --seed 7 --size 256
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("picture", type=Path, metavar="PNG", help="where to write it")
    add_scene_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write a picture, and say what is in it."""
    from PIL import Image

    from bridger.data.scenes import make_scene

    check_picture(args.picture)
    if args.picture.exists():
        raise FileExistsError(f"{args.picture} exists: choose another name")
    scene = make_scene("val", args.seed, size=args.size)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(args.picture)
    said: dict[int, list[str]] = {}
    for expression in scene.expressions:
        said.setdefault(expression.target, []).append(expression.sentence)
    say(f"wrote {args.picture}. Each line means one object:")
    say(*(f"  {scene.objects[i].kind.name}: {', '.join(s)}" for i, s in sorted(said.items())))
    longest = max((e.sentence for e in scene.expressions), key=len)
    say("try: " + command("predict", args.picture, longest, "--overlay", "seen.png"))
    objects = [{"name": scene.objects[i].kind.name, "sentences": s} for i, s in said.items()]
    return {"picture": str(args.picture), "objects": objects, "seed": args.seed, "size": args.size}
