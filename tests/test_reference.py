"""The reference is complete: every public name stands in it, with everything that it takes."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from helpers_docs import DIRECTIVE, DOCS, ROOT, hooks

PACKAGES = (
    "bridger",
    "bridger.heads",
    "bridger.bridgers",
    "bridger.towers",
    "bridger.tasks",
    "bridger.data",
    "bridger.evaluation",
    "bridger.training",
    "bridger.predictions",
)
MODULES = {
    "bridger.etris": ("load", "save", "from_state_dict", "to_state_dict"),
    "bridger.hub": ("find_adapter", "push", "push_folder"),
    "bridger.model_card": ("write_card",),
}
"""Public names of modules that have no `__all__`."""
SECTIONS = re.compile(r"^\s*(Args|Attributes|Keys):\n", re.MULTILINE)


def public() -> dict[str, Any]:
    """Return the public objects by name; what is public in two packages has both names."""
    found = {}
    for place in (*PACKAGES, *MODULES):
        module = importlib.import_module(place)
        names = MODULES.get(place) or module.__all__
        found |= {f"{place}.{name}": getattr(module, name) for name in names}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


PUBLIC = public()
CODE = {n: o for n, o in PUBLIC.items() if inspect.isclass(o) or inspect.isfunction(o)}


def bases(cls: type) -> list[type]:
    """Return a class and those of the library's own that it derives from."""
    return [base for base in cls.__mro__ if base.__module__.startswith("bridger")]


def constructor(cls: type) -> Callable[..., Any] | None:
    """Return the `__init__` that the library gave a class; protocols and bare bases have none."""
    if Protocol in cls.__mro__:
        return None
    return next((base.__init__ for base in bases(cls) if "__init__" in vars(base)), None)


def methods(cls: type) -> Iterator[tuple[str, str, Any]]:
    """Yield the public methods and properties that a class defines: name, docstring, function."""
    for name, member in vars(cls).items():
        inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        if name.startswith("_") or not inspect.isfunction(inner):
            continue
        said = (inspect.getdoc(getattr(base, name, None)) for base in bases(cls))
        yield name, next(filter(None, said), ""), inner


def undescribed(function: Callable[..., Any], docstring: str) -> list[str]:
    """Return the parameters that no line of a docstring describes."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    described = "\n".join(SECTIONS.split(docstring)[1:])
    return [n for n in names if not re.search(rf"^\s+\*{{0,2}}{n}(?: \(.+\))?:", described, re.M)]


def test_every_public_name_is_in_the_reference() -> None:
    pages = [page.read_text() for page in (DOCS / "reference").glob("*.md")]
    shown = [name for page in pages for name in DIRECTIVE.findall(page)]
    assert len(shown) == len(set(shown))
    assert not [name for name in shown if name not in PUBLIC], "shown, but not public"
    there = {id(PUBLIC[name]) for name in shown}
    assert not [name for name, value in PUBLIC.items() if id(value) not in there]


@pytest.mark.parametrize("name", CODE)
def test_a_public_name_says_what_it_is_and_what_it_takes(name: str) -> None:
    value = CODE[name]
    docstring = inspect.getdoc(value) or ""
    assert docstring and value.__doc__, f"{name} has no docstring of its own"
    if inspect.isfunction(value):
        assert not undescribed(value, docstring)
    elif (made_by := constructor(value)) is not None:
        inherited = [inspect.getdoc(base) or "" for base in bases(value)]
        assert not undescribed(made_by, "\n".join([*inherited, inspect.getdoc(made_by) or ""]))


@pytest.mark.parametrize("name", [name for name in CODE if inspect.isclass(CODE[name])])
def test_the_methods_of_a_public_class_say_what_they_do(name: str) -> None:
    silent, incomplete = [], []
    for method, docstring, function in methods(CODE[name]):
        if not docstring:
            silent.append(method)
        elif re.search(r"^\s*Args:", docstring, re.MULTILINE):
            incomplete += [f"{method}({it})" for it in undescribed(function, docstring)]
    assert not silent and not incomplete


# The command line.


def test_the_command_lines_reference_has_every_verb_and_option() -> None:
    from bridger.cli.main import build_parser

    written = hooks().command_line()
    sections = {part.split("\n")[0]: part for part in re.split(r"^## ", written, flags=re.M)[1:]}
    parsers = list(hooks().verbs_of(build_parser()))
    assert list(sections) == [parser.prog for parser in parsers] and len(parsers) > 12
    for parser in parsers:
        section = sections[parser.prog]
        for option in set(re.findall(r"--[a-z][a-z-]+", parser.format_help())) - {"--help"}:
            assert option in section, f"{parser.prog} {option}"
        for action in parser._actions:
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
                assert str(action.metavar) in section


# The site.


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nothing_of_others(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason="the site is built with the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING  -" not in done.stderr
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    for page in re.findall(r"[\w/-]+\.md", nav):
        place = re.sub(r"(index)?\.md$", "", page)
        built = tmp_path / "site" / place / "index.html"
        assert built.is_file(), page
        text = built.read_text()
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?https?:", text)
        assert "--8&lt;--" not in text and "arithmatex" not in text
    styles = "".join(path.read_text() for path in (tmp_path / "site").rglob("*.css"))
    assert not re.findall(r"url\(\"?https?:|@import", styles)
