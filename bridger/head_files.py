"""A head saved alone: its options and numbers, and what it was trained on.

Two files as of an adapter, under names of their own, in an adapter's form: the config says which
towers and Bridgers stood below the head, the tensors are the head's alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bridger import adapter_files, checkpoint
from bridger._etris_layout import SAVED
from bridger.adapter_files import ADAPTER_FILES, FolderFiles
from bridger.bridgers import BridgerConfig
from bridger.features import EncoderSpec
from bridger.heads import Head, get_head
from bridger.sharded import whole
from bridger.tower_weights import same_weights, sample_weights

if TYPE_CHECKING:
    from bridger.managed_heads import ManagedHeads
    from bridger.saving import SavedModel

HEAD_FILES = FolderFiles("bridger_head.json", "bridger_head.safetensors")


def save(model: SavedModel, folder: str | os.PathLike[str], name: str) -> None:
    """Write one head's folder; see `BridgedModel.save_head`."""
    prefix = f"heads.{name}."
    own = model.adapter_state_dict()
    config = checkpoint.describe(model)
    config = {
        **{key: value for key, value in config.items() if key not in ("processor", "etris")},
        "heads": {name: config["heads"][name]},
        "trained_on": checksum(own),
        "processor": False,
    }
    tensors = {key: tensor for key, tensor in own.items() if key.startswith(prefix)}
    adapter_files.write(Path(folder), HEAD_FILES, config, tensors)


def load(
    model: ManagedHeads,
    folder: str | os.PathLike[str],
    name: str | None,
    saved_as: str | None,
) -> tuple[str, Head, float]:
    """Return a saved head's name, the head, and its loss weight; see `BridgedModel.load_head`."""
    folder, encoder = Path(folder), model.encoder
    found = [files for files in (HEAD_FILES, ADAPTER_FILES) if (folder / files.weights).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no head: expected {HEAD_FILES.weights} there, as written by "
            f"model.save_head, or {ADAPTER_FILES.weights}, by model.save_pretrained"
        )
    config, tensors = adapter_files.read(folder, found[0])
    saved_as = _chosen(list(config["heads"]), saved_as, folder)
    saved = config["heads"][saved_as]
    _check_spec(config["encoder"].get("spec", {}), encoder.spec, folder)
    head = get_head(saved["type"]).from_spec(encoder.spec, **saved["config"])
    head.to(next(encoder.parameters()).device)
    prefix = f"heads.{saved_as}."
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    checkpoint.copy_tensors(head.state_dict(prefix=prefix), own, str(folder))
    others = [
        f"the {side} tower's weights"
        for side, tower in (("vision", encoder.vision), ("text", encoder.text))
        if not same_weights(config["towers"][side].get("weights", []), sample_weights(tower))
    ]
    here = checksum(encoder.adapter_state_dict())
    if config.get("trained_on", checksum(tensors)) != here:
        others.append("the Bridgers")
    others += _differing(config["encoder"], checkpoint.describe_encoder(encoder))
    if others:
        warnings.warn(
            f"head {saved_as!r} of {folder} was trained on other features than those here: "
            f"{' and '.join(others)} differ; train it further, or load its own adapter",
            stacklevel=3,
        )
    return name or saved_as, head, saved["loss_weight"]


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return what tells an adapter's tensors beside its heads from others'.

    They are rounded to half precision, so that an adapter shared at half the size is the same.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.startswith(("heads.", SAVED)):
            tensor = whole(tensors[name]).detach().cpu()
            tensor = tensor.half() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _chosen(names: list[str], saved_as: str | None, folder: Path) -> str:
    if saved_as is None and len(names) == 1:
        return names[0]
    if saved_as not in names:
        raise ValueError(f"{folder} holds the heads {names}; pass saved_as= one of them")
    return saved_as


def _differing(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Name the options of the encoder, and of its Bridgers, that are others than the saved ones.

    Where only one of both has Bridgers, the tensors tell.
    """
    saved = {
        "word_length": None,
        "peft": [],
        "bottlenecks": None,
        **saved,
    }  # older adapters lack them
    bridgers = saved["bridgers"] and BridgerConfig.from_dict(saved["bridgers"]).to_dict()
    pairs = {key: (saved[key], here[key]) for key in here if key not in ("bridgers", "spec")}
    if bridgers and here["bridgers"]:
        pairs |= {key: (bridgers[key], value) for key, value in here["bridgers"].items()}
    plain = json.loads(json.dumps(pairs))  # as JSON has it, without tuples
    return [
        "the options of peft's layers"
        if key == "peft"
        else f"{key} (here {found}, in training {expected})"
        for key, (expected, found) in plain.items()
        if found != expected
    ]


def _check_spec(saved: Mapping[str, Any], spec: EncoderSpec, folder: Path) -> None:
    """Compare what shapes a head; adapters of older versions do not say it."""
    here = json.loads(json.dumps(asdict(spec)))
    problems = [
        f"{key} is {here.get(key)}, the head was built for {value}"
        for key, value in saved.items()
        if not key.startswith("logit_") and here.get(key) != value  # those are weights
    ]
    if problems:
        raise ValueError(
            f"the head of {folder} is for another kind of encoder:\n  " + "\n  ".join(problems)
        )
