"""Configs of peft that were made for a whole model, read for the one tower inside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from bridger.tower_peft.names import TOWERS_OWN
from bridger.towers.base import is_a

UNKNOWN = ("layer_replication", "target_parameters", "trainable_token_indices")
"""Options of configs that name what they change in ways which are not read here."""


def narrow(config: Any, above: str, layers: Mapping[str, nn.Module], adapter: str) -> Any:
    """Return the config that makes the same layers when peft gets the tower alone.

    Args:
        config: peft's, for a model around the tower.
        above: the tower's path in that model.
        layers: peft's layers with that adapter by the name that they had in the tower before.
        adapter: its name.

    Raises:
        ValueError: it cannot be told for the tower alone.
    """
    copied = [n for n, layer in layers.items() if is_a(layer, "peft", "ModulesToSaveWrapper")]
    targets = [name for name in layers if name not in copied]
    unknown = [name for name in UNKNOWN if getattr(config, name, None)]
    if unknown or not targets or _share(layers.values(), adapter):
        reason = (
            f"{unknown[0]} cannot be read for a part of it"
            if unknown
            else "its layers there share numbers"
            if targets
            else "it has only copies of whole layers there"
        )
        raise ValueError(
            f"peft's {config.peft_type.value} was applied to a model around {above!r}, and "
            f"{reason}: apply peft to that encoder itself"
        )
    narrowed = copy.copy(config)
    narrowed.task_type = narrowed.exclude_modules = None
    narrowed.target_modules = _exactly(targets)
    narrowed.modules_to_save = copied or None
    for option in ("layers_to_transform", "layers_pattern"):
        if hasattr(narrowed, option):
            setattr(narrowed, option, None)
    if hasattr(narrowed, "feedforward_modules"):
        fed: list[str] = [n for n in targets if getattr(layers[n], "is_feedforward", False)]
        narrowed.feedforward_modules = _exactly(fed) if fed else []
    for option in ("rank_pattern", "alpha_pattern"):
        if getattr(narrowed, option, None):
            setattr(narrowed, option, _by_name(getattr(config, option), above, targets))
    return narrowed


def _exactly(names: Iterable[str]) -> str:
    """Return a pattern of whole names; peft would also take a list's as ends of longer ones."""
    return "|".join(map(re.escape, names))


def _by_name(patterns: Mapping[str, Any], above: str, targets: Iterable[str]) -> dict[str, Any]:
    from peft.utils.other import get_pattern_key

    keys = {name: get_pattern_key(list(patterns), f"{above}.{name}") for name in targets}
    return {f"^{re.escape(n)}": patterns[key] for n, key in keys.items() if key in patterns}


def _share(layers: Iterable[nn.Module], adapter: str) -> bool:
    """Whether a tensor of the adapter is in several layers, and its shape perhaps another's."""
    places = [place for layer in layers for place in _places(layer, adapter)]
    return len(set(places)) < len(places)


def _places(layer: nn.Module, adapter: str) -> set[int]:
    return {tensor.data_ptr() for name, tensor in _own(layer) if adapter in name.split(".")}


def _own(layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return (item for item in layer.state_dict().items() if item[0].split(".")[0] not in TOWERS_OWN)
