"""What an adapter's folder holds, and how it comes back.

`bridger_config.json` says what the adapter is and which towers it was made for;
`bridger.safetensors` holds its numbers and, as metadata, the same config. One rename puts the
weights in place, so that a crash leaves the old adapter or the new one: where the readable
config does not belong to the weights, the weights' own copy counts. The processor's files are
put in place just before the weights, when everything is written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bridger._etris_layout import ReleasedLayout
from bridger._files import replacing, staging
from bridger._json import check_object, read_json
from bridger.adapter_config import read_config
from bridger.processing import Processor
from bridger.sharded import is_sharded, whole


class FolderFiles(NamedTuple):
    """Names of the files that belong together in a folder."""

    config: str
    weights: str


ADAPTER_FILES = FolderFiles("bridger_config.json", "bridger.safetensors")
WEIGHTS_FILE = ADAPTER_FILES.weights
RECIPE_FILE = "recipe.json"
CARD, PICTURE = "README.md", "card.png"
"""The model card, and what it shows; see `bridger.model_card`."""


def write(
    folder: Path,
    files: FolderFiles,
    config: Mapping[str, Any],
    own: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    layout: ReleasedLayout | None = None,
    processor: Processor | None = None,
) -> None:
    """Write a config, tensors, and what else there is; arguments and errors as of `save`."""
    from safetensors.torch import save_file

    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; an adapter is saved as a folder")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    tensors = {
        name: whole(t).detach().to("cpu", dtype if t.is_floating_point() else None).contiguous()
        for name, t in own.items()
    }
    if any(map(is_sharded, own.values())) and torch.distributed.get_rank() > 0:
        return
    if layout is not None:
        tensors |= layout.tensors()
    # The last one is put in place first: weights that need a processor find it.
    with (
        replacing(folder / files.config) as readable,
        replacing(folder / files.weights) as weights,
        staging(folder) as fresh,
    ):
        save_file(tensors, weights, metadata={"format": "pt", "bridger_config": text})
        readable.write_text(text)
        if processor is not None:
            processor.save(fresh)


def read(
    folder: Path, files: FolderFiles = ADAPTER_FILES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the tensors of an adapter's folder, or of one with other files.

    Raises:
        FileNotFoundError: there is no adapter.
        ValueError: a file is truncated, foreign, or of a later format.

    Warns:
        UserWarning: the readable config does not belong to the weights.
    """
    text, tensors = _open(folder, files, with_tensors=True)
    config = _checked(folder, files, text)
    readable = folder / files.config
    if readable.is_file() and readable.read_text() != text:
        warnings.warn(
            f"{readable} does not belong to {files.weights}; using the config inside it",
            UserWarning,
            stacklevel=4,
        )
    return config, tensors


def read_saved_config(folder: Path, files: FolderFiles = ADAPTER_FILES) -> dict[str, Any]:
    """Return the config that counts, alone; raises as `read`.

    It does not warn: who only looks at a config in passing leaves that to the one who reads all.
    """
    return _checked(folder, files, _open(folder, files, with_tensors=False)[0])


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """Return the options of the recipe beside an adapter, or None where there is none.

    Raises:
        ValueError: it is no JSON object, or its "towers" are no name.
    """
    file = folder / RECIPE_FILE
    if not file.is_file():
        return None
    recipe: dict[str, Any] = read_json(file)
    check_object(recipe, file)
    towers = recipe.get("towers")
    if not isinstance(towers, str | None):
        raise ValueError(f'"towers" of {file} must be a name of towers or null, found {towers!r}')
    return recipe


def part_sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Return "numbers" and "bytes" of each part of a model that saved tensors belong to."""
    parts: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        part = f"head {rest.partition('.')[0]}" if first == "heads" else first
        sizes = parts.setdefault(part, {"numbers": 0, "bytes": 0})
        sizes["numbers"] += tensor.numel()
        sizes["bytes"] += tensor.numel() * tensor.element_size()
    return parts


def _open(
    folder: Path, files: FolderFiles, *, with_tensors: bool
) -> tuple[str | None, dict[str, Tensor]]:
    path = folder / files.weights
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no adapter: expected {files.weights} and {files.config} there, as "
            f"written by model.save_pretrained"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("bridger_config")
            names = file.keys() if with_tensors else ()
            return text, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def _checked(folder: Path, files: FolderFiles, text: str | None) -> dict[str, Any]:
    path = folder / files.weights
    if text is None:
        raise ValueError(f"{path} was not written by bridger: it carries no bridger_config")
    return read_config(text, path)
