"""The `bridger` command: exit codes, errors in one line, `--json`.

0: done. 1: an error, said in one line on stderr (`--debug` shows its traceback). 2: wrong usage.
130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from bridger import __version__
from bridger.cli import (
    ablate,
    compare,
    convert,
    data,
    demo,
    evaluate,
    inspect,
    predict,
    push,
    quickstart,
    recipes,
    train,
)
from bridger.cli.adapters import import_own, named_as_typed
from bridger.cli.base import (
    Counter,
    add_verbs,
    check_writable,
    complain,
    let_go,
    list_of,
    one_line,
    to_stdout,
    write_json,
)
from bridger.config import did_you_mean

VERBS = {
    "quickstart": quickstart,
    "data": data,
    "recipes": recipes,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "demo": demo,
    "convert": convert,
    "push": push,
    "ablate": ablate,
    "compare": compare,
}
IS_FIRST = os.environ.get("RANK", "0") == "0"

EXAMPLES = """examples:
  bridger quickstart                                  the main job, end to end
  bridger data picture picture.png                    a picture to try
  bridger predict picture.png "the owl on the left"   a mask of what is meant
  bridger train --data my-data --out my-adapter       an adapter of your own
  bridger train --help                                what a verb takes
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog="bridger",
        description="Tune frozen dual-encoder vision-language models with Bridgers.",
        epilog=list_of(VERBS) + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bridger {__version__}")
    add_verbs(parser, VERBS, "VERB")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; leave the process where it is wrong.

    Of a verb that names an argument as `trailing`, words after options are that argument's too:
    argparse takes words of a verb up to its first option alone.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    _check_verbs(parser, argv)
    args, left = parser.parse_known_args(argv)
    trailing = getattr(args, "trailing", None)
    if left and (trailing is None or any(word.startswith("-") for word in left)):
        args.parser.error(f"unrecognized arguments: {' '.join(left)}")
    if trailing is not None:
        getattr(args, trailing).extend(left)
    return args


def _check_verbs(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Leave the process where a word is no verb; say which ones are meant."""
    verbs: dict[str, Any] | None = VERBS
    for word in argv:
        if verbs is None or word.startswith("-"):
            return
        if word not in verbs:
            parser.error(f"there is no verb {word!r}: {did_you_mean(word, list(verbs))}")
        verbs = getattr(verbs[word], "VERBS", None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; by default the process's own.

    Returns:
        The exit code.
    """
    args = parse(argv)
    args.stdout = sys.stdout
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # where bars would be thousands of lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with _quiet_libraries(), ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a locale may not know every word
                stream.reconfigure(errors="backslashreplace")
        if not IS_FIRST:
            # Of several processes under a launcher one speaks; errors are heard from all.
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        elif to_stdout(args.json):
            stack.enter_context(redirect_stdout(sys.stderr))
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        if args.json is not None and not to_stdout(args.json):
            check_writable(args.json)
        import_own(args)
        result = args.run(args)
        if IS_FIRST:
            write_json(args, result)
        args.stdout.flush()
    except KeyboardInterrupt as interruption:
        Counter.end()
        if IS_FIRST:
            echoed = "\n" if sys.stderr.isatty() else ""  # the terminal has written ^C
            complain(f"{echoed}bridger: interrupted{_reason(interruption)}")
        return 130
    except BrokenPipeError:
        let_go(args.stdout, sys.stderr)
        return 1
    except Exception as error:
        Counter.end()
        if args.debug:
            raise
        message = one_line(str(error).splitlines()) or type(error).__name__
        complain(f"{args.parser.prog}: error: {named_as_typed(message, args)}")
        return 1
    return 0


def _reason(interruption: KeyboardInterrupt) -> str:
    return f"; {interruption}" if str(interruption) else ""


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Let libraries say what is a user's business alone: what is wrong with what was asked for.

    What they log without being asked to, and what they will change one day, is no news for
    somebody at a shell.
    """
    last = logging.lastResort
    level = last.level if last else logging.WARNING
    if last:
        last.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        if last:
            last.setLevel(level)


def _show_warning(message: Warning | str, category: Any, *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        complain(f"bridger: warning: {one_line(str(message).splitlines())}")


if __name__ == "__main__":
    sys.exit(main())
