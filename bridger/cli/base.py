"""What the verbs share: how they are declared, argument types, how figures are shown.

A verb is a module with `HELP` and `EXAMPLES` (texts), `register(parser)`, which adds its
arguments, and `run(args)`, which does the work and returns what `--json` writes. Heavy imports
stand inside `run`, so that `--help` is quick. A group of verbs is a package of such modules.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridger.tasks import Task


def add_verb(verbs: Any, name: str, module: ModuleType) -> None:
    """Add a verb's parser to argparse's subparsers, with the options that all verbs take.

    A verb that is a group has `VERBS`, modules by name, in place of `register` and `run`. A verb
    whose last argument are words sets `trailing` to its name; see `bridger.cli.main.parse`.
    """
    parser = verbs.add_parser(
        name,
        help=module.HELP,
        description=module.HELP[0].upper() + module.HELP[1:] + ".",
        epilog="examples:\n" + module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if hasattr(module, "VERBS"):
        inner = parser.add_subparsers(metavar="WHAT", required=True)
        for verb, submodule in module.VERBS.items():
            add_verb(inner, verb, submodule)
        return
    module.register(parser)
    common = parser.add_argument_group("for scripts")
    common.add_argument("--json", metavar="FILE", type=Path, help="write the results as JSON")
    common.add_argument("--debug", action="store_true", help="show errors with their traceback")
    parser.set_defaults(run=module.run, prog=parser.prog)


def whole(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number, `least` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
        return value

    return parse


def share(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def refuse_options(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options that mean nothing for `args.task`.

    Args:
        args: where an option that was not given is None.
        names: of its options.

    Raises:
        ValueError: some were given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)} mean{'s' * (len(given) == 1)} nothing with --task {args.task}: "
            f"leave {'it' if len(given) == 1 else 'them'} out"
        )


def add_data_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say where annotated pictures are."""
    parser.add_argument(
        "--data",
        required=required,
        type=Path,
        metavar="DIR",
        help="folder of a published data set, or of your own with DIR/train.jsonl and so on "
        "(`bridger data check DIR` says what is there)",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="refcoco, refcoco+, refcocog, refcocog/google, grefcoco, or folder for data of your "
        "own; training mixes several, evaluation takes one after the other (default: the only "
        "one that is there)",
    )


def add_towers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which towers an adapter is for."""
    parser.add_argument(
        "--towers",
        metavar="NAME",
        help="tiny, open_clip:MODEL[:PRETRAINED][@SIZE], transformers:MODEL, "
        "etris:FILE[@WORDS], or VISION,TEXT with timm:MODEL and torchvision:MODEL for vision too "
        "(default: what the adapter's recipe says, else tiny)",
    )


def recipe_beside(adapter: Path) -> dict[str, Any]:
    """Return the options of the recipe that was saved with an adapter; none where there is none."""
    path = adapter / "recipe.json"
    options: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return options


def towers_of(adapter: Path, given: str | None) -> str:
    """Return the towers of an adapter: those given, or what the recipe beside it says."""
    name: str = recipe_beside(adapter).get("towers", "tiny") if given is None else given
    return name or "tiny"


def datasets_of(task: Task, adapter: Path, root: Path, given: list[str] | None) -> list[str | None]:
    """Return the data sets of a task in `root` to judge an adapter on.

    Those given, or those of the adapter's recipe that are there, or the only one.

    Raises:
        FileNotFoundError, ValueError: see `bridger.tasks.find_data`; names where folders hold one.
    """
    from bridger.tasks import find_data

    if given and not task.datasets:
        raise ValueError(
            f"--dataset means nothing for {task.name}: a folder holds one data set of it"
        )
    names = list(given or ())
    if given is None and task.datasets and (wanted := recipe_beside(adapter).get("datasets")):
        from bridger.data.catalog import data_sets

        there = data_sets(root)
        names += [name for name in wanted if name in there]
    return find_data(task, root, names)


def add_head_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which head of an adapter answers."""
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="which of the adapter's heads, by its name there or by what it is, such as detection "
        "(default: the only one)",
    )


def head_in(adapter: Path, asked: str | None) -> tuple[str, str]:
    """Return the name of the head of an adapter that is asked for, and its registered name.

    Args:
        adapter: its folder.
        asked: the head's name in the adapter, or its registered name where no other has it; None:
            the only head.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: there is no such head, or several.
    """
    from bridger.checkpoint import read

    found = read(adapter_folder(adapter))[0]["heads"]
    heads = {name: head["type"] for name, head in found.items()}
    fitting = [name for name in heads if asked in (None, name)]
    fitting = fitting or [name for name in heads if heads[name] == asked]
    if len(fitting) == 1:
        return fitting[0], heads[fitting[0]]
    listed = ", ".join(f"{name} ({registered})" for name, registered in heads.items()) or "none"
    if not fitting:
        what = "a head" if asked is None else f"a head {asked!r}"
        raise ValueError(f"{adapter} does not have {what}: it has {listed}")
    raise ValueError(f"several heads of {adapter} could answer, name one with --head: {listed}")


