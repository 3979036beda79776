"""The wheel, built from the source archive as pip would build it: what it holds and says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("bridger", "docs", "examples", "tests")
LIMIT = 12 * 2**20
"""Bytes: the embedded world is there to come with every install."""


def build(what: str, source: Path, out: Path) -> Path:
    """Let setuptools make an archive of a tree, as any front end of it would."""
    out.mkdir()
    code = f"import sys; from setuptools import build_meta as b; b.build_{what}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, out], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = out.iterdir()
    return archive


@dataclass
class Built:
    sdist: Path
    source: Path
    wheel: Path

    @property
    def files(self) -> list[str]:
        with ZipFile(self.wheel) as archive:
            return archive.namelist()

    @property
    def metadata(self) -> Message:
        (name,) = (file for file in self.files if file.endswith(".dist-info/METADATA"))
        with ZipFile(self.wheel) as archive:
            return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("setuptools", minversion="77.0.3")
    if not (ROOT / "bridger").is_dir():
        pytest.skip("these are the sources without the package, tested against what is installed")
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    sdist = build("sdist", tree, folder / "sdist")
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "xzf", sdist, "-C", folder / "unpacked"], check=True)
    (source,) = (folder / "unpacked").iterdir()
    return Built(sdist, source, build("wheel", source, folder / "wheel"))


def licence_table() -> list[tuple[list[str], str]]:
    """The lines of the first table of docs/licences.md: patterns of files, and a licence."""
    page = (ROOT / "docs" / "licences.md").read_text().split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")][2:]
    return [(re.findall(r"`([^`]+)`", files), licence.strip()) for _, files, licence, _ in rows]


class TestWheel:
    def test_holds_every_file_of_the_package(self, built: Built) -> None:
        known = {".py", ".json", ".safetensors", ".webp", ".typed"}
        there = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "bridger").rglob("*")
            if path.is_file() and (path.suffix in known or path.name.startswith("LICENSE"))
        }
        inside = {name for name in built.files if ".dist-info/" not in name}
        assert inside == there

    def test_holds_what_a_first_mask_needs(self, built: Built) -> None:
        assets = {"tiny_clip", "tiny_adapter", "tiny_heads"}
        inside = {
            name.split("/")[2]
            for name in built.files
            if re.match(r"bridger/assets/.+/.+\.safetensors$", name)
        }
        assert inside == assets
        assert {"bridger/py.typed", "bridger/assets/sprites.webp"} <= set(built.files)

    def test_is_small(self, built: Built) -> None:
        assert built.wheel.stat().st_size <= LIMIT

    def test_every_file_has_one_licence(self, built: Built) -> None:
        table = licence_table()
        used = set()
        for name in built.files:
            fits = [p for patterns, _ in table for p in patterns if fnmatch(name, p)]
            assert len(fits) == 1, f"{name}: {fits}"
            used.add(fits[0])
        assert used == {pattern for patterns, _ in table for pattern in patterns}

    def test_metadata_name_the_licences_and_bring_their_texts(self, built: Built) -> None:
        metadata = built.metadata
        named = {name for _, licence in licence_table() for name in licence.split(" AND ")}
        assert metadata["License-Expression"] == " AND ".join(sorted(named))
        texts = metadata.get_all("License-File", [])
        assert sorted(texts) == ["LICENSE", "bridger/assets/LICENSE-fluent-emoji"]
        for text in texts:
            assert any(name.endswith(f".dist-info/licenses/{text}") for name in built.files)
        assert not [c for c in metadata.get_all("Classifier", []) if c.startswith("License")]

    def test_has_the_extras(self, built: Built) -> None:
        extras = set(built.metadata.get_all("Provides-Extra", []))
        assert extras == {"demo", "docs", "test", "benchmarks", "studies", "dev"}

    def test_source_archive_holds_what_its_tests_and_pages_need(self, built: Built) -> None:
        for folder in FOLDERS:
            there = {path.name for path in (ROOT / folder).rglob("*.*") if path.is_file()}
            inside = {path.name for path in (built.source / folder).rglob("*.*") if path.is_file()}
            assert {n for n in there if not n.endswith((".pyc", ".pyo"))} <= inside
        for name in ("CITATION.cff", "CONTRIBUTING.md", "Makefile", "RELEASING.md", "SECURITY.md"):
            assert (built.source / name).is_file()
