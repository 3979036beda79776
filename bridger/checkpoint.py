"""What an adapter says of its model, and how a model is made of it again.

How the files look stands in `bridger.adapter_files`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bridger._etris_layout import SAVED, ReleasedLayout
from bridger.adapter_config import FORMAT_VERSION
from bridger.adapter_files import ADAPTER_FILES, read, write
from bridger.attach import attach_bridgers
from bridger.bottlenecks import find_bottlenecks, owns_some, put_back_bottlenecks
from bridger.bridgers import BridgerConfig
from bridger.heads import get_head
from bridger.processing import Processor
from bridger.sharded import copy_into
from bridger.tower_peft import describe_peft, inject_peft, take_out_peft, wrap_prompts
from bridger.tower_source import is_path
from bridger.tower_weights import same_weights, sample_weights
from bridger.towers import TextTower, VisionTower, find_text_tower, find_vision_tower
from bridger.towers.base import Tower
from bridger.towers.registry import tower_as_saved

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder
    from bridger.model import BridgedModel
    from bridger.saving import SavedModel


def save(
    model: SavedModel, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Write the adapter's folder; what stood there before is replaced by one rename.

    Where FSDP spreads the model over processes, all of them must call this; the first one writes.

    Args:
        model: the model.
        folder: where to write.
        dtype: of the floating-point numbers on disk; None keeps the model's own.

    Raises:
        NotADirectoryError: `folder` is a file.
    """
    write(
        Path(folder),
        ADAPTER_FILES,
        describe(model),
        model.adapter_state_dict(),
        dtype=dtype,
        layout=model.etris_layout,
        processor=model.processor,
    )


def describe(model: SavedModel) -> dict[str, Any]:
    """Return the config that is saved: towers, encoder, heads."""
    from bridger import __version__

    encoder, layout = model.encoder, model.etris_layout
    return {
        "format_version": FORMAT_VERSION,
        "bridger_version": __version__,
        "towers": {
            side: _describe_tower(tower)
            for side, tower in (("vision", encoder.vision), ("text", encoder.text))
        },
        "encoder": describe_encoder(encoder),
        "heads": {
            name: {
                "type": head.name,
                "config": head.config.to_dict(),
                "loss_weight": model.loss_weights[name],
            }
            for name, head in model.heads.items()
        },
        "processor": model.processor is not None,
        "tower_source": encoder.tower_source,
        **({} if layout is None else {"etris": layout.to_dict()}),
    }


def describe_encoder(encoder: BridgedEncoder) -> dict[str, Any]:
    """Return what is saved of how towers and Bridgers stand together."""
    return {
        "stages": [list(pair) for pair in encoder.stages],
        "bridgers": None if encoder.config is None else encoder.config.to_dict(),
        "trainable": list(encoder.trainable),
        "connect": encoder.connect,
        "word_length": encoder.word_length,
        "peft": [_without_base(part) for part in describe_peft(encoder.peft_parts())],
        **_describe_bottlenecks(encoder),
        "spec": asdict(encoder.spec),
    }


def _describe_bottlenecks(encoder: BridgedEncoder) -> dict[str, Any]:
    """Return the bottleneck adapters that are trained; others change nothing."""
    found = find_bottlenecks(encoder.vision, encoder.text)
    owned = found is not None and owns_some(encoder.tower_tensors)
    return {"bottlenecks": found.to_dict()} if found and owned else {}


def _describe_tower(tower: Tower) -> dict[str, Any]:
    said = tower.describe()
    return {**said, "name": _public(said["name"]), "weights": sample_weights(tower)}


def _public(name: str | None) -> str | None:
    """Return a tower's name, or None where it is a path, which says much to nobody else."""
    return None if name and is_path(name) else name


def _without_base(part: dict[str, Any]) -> dict[str, Any]:
    """Return peft's part without the path of the model that it was put into: nothing reads it."""
    config, key = part["config"], "base_model_name_or_path"
    return {**part, "config": {**config, key: _public(config[key])}} if key in config else part


