"""What `bridger predict` is asked: by whom it is answered, and what is written of an answer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridger._files import replacing
from bridger.cli.adapters import device_of, find, head_in

if TYPE_CHECKING:
    from PIL import Image

    from bridger.heads import Head
    from bridger.pictures import ImageLike
    from bridger.texts import ClassName

MASKS, LABELS = ("referring_segmentation", "clipseg"), "semantic_segmentation"
CLASSES = "classification"
RUNNERS_UP = 4
"""How many classes are told behind those that were found."""
FILES = {**dict.fromkeys(MASKS, Path("mask.png")), LABELS: Path("labels.png")}
"""What is written where neither --out nor --overlay is given; other heads write no file."""


class Asked(NamedTuple):
    """Who answers, and what.

    Attributes:
        adapter: its folder.
        head: the head's name there.
        registered: the name under which its class is registered.
        words: what pictures are asked about; None: the classes that the head was trained on.
        options: of the head's results.
    """

    adapter: Path
    head: str
    registered: str
    words: Sequence[ClassName] | None
    options: Mapping[str, Any]

    @classmethod
    def of(cls, args: argparse.Namespace) -> Asked:
        """Read the options; nothing is loaded yet.

        Raises:
            ValueError: some of them do not fit the head.
        """
        from bridger.heads import get_head

        device_of(args.device)  # before anything is downloaded
        adapter = find(args.adapter, args)
        head, registered = head_in(adapter, args.head)
        if args.out is not None and registered not in FILES:
            raise ValueError(
                f"--out means nothing for {registered}, which has no map of pixels: see --overlay "
                f"and --json"
            )
        words = _words(get_head(registered), registered, args)
        options = _options(get_head(registered), registered, args)
        return cls(adapter, head, registered, words, options)

    def maps(self, out: Path) -> list[Path]:
        """Return the files of a picture's maps: of masks one for each sentence."""
        count = len(self.words or ())
        if self.registered in MASKS and count > 1:
            return [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
        return [out]


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
                f'{"--batch " * args.batch}{args.image} "the dog on the left"'
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


def write_files(
    asked: Asked,
    result: Any,
    image: ImageLike,
    maps: Sequence[Path],
    overlay: Path | None,
    attention: Path | None = None,
) -> dict[str, Any]:
    """Write the files of a picture, each whole or not at all; return what is to be known of them.

    Args:
        asked: who was asked.
        result: of the model's `predict`.
        image: the picture.
        maps: the files of `Asked.maps`, or none.
        overlay: the file of the picture with what is found, if one is wanted.
        attention: the file of where the words of each sentence looked, likewise.
    """
    from PIL import Image

    from bridger.predictions.masks import picture_of

    about: dict[str, Any] = {}
    if asked.registered in MASKS and maps:
        for path, mask in zip(maps, result.masks, strict=True):
            _save(Image.fromarray(picture_of(mask)), path)
    elif asked.registered == LABELS:
        numbers, background = result.numbers()
        for path in maps:
            _save(Image.fromarray(numbers), path)
        about = {"classes": list(result.names), "background": background}
    if overlay is not None:
        if not hasattr(result, "overlay"):
            raise ValueError(
                f"--overlay means nothing for {asked.registered}, whose results draw nothing"
            )
        captions = [result.names] if asked.registered in MASKS else []
        _save(result.overlay(image, *captions), overlay)
    if attention is not None:
        from bridger.predictions.side_by_side import stacked

        count = range(len(result.attention))
        _save(stacked([result.attention_sheet(image, expression=n) for n in count]), attention)
    return about


def _save(picture: Image.Image, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        picture.save(partial, format=Image.registered_extensions()[path.suffix.lower()])


def found_in(result: Any) -> Any:
    """Return what a result says was found; a head of the user's own may return what it likes."""
    return result.found() if hasattr(result, "found") else result
