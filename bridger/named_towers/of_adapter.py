"""The towers of a saved adapter, by the name that it keeps of them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bridger.adapter_files import read_recipe, read_saved_config
from bridger.named_towers.load import load_towers
from bridger.processing import Processor


def towers_of(folder: Path, towers: str | None = None) -> str | None:
    """Return the name of an adapter's towers, or None where it is not known.

    The given one, or what the adapter says, or what the recipe beside an older one says.
    """
    if towers:
        return towers
    said: str | None = read_saved_config(folder).get("tower_source")
    return said or (read_recipe(folder) or {}).get("towers")


def load_towers_of(
    folder: Path,
    towers: str | None,
    *,
    download: bool | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load the towers of an adapter's folder; see `bridger.BridgedModel.from_pretrained`."""
    name = towers_of(folder, towers)
    if name is None:
        raise ValueError(
            f"{folder} does not say where its towers come from: pass them, or their name as "
            f"towers= (--towers in the shell), such as open_clip:ViT-B-16-quickgelu:openai@416"
        )
    try:
        return load_towers(name, download=download, trust_remote_code=trust_remote_code)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} was made for the towers {name}, and {error}: pass them, or their name as "
            f"towers= (--towers in the shell)"
        ) from error
