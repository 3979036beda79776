"""What mkdocs does to these pages beyond its plugins.

- Files of the repository that a page links to (examples, tests, CHANGELOG.md) become pages of the
  site, so that links that work in the repository work there.
- The command line's reference is written from argparse's own help.
- Formulas between dollar signs, which GitHub shows as they are, become MathML.
"""

from __future__ import annotations

import argparse
import html
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
REPOSITORY = "repository"  # the folder of the site that shows files of the repository
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".sh": "sh", ".cfg": "ini", ".toml": "toml", ".json": "json"}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
COMMAND_LINE = "<!-- command line -->"


# Files of the repository as pages.


def on_files(files: Any, config: Any) -> Any:
    """Add a page for every file of the repository that a page, or the navigation, links to."""
    from mkdocs.structure.files import File

    named = re.findall(rf"{REPOSITORY}/([^'\"]+)\.md", str(config.nav))
    waiting = [path for name in named for path in (f"{name}.md", f"{name}/README.md")]
    for page in files.documentation_pages():
        waiting += repository_files(Path(page.abs_src_path).read_text(), f"docs/{page.src_uri}")
    shown: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in shown or not (ROOT / path).is_file():
            continue
        shown.add(path)
        text = (ROOT / path).read_text()
        if path.endswith(".md"):
            waiting += repository_files(text, path)
        files.append(File.generated(config, page_of(path), content=as_page(path, text)))
    return files


def repository_files(text: str, path: str) -> Iterator[str]:
    """Yield the files outside of docs/ that a page links to; `path` is its own, from the top."""
    for part in FENCE.split(text)[::2]:
        for target, _ in LINK.findall(part):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if not found.startswith("docs/"):
                yield found


def page_of(path: str) -> str:
    """Return the page, as mkdocs counts from docs/, that shows a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    name = path.removesuffix("/README.md").removesuffix(".md")
    return f"{REPOSITORY}/{name}.md"


def as_page(path: str, text: str) -> str:
    """Return Markdown as it is, and any other file as a block of code that search leaves out."""
    if path.endswith(".md"):
        return relinked(text, path)
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"{UNSEARCHED}# {path}\n\n````{language}\n{text.rstrip()}\n````\n"


def relinked(text: str, path: str) -> str:
    """Point links to files of the repository at their pages; `path` is the text's own."""
    folder = posixpath.dirname(page_of(path))

    def point(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        inside = target.startswith("docs/") and path.startswith("docs/")
        if inside or not (ROOT / target).is_file():
            return match[0]
        return f"]({posixpath.relpath(page_of(target), folder)}{match[2] or ''})"

    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(point, part) for part in parts[::2]]
    return "".join(parts)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at pages, and write the command line's reference where a page asks for it."""
    if page.file.src_uri.startswith(f"{REPOSITORY}/"):
        return markdown
    text = relinked(markdown, f"docs/{page.file.src_uri}")
    return text.replace(COMMAND_LINE, command_line()) if COMMAND_LINE in text else text


# The command line.


def command_line() -> str:
    """Return the reference of all verbs."""
    from bridger.cli.main import build_parser

    return "\n\n".join(verb_page(parser) for parser in verbs_of(build_parser()))


def verbs_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and all of its verbs', groups before what is in them."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from verbs_of(inner)


def verb_page(parser: argparse.ArgumentParser) -> str:
    """Return what a verb takes: its help, laid out as Markdown."""
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=88)
    about = "\n".join(map(cell, (parser.description or "").splitlines()))
    parts = [f"## {parser.prog}", about]
    usage = "\n".join(line[len("usage: ") :] for line in parser.format_usage().splitlines())
    parts.append(f"```text\n{usage}\n```")
    for group in parser._action_groups:
        rows = [row for action in group._group_actions for row in rows_of(action, parser)]
        if rows:
            title = str(group.title).removeprefix("positional ")
            parts.append("\n".join([f"| {title} | |", "| --- | --- |", *rows]))
    _, _, examples = (parser.epilog or "").partition("examples:\n")
    if examples:
        parts.append(f"```sh\n{textwrap.dedent(examples).strip()}\n```")
    return "\n\n".join(parts)


def rows_of(action: argparse.Action, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the rows of a table that say what an argument is."""
    if isinstance(action, argparse._SubParsersAction):
        for inner in dict.fromkeys(action.choices.values()):
            about = (inner.description or "").splitlines()[0]
            yield f"| [`{inner.prog}`](#{inner.prog.replace(' ', '-')}) | {cell(about)} |"
        return
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return
    values = parser._get_formatter()._format_args(action, parser.prog)
    if action.option_strings:
        names = ", ".join(f"{name} {values}".rstrip() for name in action.option_strings)
    else:
        names = values.strip("[]") if action.nargs == "?" else values
    help = parser._get_formatter()._expand_help(action) if action.help else ""
    yield f"| `{names.replace('|', chr(92) + '|')}` | {cell(help)} |"


def cell(text: str | None) -> str:
    """Return a text as it may stand in a table, with code left as code."""
    parts = (text or "").split("`")
    parts[::2] = [
        re.sub(r"([*\[])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]
    ]
    return "`".join(parts).replace("|", r"\|").replace("\n", " ")


# Formulas.


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers show without a script."""
    return FORMULA.sub(formula, content)


def formula(match: re.Match[str]) -> str:
    """Return a formula that arithmatex found as MathML."""
    from latex2mathml.converter import convert

    source = html.unescape(match[2]).strip()[2:-2]  # between \\( and \\), or \\[ and \\]
    mathml = convert(source, display="inline" if match[1] == "span" else "block")
    return f'<{match[1]} class="formula">{mathml}</{match[1]}>'
