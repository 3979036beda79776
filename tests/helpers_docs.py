"""The pages of the documentation: their blocks of code, links, commands, and what they refer to."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")

_FENCE = re.compile(r"(<!-- downloads -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ENDS_COMMAND = {"|", ">", ">>", "&&", "||", ";", "&"}


def name_of(page: Path) -> str:
    """Return the page's path from the top of the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """Return a page's blocks of code in a language; of each whether it downloads, and its text."""
    found = _FENCE.findall(page.read_text())
    return [(bool(mark), code) for mark, named, code in found if named == language]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", page.read_text())


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every `bridger` command in a page's blocks for the shell."""
    for _, block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [
                i
                for i, w in enumerate(words)
                if w == "bridger" and words[i - 1 : i] in ([], ["-m"])
            ]
            for start in starts:
                rest = words[start + 1 :]
                end = next((i for i, word in enumerate(rest) if word in _ENDS_COMMAND), len(rest))
                yield rest[:end]


def mentioned_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `bridger ...` that a page mentions in its text."""
    for said in re.findall(r"`bridger ([^`]+)`", prose(page)):
        yield re.sub(r"[][]|\.\.\.", " ", said).split()


def anchors(page: Path) -> set[str]:
    """Return the places of a page that links can name, as GitHub and the site call them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    bare = (re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip() for heading in headings)
    slugs = {re.sub(r"\s+", "-", heading.lower()) for heading in bare}
    return slugs | set(DIRECTIVE.findall(page.read_text()))


def hooks() -> ModuleType:
    """Import docs/hooks.py, which mkdocs runs."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
