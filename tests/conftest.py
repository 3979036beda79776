"""Every test starts from the same seed, on one torch thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from helpers_lockstep import Pair, inputs, same, use_checkpoints

from bridger import attach_bridgers, load_tiny_clip
from bridger.cli import main
from bridger.data.scenes import write_scenes
from bridger.heads import ReferringSegmentationHead

if TYPE_CHECKING:
    from bridger.demo.session import Desk
    from bridger.studies.results import StudyResults

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--towers-table", type=Path, metavar="FILE", help="write the conformance suite's outcome"
    )


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--towers-table")
    if path is not None and not hasattr(config, "workerinput"):
        from helpers_table import TowersTable

        config.pluginmanager.register(TowersTable(path))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few scenes in RefCOCO's layout; modules that need others have their own."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 6, "val": 2, "testA": 2, "testB": 2}, size=64)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained adapter on the embedded pair, for tests of the command line."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    vision, text, processor = load_tiny_clip()
    head = {"width": 64, "num_layers": 1, "num_heads": 2}
    model = attach_bridgers(vision, text, 2).with_head(ReferringSegmentationHead, **head)
    model.processor = processor
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def desk() -> Desk:
    """The page without a browser, with the adapters in the package."""
    from helpers_demo import shipped

    from bridger.demo.session import Desk

    return Desk(shipped())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a picture from the page's gallery."""
    from bridger.demo.gallery import compose_gallery

    return compose_gallery(tmp_path_factory.mktemp("gallery"), 1)[0].path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A study of a few rows with made-up figures; one of them could not be run."""
    from helpers_study import FEW, write_study

    return write_study(tmp_path_factory.mktemp("study") / "runs", FEW)


@pytest.fixture
def pair() -> Pair:
    """Two small towers in lockstep, beside a plain loop over the same blocks."""
    return Pair()


@pytest.fixture
def next_forward_is_right(pair: Pair) -> Iterator[None]:
    """After a test, whatever went wrong in it, the same model and workers still work."""
    yield
    use_checkpoints(pair, "none")
    x, y = inputs()
    if not any(hooks.removed for hooks in pair.hooks):
        assert same(list(pair(x, y)), list(pair.interleaved(x, y)))
