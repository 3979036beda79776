"""Install the wheel into clean environments, lowest and newest dependencies, and see it work.

    make matrix                                        Python 3.10 to 3.13, two sets each
    make matrix ARGS="--python 3.12 --set lowest"      one of them
    make matrix ARGS="--tests"                         and the fast tests, from the source archive

One environment after the other is made in a temporary folder and removed. The lowest set is what
setup.cfg's lower bounds say. A Python that is not found is reported and not run.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "setup.cfg"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SETS = ("lowest", "newest")
TESTED = ("demo", "studies", "test")
"""The extras that the tests are run with."""
CHECKS = ("install", "pip check", "imports", "version", "picture", "predict")
WITH_TESTS = ("quickstart", "extras", "tests")
SHOWN = 40
"""Lines of a failed command's output."""


def lower_bounds(python: str, *extras: str) -> dict[str, str]:
    """Read the lowest version of each requirement on a Python ("3.12") off setup.cfg.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = [setup["options"]["install_requires"]]
    lines += [setup["options.extras_require"][extra] for extra in extras]
    bounds: dict[str, str] = {}
    for line in filter(None, map(str.strip, "\n".join(lines).split("\n"))):
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"python_version": python}):
            continue
        lowest = [one.version for one in wanted.specifier if one.operator in (">=", "==")]
        if not lowest:
            raise ValueError(f"setup.cfg: {line} has no lower bound; write {wanted.name}>=...")
        bounds[wanted.name] = max(*lowest, bounds.get(wanted.name, "0"), key=Version)
    return bounds


def find_python(version: str) -> Path | None:
    """Return an interpreter: this one, one on PATH, or one that pyenv or uv keep."""
    kept = (
        f".pyenv/versions/{version}.*/bin/python",
        f".local/share/uv/python/*-{version}.*/bin/python",
    )
    found = [path for pattern in kept for path in sorted(Path.home().glob(pattern))]
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    for path in (sys.executable, shutil.which(f"python{version}"), *found):
        # pyenv's stand-ins on PATH are there for versions that are switched off, and fail.
        said = path and subprocess.run([path, "-c", code], capture_output=True, text=True)
        if said and said.stdout.strip() == version:
            return Path(path)
    return None


class Environment:
    """A clean environment in `folder`, and how each check went in it."""

    def __init__(self, folder: Path, python: Path, constraints: dict[str, str]) -> None:
        from uv import find_uv_bin

        self.folder, self.uv, self.outcome = folder, find_uv_bin(), dict[str, str]()
        self.bin = folder / "env" / "bin"
        self.constraints = folder / "constraints.txt"
        lines = [f"{name}=={version}\n" for name, version in constraints.items()]
        self.constraints.write_text("".join(lines))
        # What the caller's shell sets must not help: neither its packages nor its being offline.
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "HF_HUB_OFFLINE")
        self.variables = {k: v for k, v in os.environ.items() if k not in hidden}
        self.variables |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
        subprocess.run([self.uv, "venv", "--quiet", "--python", python, folder / "env"], check=True)

    def check(self, name: str, *command: object, cwd: Path | None = None) -> bool:
        """Run a command; note whether it went well, and show its end where it did not."""
        started = time.monotonic()
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        right = done.returncode == 0
        self.outcome[name] = "ok" if right else "FAILED"
        lines = done.stdout.strip().split("\n")
        print(f"  {name}: {self.outcome[name]}, {time.monotonic() - started:.0f} s; {lines[-1]}")
        if not right:
            print("\n".join(lines[-SHOWN:]))
        sys.stdout.flush()
        return right

    def install(self, name: str, wanted: str) -> bool:
        at = ("--python", self.bin / "python", "--constraint", self.constraints)
        return self.check(name, self.uv, "pip", "install", "--quiet", *at, wanted)

    def run(self, wheel: Path, sources: Path, tests: bool) -> None:
        """Install the wheel and do with it what the README does; with `tests`, run those too."""
        if not self.install("install", str(wheel)):
            return
        bridger, tool = self.bin / "bridger", sources / "tests" / "helpers_imports.py"
        check = ("pip", "check", "--python", self.bin / "python")
        self.check("pip check", self.uv, *check)
        self.check("imports", self.bin / "python", "-W", "error", tool)
        self.check("version", bridger, "--version")
        self.check("picture", bridger, "data", "picture", "picture.png")
        words = ("the pink horse", "--out", "mask.png", "--overlay", "seen.png")
        self.check("predict", bridger, "predict", "picture.png", *words)
        if not tests:
            return
        self.check("quickstart", bridger, "quickstart", "--short", "--out", "quickstart")
        if self.install("extras", f"{wheel}[{','.join(TESTED)}]"):
            self.check("extras", self.uv, *check)
            how = ("-q", "-n", "2", "-m", "not slow")
            self.check("tests", self.bin / "pytest", *how, cwd=sources)


def build(out: Path) -> tuple[Path, Path]:
    """Build both archives, the wheel from the source archive; return the wheel and the sources.

    The sources are without the package: what is tested is what is installed.
    """
    for words in (["build", "--outdir", out, ROOT], ["twine", "check", "--strict"]):
        archives = sorted(out.glob("*"))
        command = [sys.executable, "-m", *map(str, [*words, *archives])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    for path in (wheel, archive):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")
    (out / "sources").mkdir()
    subprocess.run(["tar", "xzf", archive, "-C", out / "sources"], check=True)
    (sources,) = (out / "sources").iterdir()
    shutil.rmtree(sources / "bridger")
    return wheel, sources


def show(table: list[tuple[str, str, float, dict[str, str]]], columns: Sequence[str]) -> None:
    print()
    for cells in (["Python", "set", "seconds", *columns], ["---"] * (len(columns) + 3)):
        print(f"| {' | '.join(cells)} |")
    for version, name, seconds, outcome in table:
        cells = [version, name, f"{seconds:.0f}", *(outcome.get(c, "not run") for c in columns)]
        print(f"| {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--set", nargs="+", default=SETS, choices=SETS, dest="sets")
    parser.add_argument(
        "--tests", action="store_true", help="a short quickstart and the fast tests"
    )
    parser.add_argument("--first", action="store_true", help="only the first Python that is found")
    args = parser.parse_args(argv)
    table: list[tuple[str, str, float, dict[str, str]]] = []
    with tempfile.TemporaryDirectory() as folder:
        wheel, sources = build(Path(folder) / "dist")
        for version in args.python:
            python = find_python(version)
            for name in args.sets:
                if python is None:
                    table.append((version, name, 0.0, {}))
                    continue
                print(f"\nPython {version}, {name}")
                started, bounds = time.monotonic(), lower_bounds(version, *TESTED)
                with tempfile.TemporaryDirectory(dir=folder) as room:
                    made = Environment(Path(room), python, bounds if name == "lowest" else {})
                    made.run(wheel, sources, args.tests)
                table.append((version, name, time.monotonic() - started, made.outcome))
            if python and args.first:
                break
    columns = CHECKS + (WITH_TESTS if args.tests else ())
    show(table, columns)
    ran = [outcome for *_, outcome in table if outcome]
    return 0 if ran and all(set(outcome.values()) == {"ok"} for outcome in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
