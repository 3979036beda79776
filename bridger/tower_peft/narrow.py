"""Configs of peft that were made for a whole model, read for the one tower inside it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bridger.tower_peft.names import TOWERS_OWN
from bridger.towers.base import is_a

UNKNOWN = ("layer_replication", "target_parameters", "trainable_token_indices")
"""Options of configs that name what they change in ways which are not read here."""

BY_NAME = ("rank_pattern", "alpha_pattern")
"""Options that hold values by patterns of names; peft has more, which are unknown here."""


def narrow(config: Any, above: str, layers: Mapping[str, nn.Module], modules: Sequence[str]) -> Any:
    """Return the config that makes the same layers when peft gets the tower alone.

    Args:
        config: peft's, for a model around the tower.
        above: the tower's path in that model.
        layers: peft's layers of that config by the name that they had in the tower before.
        modules: the names of all of the tower's modules.

    Raises:
        ValueError: it cannot be told for the tower alone.
    """
    copied = [n for n, layer in layers.items() if is_a(layer, "peft", "ModulesToSaveWrapper")]
    targets = [name for name in layers if name not in copied]
    if reason := _unreadable(config, layers, copied, modules):
        raise ValueError(
            f"peft's {config.peft_type.value} was applied to a model around {above!r}, and {reason}"
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
    for option in BY_NAME:
        if getattr(narrowed, option, None):
            setattr(narrowed, option, _by_name(getattr(config, option), above, targets))
    return narrowed


def _unreadable(
    config: Any, layers: Mapping[str, nn.Module], copied: Sequence[str], modules: Sequence[str]
) -> str:
    """Return why the config cannot be told for the tower alone, and what to do; empty if it can."""
    patterns = [n for n in vars(config) if n.endswith("_pattern") and n != "layers_pattern"]
    unknown = [n for n in (*UNKNOWN, *patterns) if n not in BY_NAME and getattr(config, n, None)]
    instead = "apply peft to that encoder itself"
    if unknown:
        return f"{unknown[0]} cannot be read for a part of it: {instead}"
    if len(copied) == len(layers):
        return (
            "it has only copies of whole layers there: train these by name instead, "
            "attach_bridgers(trainable=[...])"
        )
    # peft takes these names for ends of longer ones.
    meant = {name for name in modules if any(name.endswith(copy) for copy in copied)}
    if meant != set(copied):
        return f"modules_to_save={copied} would mean other layers of it, too: {instead}"
    if _share(layer for name, layer in layers.items() if name not in copied):
        return f"its layers there share numbers: {instead}"
    return ""


def _exactly(names: Iterable[str]) -> str:
    """Return a pattern of whole names; peft would also take a list's as ends of longer ones."""
    return "|".join(map(re.escape, names))


def _by_name(patterns: Mapping[str, Any], above: str, targets: Iterable[str]) -> dict[str, Any]:
    from peft.utils.other import get_pattern_key

    keys = {name: get_pattern_key(list(patterns), f"{above}.{name}") for name in targets}
    return {f"^{re.escape(n)}": patterns[key] for n, key in keys.items() if key in patterns}


def _share(layers: Iterable[nn.Module]) -> bool:
    """Whether a tensor of peft's is in several layers, and its shape perhaps another's."""
    places = [place for layer in layers for place in {t.data_ptr() for _, t in _own(layer)}]
    return len(set(places)) < len(places)


def _own(layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return (item for item in layer.state_dict().items() if item[0].split(".")[0] not in TOWERS_OWN)
