"""What importing the package costs and loads, and what its requirements say."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matrix import SETUP, lower_bounds
from packaging.requirements import Requirement

HEAVY = ("torchvision", "transformers", "open_clip", "timm", "peft", "PIL", "torch._dynamo")
EVERYTHING = Path(__file__).parent / "helpers_imports.py"


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def loaded_after(statement: str) -> set[str]:
    run = python("-c", f"{statement}\nimport sys\nprint(*sorted(sys.modules))")
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_loads_no_library_before_it_is_needed() -> None:
    torch_itself = loaded_after("import torch")
    loaded = loaded_after("from bridger import *\nimport bridger.heads, bridger.cli.main")
    assert "bridger.model" in loaded
    assert not [name for name in HEAVY if name in loaded - torch_itself]


def test_help_waits_for_no_library() -> None:
    loaded = loaded_after("from bridger.cli.main import build_parser\nbuild_parser().format_help()")
    assert "bridger.cli.predict" in loaded
    assert not [name for name in (*HEAVY, "torch", "numpy") if name in loaded]


INTERRUPTED = """
import sys
from importlib.abc import MetaPathFinder
from bridger.__main__ import run

class CtrlC(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
sys.argv = ["bridger", "predict", sys.argv[1], "an owl"]
sys.exit(run())
"""


def test_ctrl_c_while_torch_is_imported_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    run = python("-c", INTERRUPTED, tmp_path / "picture.png")
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "bridger: interrupted\n")


def test_public_names_are_there() -> None:
    import bridger

    assert all(hasattr(bridger, name) for name in bridger.__all__)
    assert {*bridger.__all__, "__version__"} <= {*dir(bridger)}
    assert not hasattr(bridger, "attach_bridger")


@pytest.mark.slow
def test_imports_and_helps_give_no_warning_and_ask_no_network() -> None:
    run = python("-W", "error", EVERYTHING)
    assert run.returncode == 0, run.stderr
    assert "no warning, no network" in run.stdout


@pytest.mark.parametrize(
    "asking",
    [
        "socket.create_connection(('localhost', 9))",
        "socket.getaddrinfo('localhost', 80)",
        "urllib.request.urlopen('http://localhost:9/')",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
    ],
)
def test_the_watch_over_the_network_sees_it_asked(asking: str) -> None:
    watched = (
        "import socket, sys, urllib.request; sys.path.insert(0, sys.argv[1])\n"
        "from helpers_imports import refuse_to_ask\n"
        f"sys.addaudithook(refuse_to_ask)\ntry: {asking}\nexcept Exception: pass"
    )
    run = python("-c", watched, EVERYTHING.parent)
    assert run.returncode == 1 and run.stderr.startswith("network: ")


class TestLowerBounds:
    def test_every_requirement_has_one(self) -> None:
        setup = configparser.ConfigParser()
        setup.read(SETUP)
        lines = setup["options"]["install_requires"].split("\n")
        for extra in ("demo", "studies", "docs", "test", "benchmarks"):
            lines += setup["options.extras_require"][extra].split("\n")
        names = [Requirement(line).name for line in lines if line.strip()]
        bounds = lower_bounds("3.13", "demo", "studies", "docs", "test", "benchmarks")
        assert set(names) == set(bounds) and len(names) > 20

    def test_follow_python(self) -> None:
        assert lower_bounds("3.12")["numpy"] == "1.26"
        assert lower_bounds("3.13")["numpy"] == "2.1"

    def test_extras_add_to_them(self) -> None:
        assert set(lower_bounds("3.10", "test")) - set(lower_bounds("3.10")) >= {"pytest"}


def test_every_place_says_the_same_version() -> None:
    import bridger

    setup = configparser.ConfigParser()
    setup.read(SETUP)
    cited = re.search(r"^version: (.+)$", (SETUP.parent / "CITATION.cff").read_text(), re.M)
    assert cited and cited[1] == setup["metadata"]["version"] == bridger.__version__
