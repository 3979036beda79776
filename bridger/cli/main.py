"""The `bridger` command: exit codes, errors in one line, `--json`.

0: done. 1: an error, said in one line on stderr (`--debug` shows its traceback). 2: wrong usage.
130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any

from bridger import __version__
from bridger.cli import convert, data, evaluate, inspect, predict, quickstart, recipes, train
from bridger.cli.base import add_verb, check_writable, one_line, write_json

VERBS = {
    "quickstart": quickstart,
    "data": data,
    "recipes": recipes,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "convert": convert,
}
IS_FIRST = os.environ.get("RANK", "0") == "0"

EXAMPLES = """examples:
  bridger quickstart                                     the main job, end to end
  bridger predict picture.jpg "the owl on the left"      a mask and an overlay
  bridger train --help                                   what a verb takes
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog="bridger",
        description="Tune frozen dual-encoder vision-language models with Bridgers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bridger {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, module in VERBS.items():
        add_verb(verbs, name, module)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; leave the process where it is wrong.

    Of a verb that names an argument as `trailing`, words after options are that argument's too:
    argparse takes words of a verb up to its first option alone.
    """
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    trailing = getattr(args, "trailing", None)
    if left and (trailing is None or any(word.startswith("-") for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if trailing is not None:
        getattr(args, trailing).extend(left)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; by default the process's own.

    Returns:
        The exit code.
    """
    args = parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.showwarning = _show_warning
        if not IS_FIRST:
            # Of several processes under a launcher one speaks; errors are heard from all.
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        if args.json is not None:
            check_writable(args.json)
        result = args.run(args)
        if IS_FIRST:
            write_json(args.json, result)
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        if IS_FIRST:
            print(f"bridger: interrupted{_reason(interruption)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        message = one_line(str(error).splitlines()) or type(error).__name__
        print(f"{args.prog}: error: {message}", file=sys.stderr)
        return 1
    return 0


def _reason(interruption: KeyboardInterrupt) -> str:
    return f"; {interruption}" if str(interruption) else ""


def _show_warning(message: Warning | str, category: Any, *_: Any, **__: Any) -> None:
    # What libraries will change one day is no news for somebody at a shell.
    if issubclass(category, UserWarning):
        print(f"bridger: warning: {one_line(str(message).splitlines())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
