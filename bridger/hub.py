"""Adapters by name: in a folder, in the package, or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.tiny_clip import SHIPPED

if TYPE_CHECKING:
    from bridger.saving import SavedModel


def find_adapter(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of an adapter, downloaded where it is on the Hub.

    Args:
        name: a folder, "tiny" or "tiny-heads", or the Hub's "user/name[@revision]".
        revision: branch, tag or commit on the Hub; None: main.
        token: of the Hub; None: the one that is logged in.

    Raises:
        FileNotFoundError: there is no such adapter.
        OSError: the Hub cannot be reached.
    """
    folder = Path(name)
    if not folder.exists() and str(name) in SHIPPED:
        return SHIPPED[str(name)]
    if folder.is_dir():
        return folder
    raise FileNotFoundError(f"there is no adapter {name}")


def push(model: SavedModel, repo_id: str, **options: Any) -> str:
    """Save an adapter with a model card and put it on the Hub."""
    raise NotImplementedError
