"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of `path` in one rename at the end.

    After an error `path` is as it was, and nothing is left beside it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        # safetensors writes files for their owner's eyes only; adapters are there to be shared.
        partial.chmod(path.parent.stat().st_mode & 0o666)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, whose files take their places in `folder` at the end.

    Each file by a rename, those of inner folders first; what else was in such an inner folder
    goes after that. After an error `folder` is as it was, and nothing is left in it.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        fresh = Path(name)
        yield fresh
        mode = folder.stat().st_mode & 0o666
        for inner in sorted(path for path in fresh.iterdir() if path.is_dir()):
            target = folder / inner.name
            target.mkdir(exist_ok=True)
            names = _move_files(inner, target, mode)
            for path in target.iterdir():
                if path.name not in names:
                    path.unlink()
        _move_files(fresh, folder, mode)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, whose files and folders go to `folder` at the end, whole.

    They go in the order of their names, files last: where a file is, everything is. After an
    error nothing is left in `folder`.

    Raises:
        FileExistsError: one of them is in `folder` already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        yield (fresh := Path(name))
        made = sorted(fresh.iterdir(), key=lambda path: (path.is_file(), path.name))
        if there := [folder / path.name for path in made if (folder / path.name).exists()]:
            raise FileExistsError(f"{there[0]} exists already")
        for path in made:
            os.replace(path, folder / path.name)


def _move_files(source: Path, target: Path, mode: int) -> set[str]:
    files = sorted(path for path in source.iterdir() if path.is_file())
    for path in files:
        path.chmod(mode)
        os.replace(path, target / path.name)
    return {path.name for path in files}
