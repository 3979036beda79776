"""`bridger predict`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.adapters import (
    ADAPTER,
    add_device_option,
    add_head_option,
    add_import_option,
    add_towers_option,
    device_of,
    find,
    head_in,
    load_model,
)
from bridger.cli.base import check_picture, complain, say, share, whole

if TYPE_CHECKING:
    from bridger.heads import Head
    from bridger.predictions import ClassificationPrediction
    from bridger.texts import ClassName

HELP = "find what words mean in a picture: masks, boxes or classes"
ABOUT = """\
The default adapter knows small composed scenes, not photographs (`bridger data
picture` makes one to try); tiny-heads finds boxes, regions and classes in them.
Writes masks and label maps to --out, a picture to look at to --overlay.
"""
EXAMPLES = """\
  bridger predict picture.jpg "the owl on the left"
  bridger predict picture.jpg "the red car" "the drum" --out masks.png --overlay seen.png
  bridger predict picture.jpg "the dog" --adapter my-adapter --threshold 0.5
  bridger predict picture.jpg "the dog" --adapter somebody/their-adapter --device cpu
  bridger predict picture.jpg owl drum --adapter tiny-heads --head detection --overlay seen.png
  bridger predict picture.jpg dog cat --adapter detector --json -
  bridger predict street.jpg --adapter parser --classes classes.txt --window 512
"""
MASKS, LABELS = "referring_segmentation", "semantic_segmentation"
CLASSES = "classification"
RUNNERS_UP = 4
"""How many classes are told behind those that were found."""
FILES = {MASKS: Path("mask.png"), LABELS: Path("labels.png")}
"""What is written where neither --out nor --overlay is given; other heads write no file."""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a file that Pillow reads")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORDS",
        help="sentences, quoted, or class names, as the head reads them (default: the classes that "
        "the head was trained on)",
    )
    parser.set_defaults(trailing="words")
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
        metavar="PNG",
        help="of masks 0 and 255 (mask.png where --overlay is not given either), numbered where "
        "there are several sentences; of classes for each pixel their numbers, the last one of all "
        "for none of them (labels.png likewise)",
    )
    parser.add_argument(
        "--overlay", type=Path, metavar="PNG", help="the picture with what is found"
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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Predict, write the files, and say what was found and how long it took."""
    from bridger.heads import get_head

    if not args.image.is_file():
        raise FileNotFoundError(f"there is no picture {args.image}")
    device_of(args.device)  # before anything is downloaded
    adapter = find(args.adapter, args)
    head, registered = head_in(adapter, args.head)
    words = _words(get_head(registered), registered, args)
    options = _options(get_head(registered), registered, args)
    maps = _maps(registered, len(words or ()), args)
    outs = maps if args.overlay is None else [*maps, args.overlay]
    for path in outs:
        check_picture(path)
    places = [path.resolve() for path in (args.image, *outs)]
    if len(set(places)) < len(places):
        raise ValueError(
            f"IMAGE, --out and --overlay must be different files, found {args.image} and "
            + ", ".join(map(str, outs))
        )
    times = {"loading": time.monotonic()}
    model = load_model(adapter, args)
    times["running"] = time.monotonic()
    result = model.predict(args.image, words, head=head, **options)
    times["writing"] = time.monotonic()
    about = _write(registered, result, maps, args)
    ends = [*list(times.values())[1:], time.monotonic()]
    seconds = {name: end - times[name] for name, end in zip(times, ends, strict=True)}
    found = result.found() if hasattr(result, "found") else result
    say(*_told(found))
    if registered == CLASSES:
        about = {"ranked": _tell_ranks(result)}
    if outs:
        say("wrote " + ", ".join(map(str, outs)))
    say(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    return {"found": found, "files": list(map(str, outs)), "seconds": seconds, **about}


def _words(
    head: type[Head], registered: str, args: argparse.Namespace
) -> Sequence[ClassName] | None:
    """Return what is asked about; None: the classes that the head was trained on."""
    if head.text == "expressions":
        if args.classes is not None:
            raise ValueError(
                f"--classes means nothing for {registered}, which reads sentences: give those"
            )
        if not args.words:
            raise ValueError(
                f"{registered} reads sentences: say what to look for, as in bridger predict "
                f'{args.image} "the dog on the left"'
            )
    if args.classes is None:
        return args.words or None
    if args.words:
        raise ValueError("say which classes to look for either in words or with --classes")
    from bridger.data.class_lists import read_class_list

    return read_class_list(args.classes).names


def _options(head: type[Head], registered: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the head's results that were given.

    Raises:
        ValueError: one that the head does not have.
    """
    given = {"threshold": args.threshold, "window": args.window}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in head.result_options():
            raise ValueError(f"--{name} means nothing for {registered}: leave it out")
    return options


def _maps(registered: str, count: int, args: argparse.Namespace) -> list[Path]:
    """Return the files of maps to write: of masks one for each sentence."""
    if args.out is not None and registered not in FILES:
        raise ValueError(
            f"--out means nothing for {registered}, which has no map of pixels: see --overlay and "
            f"--json"
        )
    out: Path | None = args.out
    if out is None and args.overlay is None:
        out = FILES.get(registered)
    if out is None:
        return []
    if registered == MASKS and count > 1:
        return [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
    return [out]


def _write(
    registered: str, result: Any, maps: Sequence[Path], args: argparse.Namespace
) -> dict[str, Any]:
    """Write the files; return what is to be known about them."""
    from PIL import Image

    from bridger.predictions.masks import picture_of

    about: dict[str, Any] = {}
    for path in maps:
        path.parent.mkdir(parents=True, exist_ok=True)
    if registered == MASKS and maps:
        for path, mask in zip(maps, result.masks, strict=True):
            Image.fromarray(picture_of(mask)).save(path)
    elif registered == LABELS:
        numbers, background = result.numbers()
        for path in maps:
            Image.fromarray(numbers).save(path)
        about = {"classes": list(result.names), "background": background}
    if args.overlay is not None:
        args.overlay.parent.mkdir(parents=True, exist_ok=True)
        if not hasattr(result, "overlay"):
            raise ValueError(
                f"--overlay means nothing for {registered}, whose results draw nothing"
            )
        captions = [result.names] if registered == MASKS else []
        result.overlay(args.image, *captions).save(args.overlay)
    return about


def _told(found: Any) -> list[str]:
    """Return what was found in words; a head of the user's own may return what it likes."""
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
