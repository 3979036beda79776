"""Every example says what it shows, explains its options, and stands in the index."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
from helpers_examples import EXAMPLES

from bridger.heads import registry

SCRIPTS = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.py"))
RUN = [path for path in SCRIPTS if 'if __name__ == "__main__"' in (EXAMPLES / path).read_text()]
INDEX = (EXAMPLES / "README.md").read_text()


def test_the_index_names_every_script_and_no_other() -> None:
    named = set(re.findall(r"\]\(([\w/]+\.py)\)", INDEX))
    assert named == {path.as_posix() for path in SCRIPTS}


@pytest.mark.parametrize("script", RUN, ids=str)
def test_a_script_shows_its_command(script: Path) -> None:
    said = ast.get_docstring(ast.parse((EXAMPLES / script).read_text())) or ""
    assert len(said.splitlines()[0]) > 20 and f"examples/{script.as_posix()}" in said


@pytest.mark.parametrize("script", [s for s in RUN if len(s.parts) == 1], ids=str)
def test_a_script_explains_its_options(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.setattr(registry, "_HEADS", dict(registry._HEADS))  # one brings a head
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "usage:" in said and "--" in said
