"""The weighted average of adapters of one shape on the same towers."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridger import checkpoint
from bridger.config import check_number
from bridger.sharded import copy_into

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.saving import SavedModel

COUNTERS = "num_batches_tracked"
"""BatchNorm's counts of batches, which nothing reads: those of the first adapter are kept."""


def shares(names: Sequence[str], weights: Sequence[float]) -> list[float]:
    """Return weights over their sum.

    Raises:
        ValueError: there is no name, names and weights do not pair up, or weights cannot be.
    """
    if isinstance(names, str) or not names or len(names) != len(weights):
        raise ValueError(
            f"an average needs a list of adapters and as many weights, got {names!r} and "
            f"{weights!r}"
        )
    for name, weight in zip(names, weights, strict=True):
        check_number(f"the weight of {name!r}", weight)
    total = sum(weights)
    if not total:
        raise ValueError("the weights of an average cannot all be 0")
    return [weight / total for weight in weights]


def average(
    names: Sequence[str], models: Sequence[SavedModel], parts: Sequence[float]
) -> BridgedModel:
    """Return a model of its own on the same towers: the sum of share x numbers, in float64.

    Args:
        names: of the adapters, for messages.
        models: the adapters, without layers of peft.
        parts: the share of each.

    Raises:
        ValueError: encoders, heads, their options or their tensors differ; all are listed.
    """
    first, tensors = models[0], [model.adapter_state_dict() for model in models]
    problems: list[str] = []
    for name, model, own in zip(names[1:], models[1:], tensors[1:], strict=True):
        pair = (names[0], name)
        problems += _differences(_options(first), _options(model), pair)
        problems += _differences(_fixed(tensors[0]), _fixed(own), pair)
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(f"only adapters of one shape can be averaged:\n  {listed}")
    made = _twin(first)
    with torch.no_grad():
        for name, target in made.adapter_state_dict().items():
            if target.is_floating_point():
                summands = [
                    part * own[name].cpu().double()
                    for part, own in zip(parts, tensors, strict=True)
                ]
                copy_into(target, torch.stack(summands).sum(dim=0))
    return made


def _options(model: SavedModel) -> dict[str, Any]:
    """Return the options that must be the same, for numbers to mean the same."""
    return {
        "encoder": checkpoint.describe_encoder(model.encoder),
        "heads": {
            name: {"type": head.name, "config": head.config.to_dict()}
            for name, head in model.heads.items()
        },
    }


def _fixed(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what no average can be taken of: shapes, and whole numbers."""
    shapes = {name: f"shape {tuple(tensor.shape)}" for name, tensor in tensors.items()}
    whole = {
        name: tensor.tolist()
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() and not name.endswith(COUNTERS)
    }
    return shapes | whole


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], names: tuple[str, str], path: str = ""
) -> Iterator[str]:
    """Say in which entries two configs differ, however deep, and where one has none."""
    for key in {**ours, **theirs}:
        here, there = ours.get(key), theirs.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from _differences(here, there, names, f"{path}{key}.")
        elif here != there or (key in ours) != (key in theirs):
            said = [reprlib.repr(own[key]) if key in own else "missing" for own in (ours, theirs)]
            yield f"{path}{key} is {said[0]} in {names[0]!r}, {said[1]} in {names[1]!r}"


def _twin(model: SavedModel) -> BridgedModel:
    """Return a copy of a model on the very same towers."""
    from bridger.model import BridgedModel

    encoder = model.encoder
    shared = [encoder.vision, encoder.text, *encoder.towers.modules()]
    made = BridgedModel(
        copy.deepcopy(encoder, {id(thing): thing for thing in shared}),
        copy.deepcopy(dict(model.heads)),
        model.processor,
        model.loss_weights,
    )
    made.etris_layout = model.etris_layout
    return made.eval()
