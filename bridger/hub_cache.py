"""What of the Hub is on this machine; nothing here reaches the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

MODEL_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)
"""Where the weights of a model of transformers lie: the first kind that is there is loaded."""


def cached_file(repo_id: str, file: str, revision: str | None = None) -> Path | None:
    """Return a file of the Hub in the cache, or None where it is not there.

    Args:
        repo_id: "user/name".
        file: its path in the repository.
        revision: branch, tag or commit; None: main, as it was when it was last asked for.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, file, revision=revision)
    except HFValidationError:  # a folder that is no more
        return None
    return Path(found) if isinstance(found, str) else None


def has_content(repo_id: str, sha256: str) -> bool:
    """Whether a large file is in the cache, of whichever revision: it is not downloaded again."""
    return (_cache_of(repo_id) / "blobs" / sha256).is_file()


def model_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model of transformers: a local one, or what is cached of the Hub's.

    Args:
        name: the folder, or an id on the Hub.
        revision: as for `cached_file`.
    """
    if Path(name).is_dir():
        return Path(name)
    config = cached_file(name, "config.json", revision)
    return None if config is None else config.parent


def model_folders(name: str) -> list[Path]:
    """Return all folders that a model of transformers may have been loaded from, main's first."""
    first = model_folder(name)
    if Path(name).is_dir():
        return [Path(name)]
    others = sorted((_cache_of(name) / "snapshots").glob("*/"))
    return [*([first] if first else []), *(folder for folder in others if folder != first)]


def commit_of(folder: Path) -> str | None:
    """Return the commit whose files a folder holds, or None where it is not in the cache."""
    return folder.name if folder.parent.name == "snapshots" else None


def _cache_of(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def chosen_files(names: Iterable[str], kinds: Sequence[str] = MODEL_FILES) -> list[str]:
    """Return those files that are loaded: all of the first kind that is there.

    Args:
        names: of all files.
        kinds: patterns, the best first.
    """
    names = sorted(names)
    found = ([name for name in names if fnmatch(name, kind)] for kind in kinds)
    return next(filter(None, found), [])


def weights_in(folder: Path, kinds: Sequence[str] = MODEL_FILES) -> list[Path]:
    """Return the files of a model's weights in a folder; none where a part is missing."""
    files = chosen_files((path.name for path in folder.iterdir()), kinds)
    if files and (parts := re.search(r"-of-(\d+)\.", files[0])) and len(files) != int(parts[1]):
        return []
    return [folder / file for file in files]
