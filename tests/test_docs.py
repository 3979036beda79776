"""Every Python block of the README and the docs runs, in order, page by page.

A block under the comment `<!-- downloads -->` needs a model hub: it is only compiled, and an
offline twin must follow it on the same page.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridger.towers import registered_towers, registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- downloads -->\n)?```python\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, str]]:
    return [(bool(mark), code) for mark, code in BLOCK.findall(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What a page registers is forgotten after it.
    known = {side: list(registered_towers(side))[::-1] for side in ("vision", "text")}
    monkeypatch.setattr(registry, "_families", known)
    names: dict[str, object] = {"__name__": "__main__"}
    waiting = False
    for downloads, code in blocks(page):
        compiled = compile(code, str(page), "exec")
        if not downloads:
            exec(compiled, names)
        waiting = downloads
    assert not waiting, f"{page.name}: the last block downloads and has no offline twin"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert not [t for t in targets if not (page.parent / t).exists()]