def load(
    folder: str | os.PathLike[str],
    vision_model: nn.Module | VisionTower,
    text_model: nn.Module | TextTower,
    chosen: Sequence[str] | None = None,
) -> BridgedModel:
    """Attach a saved adapter to its towers; see `BridgedModel.from_pretrained`."""
    from bridger.model import BridgedModel

    folder = Path(folder)
    config, tensors = read(folder)
    if chosen is not None:
        config, tensors = _with_heads(config, tensors, chosen, folder)
    parts = config["encoder"]
    peft = parts.get("peft", [])
    text_model = wrap_prompts(text_model, peft)
    vision = find_vision_tower(tower_as_saved("vision", vision_model, config["towers"]["vision"]))
    text = find_text_tower(tower_as_saved("text", text_model, config["towers"]["text"]))
    _check_towers(config["towers"], {"vision": vision, "text": text})
    modules = {"vision": vision.module, "text": text.module}
    before = inject_peft(modules, peft)
    encoder, bottlenecks = None, []
    try:
        bottlenecks = put_back_bottlenecks(vision, text, parts.get("bottlenecks"))
        encoder = attach_bridgers(
            vision,
            text,
            stages=[tuple(pair) for pair in parts["stages"]],
            config=parts["bridgers"] and BridgerConfig.from_dict(parts["bridgers"]),
            trainable=parts["trainable"],
            connect=parts["connect"],
            word_length=parts.get("word_length"),
        )
        heads = {
            name: get_head(saved["type"]).from_spec(encoder.spec, **saved["config"])
            for name, saved in config["heads"].items()
        }
        weights = {name: saved["loss_weight"] for name, saved in config["heads"].items()}
        processor = Processor.load(folder) if config["processor"] else None
        model = BridgedModel(encoder, heads, processor, weights)
        model.to(next(encoder.towers.parameters()).device)
        if (layout := config.get("etris")) is not None:
            model.etris_layout = ReleasedLayout.from_saved(layout, tensors)
        load_adapter_tensors(model, tensors, str(folder))
        encoder.before_peft.update(before)
        encoder.bottlenecks += bottlenecks
        encoder.tower_source = encoder.tower_source or config.get("tower_source")
    except BaseException:
        if encoder is not None:
            encoder.detach()
        for inserted in bottlenecks:
            inserted.remove()
        take_out_peft(before)
        raise
    return model.eval()


def _with_heads(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], chosen: Sequence[str], folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Leave out the heads that are not chosen."""
    names = list(config["heads"])
    if isinstance(chosen, str) or (unknown := [name for name in chosen if name not in names]):
        found = chosen if isinstance(chosen, str) else unknown
        raise ValueError(f"heads must be a list of the names in {folder}, {names}; got {found!r}")
    left = tuple(f"heads.{name}." for name in names if name not in chosen)
    heads = {name: config["heads"][name] for name in names if name in chosen}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left)}
    return {**config, "heads": heads}, kept


def _check_towers(saved: Mapping[str, Any], towers: Mapping[str, Tower]) -> None:
    """Compare the towers at hand with those that the adapter was made for."""
    here = {side: tower.describe() for side, tower in towers.items()}
    problems = []
    for side, expected in saved.items():
        # JSON turns tuples into lists; compare what JSON would hold.
        found = json.loads(json.dumps(here[side]))
        for key, value in expected.items():
            if key == "weights":
                if not same_weights(value, sample_weights(towers[side])):
                    warnings.warn(
                        f"the {side} tower has other weights than the one that the adapter was "
                        "made for: load that one's",
                        stacklevel=4,
                    )
                continue
            if found.get(key) == value or (key == "name" and _public(found[key]) == _public(value)):
                continue
            difference = f"{side} tower: {key} is {found.get(key)!r}, expected {value!r}"
            if key == "name":
                # The same weights go by many names (a hub's, a folder's), so only say it.
                warnings.warn(f"{difference}; load the towers it was made for", stacklevel=4)
            else:
                problems.append(difference)
    if problems:
        raise ValueError(
            "the adapter was made for other towers:\n  "
            + "\n  ".join(problems)
            + "\nload the towers named in its bridger_config.json"
        )


def load_adapter_tensors(model: BridgedModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy an adapter's tensors into the model; see `copy_tensors`."""
    tensors = {name: t for name, t in tensors.items() if not name.startswith(SAVED)}
    copy_tensors(model.adapter_state_dict(), tensors, source)


def copy_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy saved tensors into others, all or none.

    Raises:
        ValueError: names are missing or unexpected, or shapes differ; all are listed.
    """
    problems = [f"missing: {name}" for name in own if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in own]
    problems += [
        f"{name}: expected shape {tuple(own[name].shape)}, found {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"the tensors of {source} do not fit:\n  " + "\n  ".join(problems))
    for name, tensor in tensors.items():
        copy_into(own[name], tensor)
