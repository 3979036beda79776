"""Files that appear whole or not at all."""

from __future__ import annotations

import os
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
