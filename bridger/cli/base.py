"""What the verbs share: how they are declared, argument types, how figures are shown.

A verb is a module with `HELP` (one line of at most 60 characters), `ABOUT` (what else a newcomer
wants to know) where that is not all, `EXAMPLES`, `register(parser)`, which adds its arguments, and
`run(args)`, which does the work and returns what `--json` writes. Heavy imports stand inside `run`,
so that `--help` is quick. A group of verbs is a package of such modules.

Results go to stdout by `say`; progress by `Counter`, warnings and errors by `complain` to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TextIO


def add_verb(verbs: Any, name: str, module: ModuleType) -> None:
    """Add a verb's parser to argparse's subparsers, with the options that all verbs take.

    A verb that is a group has `VERBS`, modules by name, in place of `register` and `run`. A verb
    whose last argument are words sets `trailing` to its name; see `bridger.cli.main.parse`.
    """
    group: Mapping[str, ModuleType] | None = getattr(module, "VERBS", None)
    about = ["", module.ABOUT] if hasattr(module, "ABOUT") else []
    parser = verbs.add_parser(
        name,
        description="\n".join([f"{module.HELP[0].upper()}{module.HELP[1:]}.", *about]),
        epilog=f"{list_of(group) if group else ''}examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if group:
        add_verbs(parser, group, "WHAT")
        return
    module.register(parser)
    common = parser.add_argument_group("for scripts")
    common.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="write the results as JSON; - for stdout, where nothing else is written then",
    )
    common.add_argument("--debug", action="store_true", help="show errors with their traceback")
    parser.set_defaults(run=module.run, parser=parser)


def add_verbs(
    parser: argparse.ArgumentParser, verbs: Mapping[str, ModuleType], metavar: str
) -> None:
    """Add the parsers of verbs; `list_of` lists them in the parser's epilog."""
    parser.usage = f"{parser.prog} [-h] {metavar} ..."
    inner = parser.add_subparsers(
        prog=parser.prog, metavar=metavar, required=True, help=argparse.SUPPRESS
    )
    for name, module in verbs.items():
        add_verb(inner, name, module)


def list_of(verbs: Mapping[str, ModuleType]) -> str:
    """Return a line of help for each verb."""
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {module.HELP}\n" for name, module in verbs.items()]
    return "".join(["verbs:\n", *lines, "\n"])


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


def to_stdout(path: Path | None) -> bool:
    """Whether `--json` names stdout."""
    return str(path) == "-"


def write_json(args: argparse.Namespace, result: Any) -> None:
    """Write what `--json` asks for, once; `args.stdout` is the process's own.

    A verb whose results are wanted before it ends calls this itself.
    """
    if args.json is None:
        return
    text = json.dumps(result, indent=2, default=str)
    if to_stdout(args.json):
        print(text, file=args.stdout, flush=True)
    else:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(f"{text}\n")
    args.json = None


def say(*lines: str) -> None:
    """Print lines for people, at once."""
    print(*lines, sep="\n", flush=True)


def command(*words: object) -> str:
    """Return a command line of `bridger` that can be copied into a shell."""
    return shlex.join(["bridger", *map(str, words)])


def complain(line: str) -> None:
    """Print a warning or an error on stderr, above a bar that is being drawn there."""
    from tqdm import tqdm

    try:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()
    except BrokenPipeError:
        let_go(sys.stderr)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Let whoever ends the process politely, or closes its terminal, end it as Ctrl-C does."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ends = [end for end in known if signal.getsignal(end) is not signal.SIG_IGN]  # as by nohup
    before = {end: signal.signal(end, signal.default_int_handler) for end in ends}
    try:
        yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def let_go(*streams: TextIO) -> None:
    """Write to nowhere, since who read the output has gone; Python would complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


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
    """Says on stderr how far a long job is: by a bar on a terminal, else at every tenth.

    Args:
        name: of the job.
        headline: name of the figure that is told on the way.
    """

    drawn: ClassVar[Any] = None
    """The bar that is on the terminal; at most one is."""

    def __init__(self, name: str, headline: str = "mIoU") -> None:
        self.name, self.headline, self.shown = name, headline, -1

    def __call__(self, done: int, total: int, so_far: float = math.nan, note: str = "") -> None:
        figure = "" if math.isnan(so_far) else f", {self.headline} so far {100 * so_far:.1f}"
        figure += f", {note}" if note else ""
        if sys.stderr.isatty():
            self._draw(done, total, figure)
        elif (step := 10 * done // total) != self.shown:
            self.shown = step
            print(f"{self.name}: {done}/{total}{figure}", file=sys.stderr, flush=True)

    @classmethod
    def end(cls) -> None:
        """Leave the bar as it is, and go to the next line: the job is done, or was broken off."""
        if cls.drawn is not None:
            cls.drawn.close()
            Counter.drawn = None

    def _draw(self, done: int, total: int, figure: str) -> None:
        from tqdm import tqdm

        if self.shown < 0:
            layout = "{desc}: {n_fmt}/{total_fmt}{postfix} |{bar}| {elapsed}"
            self.end()
            Counter.drawn = tqdm(
                total=total, desc=self.name, bar_format=layout, dynamic_ncols=True, disable=False
            )
        self.shown = done
        self.drawn.set_postfix_str(figure.removeprefix(", "), refresh=False)
        self.drawn.update(done - self.drawn.n)
        if done == total:
            self.drawn.refresh()
            self.end()


def one_line(parts: Iterable[str]) -> str:
    """Join the lines of a message; indented ones are a list, and are told apart by semicolons."""
    joined, in_list = "", False
    for part in parts:
        indented = part[:1].isspace()
        apart = (indented or in_list) and not joined.endswith(":")
        joined = f"{joined}{';' if joined and apart else ''} {' '.join(part.split())}".strip()
        in_list = indented
    return joined
