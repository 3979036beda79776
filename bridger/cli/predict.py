"""`bridger predict`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.adapters import (
    ADAPTER,
    add_device_option,
    add_head_option,
    add_import_option,
    add_towers_option,
    load_model,
)
from bridger.cli.asked import CLASSES, FILES, RUNNERS_UP, Asked, found_in, write_files
from bridger.cli.base import check_picture, complain, say, share, whole
from bridger.cli.predict_folder import answer_folder

if TYPE_CHECKING:
    from bridger.predictions import ClassificationPrediction

HELP = "find what words mean in a picture: masks, boxes or classes"
ABOUT = """\
The default adapter knows small composed scenes, not photographs (`bridger data
picture` makes one to try); tiny-heads finds boxes, regions and classes in them.
Writes masks and label maps to --out, a picture to look at to --overlay. With
--batch it writes a line of JSON for every picture of a folder as soon as it has
been answered, to stdout or --json FILE, and what is asked for to the folders
--out and --overlay.
"""
EXAMPLES = """\
  bridger predict picture.jpg "the owl on the left"
  bridger predict picture.jpg "the red car" "the drum" --out masks.png --overlay seen.png
  bridger predict picture.jpg "the dog" --adapter my-adapter --threshold 0.5
  bridger predict picture.jpg "the dog" --adapter somebody/their-adapter --device cpu
  bridger predict picture.jpg owl drum --adapter tiny-heads --head detection --overlay seen.png
  bridger predict picture.jpg dog cat --adapter detector --json -
  bridger predict street.jpg --adapter parser --classes classes.txt --window 512
  bridger predict picture.jpg "the owl on the left" --attention looks.png
  bridger predict --batch photos "the dog" --out masks --json found.jsonl
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="a file that Pillow reads; with --batch a folder"
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORDS",
        help="sentences, quoted, or class names, as the head reads them (default: the classes that "
        "the head was trained on)",
    )
    parser.set_defaults(trailing="words")
    parser.add_argument(
        "--batch",
        action="store_true",
        help="answer about every picture in the folder IMAGE and below; broken ones are named "
        "and skipped, and the exit code is 1 then",
    )
    parser.add_argument(
        "--adapter", default="tiny", metavar="ADAPTER", help=f"{ADAPTER} (default: tiny)"
    )
    add_head_option(parser)
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names in place of WORDS: one on a line, with synonyms after commas",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PNG|DIR",
        help="of masks 0 and 255 (mask.png where --overlay is not given either), numbered where "
        "there are several sentences; of classes for each pixel their numbers, the last one of all "
        "for none of them (labels.png likewise); with --batch the folder for them, named as the "
        "pictures are (default: none)",
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="PNG|DIR",
        help="the picture with what is found; with --batch the folder for them",
    )
    parser.add_argument(
        "--attention",
        type=Path,
        metavar="PNG",
        help="where each token looked at each stage of Bridgers, a sheet for each sentence; of "
        "one picture, not with --batch",
    )
    parser.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="what counts as found (default: the head's own, for masks 0.35)",
    )
    parser.add_argument(
        "--window",
        type=whole(1),
        metavar="PIXELS",
        help="cut a large picture into windows of that side, for heads that score pixels",
    )
    add_towers_option(parser)
    add_device_option(parser)
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Predict, write the files, and say what was found and how long it took."""
    if args.batch:
        if args.attention is not None:
            raise ValueError("--attention draws one picture: leave it out, or --batch")
        answer_folder(args)
        return None
    if args.image.is_dir():
        raise IsADirectoryError(
            f"{args.image} is a folder: say --batch to ask about every picture in it"
        )
    if not args.image.is_file():
        raise FileNotFoundError(f"there is no picture {args.image}")
    asked = Asked.of(args)
    out = args.out
    if out is None and args.overlay is None and args.attention is None:
        out = FILES.get(asked.registered)
    maps = [] if out is None else asked.maps(out)
    drawn = [path for path in (args.overlay, args.attention) if path is not None]
    outs = [*maps, *drawn]
    for path in outs:
        check_picture(path)
    places = [path.resolve() for path in (args.image, *outs)]
    if len(set(places)) < len(places):
        raise ValueError(
            f"IMAGE and what is written must be different files, found {args.image} and "
            + ", ".join(map(str, outs))
        )
    times = {"loading": time.monotonic()}
    model = load_model(asked.adapter, args)
    times["running"] = time.monotonic()
    looks = args.attention is not None
    result = model.predict(
        args.image, asked.words, head=asked.head, return_attention=looks, **asked.options
    )
    times["writing"] = time.monotonic()
    about = write_files(asked, result, args.image, maps, args.overlay, args.attention)
    ends = [*list(times.values())[1:], time.monotonic()]
    seconds = {name: end - times[name] for name, end in zip(times, ends, strict=True)}
    found = found_in(result)
    say(*_told(found))
    if asked.registered == CLASSES:
        about = {"ranked": _tell_ranks(result)}
    if outs:
        say("wrote " + ", ".join(map(str, outs)))
    say(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    return {"found": found, "files": list(map(str, outs)), "seconds": seconds, **about}


def _told(found: Any) -> list[str]:
    """Return what was found in words."""
    if not isinstance(found, list) or not all("words" in part for part in found):
        return [str(found)]
    return [f"{part['words']}: {_describe(part)}" for part in found] or ["nothing found"]


def _tell_ranks(result: ClassificationPrediction) -> list[dict[str, Any]]:
    """Say which classes come behind those found; return all of them, the most probable first."""
    if len(result) == 1 and result.threshold is None:
        complain(
            f"bridger: warning: {result.label!r} is the only class that was asked about, so its "
            f"score is 1 whatever the picture shows: name those to choose from, or none for the "
            f"classes that the head was trained on"
        )
    ranked = [{"words": name, "score": score} for name, score in result.top(len(result))]
    behind = ranked[len(result.found()) :][:RUNNERS_UP]
    if behind:
        say("behind: " + ", ".join(f"{part['words']} {part['score']:.2f}" for part in behind))
    return ranked


def _describe(part: Mapping[str, Any]) -> str:
    if not part.get("share", 1):
        return "nothing found"
    said = [f"score {part['score']:.2f}"]
    if "box" in part:
        said.append(f"box {[round(edge) for edge in part['box']]}")
    if "share" in part:
        said.append(f"{100 * part['share']:.1f} % of the picture")
    return ", ".join(said)