def adapter_folder(name: Path) -> Path:
    """Return an adapter's folder; "tiny" is the shipped one, unless such a folder is there.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    from bridger.tiny_clip import TINY_ADAPTER

    if name == Path("tiny") and not name.exists():
        return TINY_ADAPTER
    if not name.is_dir():
        raise FileNotFoundError(
            f"there is no adapter folder {name} (the one in the package is called tiny)"
        )
    return name


def load_model(adapter: Path, towers: str | None) -> Any:
    """Load an adapter onto its towers, ready to answer."""
    from bridger.model import BridgedModel
    from bridger.training.pairs import load_towers

    adapter = adapter_folder(adapter)
    import torch

    name = towers_of(adapter, towers)
    vision, text, processor = load_towers(name)
    try:
        model = BridgedModel.from_pretrained(adapter, vision, text)
    except ValueError as error:
        if towers is not None or (adapter / "recipe.json").is_file():
            raise
        raise ValueError(
            f"{error}. No recipe beside it says which towers the adapter is for, so the {name} "
            "ones were tried: name others with --towers"
        ) from error
    model.processor = model.processor or processor
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def check_writable(path: Path) -> None:
    """Refuse early what could not be written in the end; folders on the way are made then.

    Raises:
        OSError: a folder is there, a file is in the way, or the place is read-only.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file to write")
    place = path if path.exists() else next(p for p in path.absolute().parents if p.exists())
    if place != path and not place.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"cannot write {path}: {place} is read-only")


def check_picture(path: Path) -> None:
    """Refuse early what a picture could not be written to.

    Raises:
        OSError: see `check_writable`.
        ValueError: the ending is of no format that Pillow writes.
    """
    from PIL import Image

    check_writable(path)
    known = Image.registered_extensions()  # which loads Pillow's formats
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"{path} has no ending that Pillow writes pictures to, such as .png or .jpg"
        )


def write_json(path: Path | None, result: Any) -> None:
    """Write what `--json` asks for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=str) + "\n")


def say(*lines: str) -> None:
    """Print lines for people, at once."""
    print(*lines, sep="\n", flush=True)


def table(rows: Mapping[str, Mapping[str, float]], first: str = "split") -> list[str]:
    """Lay out shares as percentages, one row per key."""
    columns = list(next(iter(rows.values())))
    width = max(len(first), *(len(name) for name in rows))
    lines = [f"{first:<{width}}  " + "  ".join(f"{column:>6}" for column in columns)]
    for name, values in rows.items():
        figures = (f"{100 * values[column]:>{max(6, len(column))}.2f}" for column in columns)
        lines.append(f"{name:<{width}}  " + "  ".join(figures))
    return lines


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are shares: all but the loss."""
    return {name: value for name, value in metrics.items() if name != "loss"}


def megabytes(count: int) -> str:
    """Write a number of bytes in MB."""
    return f"{count / 1e6:.2f} MB"


class Counter:
    """Says on stderr how far a long job is: in place on a terminal, else at every tenth.

    Args:
        name: of the job.
        headline: name of the figure that is told on the way.
    """

    def __init__(self, name: str, headline: str = "mIoU") -> None:
        self.name, self.headline, self.shown = name, headline, -1

    def __call__(self, done: int, total: int, so_far: float = math.nan) -> None:
        terminal = sys.stderr.isatty()
        step = 100 * done // total if terminal else 10 * done // total
        if step == self.shown:
            return
        self.shown = step
        text = f"{self.name}: {done}/{total}"
        if not math.isnan(so_far):
            text += f", {self.headline} so far {100 * so_far:.1f}"
        if terminal:
            end = "\n" if done == total else " "  # which covers a longer line from before
            print(f"\r{text}", end=end, file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def one_line(parts: Iterable[str]) -> str:
    """Join the lines of a message; indented ones are a list, and are told apart by semicolons."""
    joined, in_list = "", False
    for part in parts:
        indented = part[:1].isspace()
        apart = (indented or in_list) and not joined.endswith(":")
        joined = f"{joined}{';' if joined and apart else ''} {' '.join(part.split())}".strip()
        in_list = indented
    return joined
