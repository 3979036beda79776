"""The pages keep what they say: code runs, commands parse, links lead somewhere.

Every Python block of the README and the docs runs, in order, page by page. A block under the
comment `<!-- downloads -->` needs a model hub: it is only compiled, and an offline twin must follow
it on the same page. A block that includes a script stands for that script, which has a test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers_docs import (
    INCLUDED,
    LINK,
    PAGES,
    ROOT,
    anchors,
    blocks,
    commands,
    mentioned_commands,
    name_of,
    prose,
)

from bridger.cli.main import build_parser, parse
from bridger.heads import registry as heads_registry
from bridger.towers import registered_towers, registry

each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.mark.slow
@each_page
def test_the_pages_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What a page registers is forgotten after it.
    known = {side: list(registered_towers(side))[::-1] for side in ("vision", "text")}
    monkeypatch.setattr(registry, "_families", known)
    monkeypatch.setattr(heads_registry, "_HEADS", dict(heads_registry._HEADS))
    names: dict[str, object] = {"__name__": "__main__"}
    waiting = False
    for downloads, code in blocks(page, "python"):
        if INCLUDED.search(code):
            continue
        compiled = compile(code, str(page), "exec")
        if not downloads:
            exec(compiled, names)
        waiting = downloads
    assert not waiting, f"{page.name}: the last block downloads and has no offline twin"


@each_page
def test_what_a_page_includes_is_a_script_with_a_test(page: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for script in INCLUDED.findall(page.read_text()):
        assert (ROOT / script).is_file(), script
        assert Path(script).name in tests, f"no test names {script}"


def test_tutorials_include_scripts() -> None:
    tutorials = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
    assert len(tutorials) == 7
    assert not [page.name for page in tutorials if not INCLUDED.search(page.read_text())]


# Commands.


@each_page
def test_the_commands_of_a_page_are_commands(page: Path) -> None:
    for argv in commands(page):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                parse(argv)
        except SystemExit as stop:
            assert stop.code == 0, f"bridger {' '.join(argv)}: {said.getvalue()}"


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of the verb that words begin with, and the words behind the verb."""
    parser = build_parser()
    while words:
        verbs = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not verbs or words[0].startswith("-") or words[0].isupper():
            break
        assert words[0] in verbs[0], f"bridger has no verb {words[0]}"
        parser, words = verbs[0][words[0]], words[1:]
    return parser, words


@each_page
def test_commands_that_a_page_mentions_have_these_verbs_and_options(page: Path) -> None:
    for words in mentioned_commands(page):
        parser, rest = parser_of(words)
        for option in (word for word in rest if word.startswith("--")):
            assert option in parser._option_string_actions, f"bridger {' '.join(words)}"


def test_the_checks_of_commands_notice_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\ntorchrun -m bridger train x \\\n  --sett a=1 > log  # why\n```\n")
    (argv,) = commands(page)
    assert argv == ["train", "x", "--sett", "a=1"]
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        parse([*argv, "--data", "d", "--out", "o"])
    page.write_text("`bridger data look DIR` and `bridger predict IMAGE [--maskk]`")
    first, second = mentioned_commands(page)
    with pytest.raises(AssertionError, match="no verb look"):
        parser_of(first)
    assert second[-1] not in parser_of(second)[0]._option_string_actions


# Links.


@each_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    lost = []
    for target in LINK.findall(prose(page)):
        if urlsplit(target).scheme:
            continue
        path, _, place = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (place and place not in anchors(file)):
            lost.append(target)
    assert not lost


@each_page
def test_links_to_elsewhere_are_well_formed(page: Path) -> None:
    for link in re.findall(r"https?://[^\s)>`\"|]+", prose(page)):
        parts = urlsplit(link.rstrip(".,;:"))
        assert parts.scheme == "https", f"{link} is not encrypted"
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), link
