"""What `bridger --help` says: every verb on one line, examples that parse, mistyped verbs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from bridger.cli import main

Run = Callable[..., tuple[int, str, str]]

COLUMNS = 80


def modules(verbs: dict[str, ModuleType], before: str = "bridger") -> Iterator[tuple[str, Any]]:
    """Every verb and group with what is typed for it."""
    for name, module in verbs.items():
        yield f"{before} {name}", module
        yield from modules(getattr(module, "VERBS", {}), f"{before} {name}")


ALL = dict(modules(main.VERBS))


def commands(text: str) -> list[list[str]]:
    """The command lines among examples, without the remarks behind them and without redirection."""
    lines = [re.split(r"\s{2,}#?|\s>\s", line.strip())[0] for line in text.splitlines()]
    words = [shlex.split(line) for line in lines if re.match(r"(bridger|torchrun) ", line)]
    return [line[line.index("bridger") + 1 :] for line in words]


def test_commands_are_found_among_remarks() -> None:
    text = """examples:
  bridger data convert a b          to JSON Lines
  bridger recipes quick > mine.json
  torchrun --nproc-per-node 2 -m bridger train --data "my data"
other words
"""
    assert commands(text) == [
        ["data", "convert", "a", "b"],
        ["recipes", "quick"],
        ["train", "--data", "my data"],
    ]


@pytest.mark.parametrize("verb", ALL)
def test_every_example_is_a_command_of_its_verb_that_parses(verb: str) -> None:
    found = commands(ALL[verb].EXAMPLES)
    typed = verb.split()[1:]
    own = [words for words in found if words[: len(typed)] == typed]
    assert own, f"{verb} has no example of its own"
    for words in found:
        args = main.parse(words)
        assert args.parser.prog == f"bridger {' '.join(words[: len(args.parser.prog.split()) - 1])}"


def test_the_first_examples_parse() -> None:
    found = commands(main.EXAMPLES)
    assert len(found) > 3
    for words in found:
        if "--help" in words:
            with pytest.raises(SystemExit) as stopped:
                main.parse(words)
            assert stopped.value.code == 0
        else:
            main.parse(words)


@pytest.mark.parametrize("group", ["bridger", "bridger data"])
def test_every_verb_has_a_line_of_its_own(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with pytest.raises(SystemExit):
        main.parse([*group.split()[1:], "--help"])
    lines = capsys.readouterr().out.splitlines()
    verbs = main.VERBS if group == "bridger" else ALL[group].VERBS
    start = lines.index("verbs:") + 1
    listed = lines[start : start + len(verbs)]
    assert [line.split()[0] for line in listed] == list(verbs)
    for line, module in zip(listed, verbs.values(), strict=True):
        assert line.endswith(f"  {module.HELP}") and len(line) <= COLUMNS
    assert "examples:" in lines


@pytest.mark.parametrize("verb", ALL)
def test_what_is_said_of_a_verb_fits_a_terminal(verb: str) -> None:
    about = getattr(ALL[verb], "ABOUT", "")
    assert all(len(line) <= COLUMNS for line in about.splitlines())
    assert ALL[verb].HELP[0].islower() and not ALL[verb].HELP.endswith(".")


def test_verbs_that_run_a_model_take_the_same_options() -> None:
    where = {verb: module for verb, module in ALL.items() if hasattr(module, "register")}
    options = {
        verb: {
            option
            for line in module_help(verb).splitlines()
            for option in re.findall(r"^  (--[a-z-]+)", line)
        }
        for verb, module in where.items()
    }
    for verb in ("predict", "evaluate", "demo"):
        assert {"--towers", "--device", "--import", "--download"} <= options[f"bridger {verb}"]
    for verb in ("train", "quickstart"):
        assert "--device" in options[f"bridger {verb}"]
    assert all({"--json", "--debug"} <= found for found in options.values())


def module_help(verb: str) -> str:
    parser = main.build_parser()
    for word in verb.split()[1:]:
        (inner,) = (a for a in parser._actions if isinstance(a.choices, dict))
        parser = inner.choices[word]
    return parser.format_help()


def test_nothing_typed_is_answered_with_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.parse([])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert all(f"  {verb} " in said.err for verb in main.VERBS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pedict a.png owl", "there is no verb 'pedict': did you mean 'predict' or 'inspect'?"),
        ("data pictures a.png", "there is no verb 'pictures': did you mean 'picture'?"),
        ("segment a.png", "there is no verb 'segment': known: ['ablate', "),
    ],
)
def test_mistyped_verbs_are_told_what_they_may_mean(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.parse(line.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_words_after_a_verb_are_no_verbs() -> None:
    assert main.parse(["recipes", "tran"]).recipe == "tran"
    assert main.parse(["predict", "data", "chekc"]).words == ["chekc"]
