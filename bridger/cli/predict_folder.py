"""`bridger predict --batch`: every picture of a folder, a line of JSON for each at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from bridger.cli.adapters import load_model
from bridger.cli.asked import CLASSES, RUNNERS_UP, Asked, found_in, write_files
from bridger.cli.base import Counter, check_writable, complain, say, to_stdout

if TYPE_CHECKING:
    from torch import Tensor

MOST_CELLS = 2**25
"""Most pixels in a batch's maps, 128 MiB of probabilities; a picture with more stands alone."""


class Item(NamedTuple):
    """A picture: where it lies in the folder, and what it shows, (3, h, w) bytes."""

    name: Path
    picture: Tensor


def answer_folder(args: argparse.Namespace) -> None:
    """Ask about every picture of a folder, and write lines and files as answers come.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no pictures, some are broken, or files would lie in each other's way.
    """
    from bridger.data.label_layouts import require_folder

    folder: Path = args.image
    require_folder(folder)
    asked = Asked.of(args)
    places = [place for place in (args.out, args.overlay) if place is not None]
    names = _names(folder, places)
    _check_places(folder, places, names)
    model = load_model(asked.adapter, args)
    broken: list[Path] = []
    counter, done, counted = Counter("pictures"), 0, 0
    counter(counted, len(names))
    into = args.json
    with _lines(args) as stream:
        for batch in _batches(folder, names, broken, max(1, len(asked.words or ()))):
            pictures = [item.picture for item in batch]
            words = [asked.words] * len(batch)
            results = model.predict(pictures, words, head=asked.head, **asked.options)
            for item, result in zip(batch, results, strict=True):
                _write(stream, _record(asked, item, result, args))
            done += len(batch)
            counted = done + len(broken)
            counter(counted, len(names))
    if counted < len(names):  # the last ones were broken
        counter(len(names), len(names))
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(names)} pictures could not be read, {broken[0]} among them"
        )
    if into is not None and not to_stdout(into):
        say("wrote " + ", ".join(map(str, (into, *places))))


def _names(folder: Path, places: Sequence[Path]) -> list[Path]:
    """Return the pictures below a folder, without those that were written there."""
    from bridger.data.label_layouts import pictures_below

    written = [place.resolve() for place in places]
    return [
        Path(name)
        for name in pictures_below(folder)
        if not any((folder / name).resolve().is_relative_to(place) for place in written)
    ]


def _check_places(folder: Path, places: Sequence[Path], names: Sequence[Path]) -> None:
    """Refuse early what could not be written, or would lie in another file's way."""
    resolved = [place.resolve() for place in places]
    if len(set(resolved)) < len(resolved) or any(
        folder.resolve().is_relative_to(place) for place in resolved
    ):
        raise ValueError(
            f"IMAGE, --out and --overlay must be different folders, and the pictures in neither "
            f"of those, found {folder} and {', '.join(map(str, places))}"
        )
    if not names:
        raise ValueError(f"{folder} holds no pictures")
    for place in places:
        check_writable(place / "a.png")
    taken: dict[Path, Path] = {}
    for name in names if places else ():
        first = taken.setdefault(name.with_suffix(".png"), name)
        if first != name:
            raise ValueError(
                f"what is written for {first} and {name} would have the same name: rename one"
            )


def _batches(
    folder: Path, names: Sequence[Path], broken: list[Path], maps: int
) -> Iterator[list[Item]]:
    """Yield what can be asked at once, in order; note and name broken pictures.

    Args:
        folder: with the pictures.
        names: of the pictures in it.
        broken: grows by those that cannot be read.
        maps: of one picture.
    """
    from bridger.answering import PICTURES_AT_ONCE
    from bridger.pictures import read_picture

    batch: list[Item] = []
    cells = 0
    for name in names:
        try:
            picture = read_picture(folder / name)
        except (OSError, ValueError) as error:
            complain(f"bridger: warning: skipped: {error}")
            broken.append(name)
            continue
        size = maps * picture.shape[1] * picture.shape[2]
        if batch and (len(batch) == PICTURES_AT_ONCE or cells + size > MOST_CELLS):
            yield batch
            batch, cells = [], 0
        batch.append(Item(name, picture))
        cells += size
    if batch:
        yield batch


def _record(asked: Asked, item: Item, result: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Write a picture's files and return its line."""
    name = item.name.with_suffix(".png")
    maps = [] if args.out is None else asked.maps(args.out / name)
    overlay = None if args.overlay is None else args.overlay / name
    about = write_files(asked, result, item.picture, maps, overlay)
    if asked.registered == CLASSES:
        top = result.top(len(result.found()) + RUNNERS_UP)
        about = {"ranked": [{"words": words, "score": score} for words, score in top]}
    files = maps if overlay is None else [*maps, overlay]
    return {
        "image": str(args.image / item.name),
        "found": found_in(result),
        "files": list(map(str, files)),
        **about,
    }


@contextmanager
def _lines(args: argparse.Namespace) -> Iterator[TextIO]:
    """Open what lines are written to; they are all that `--json` asks for."""
    path, args.json = args.json, None
    if path is None or to_stdout(path):
        yield sys.stdout if path is None else args.stdout
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yield file


def _write(stream: TextIO, record: dict[str, Any]) -> None:
    """Write a line at once, above a bar that is being drawn."""
    from tqdm import tqdm

    with redirect_stdout(stream):  # tqdm clears its bar for that of the process
        tqdm.write(f"{json.dumps(record, default=str)}\n", end="")
    stream.flush()
