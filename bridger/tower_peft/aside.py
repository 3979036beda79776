"""Layers of peft that loading put into towers, kept aside while other adapters act there."""

from __future__ import annotations

from typing import Any

from torch import nn

from bridger.tower_peft.changes import Parameters, give_back
from bridger.towers.base import bare, is_layer


class LayersAside:
    """An adapter's layers of peft while they are out of the towers.

    Nothing inside the layers changes, so that they give the same bits when they are back.

    Args:
        before: what `inject_peft` returned; emptied, so that nothing is taken out a second time.
            Where it is empty, there are no such layers.
    """

    def __init__(self, before: Parameters) -> None:
        self._before = dict(before)
        self._layers: list[tuple[nn.Module, str, nn.Module]] = [
            (owner, name, child)
            for owner in before
            for name, child in owner._modules.items()
            if child is not None and is_layer(child)
        ]
        self._configs: list[tuple[nn.Module, Any]] = [
            (module, vars(module).pop("peft_config"))
            for module in before
            if "peft_config" in vars(module)
        ]
        for owner, name, layer in self._layers:
            owner._modules[name] = bare(layer)
        give_back(before)
        before.clear()

    def __bool__(self) -> bool:
        return bool(self._layers)

    def put_back(self, before: Parameters) -> None:
        """Put the layers into the towers again, and fill `before` as it was."""
        for owner, name, layer in self._layers:
            owner._modules[name] = layer
        for module, config in self._configs:
            vars(module)["peft_config"] = config
        before.update(self._before)
