"""Towers with what is trained inside them: layers of peft, and tensors that an adapter owns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from bridger.compiling import CompiledBlocks
from bridger.features import BridgedFeatures
from bridger.freezing import are_shared, flags_before, hold
from bridger.half_towers import HalfTowers
from bridger.recomputing import Switched
from bridger.running import Batch
from bridger.tower_peft import (
    Parameters,
    PeftPart,
    find_peft,
    merge_peft,
    own_modules,
    refuse_unused,
    running_layers,
    trial_inputs,
)
from bridger.tower_source import forget
from bridger.tower_tensors import TowerTensors
from bridger.towers import TextTower, Tower, VisionTower


class TunedTowers(HalfTowers):
    """What an encoder does with what is trained inside its towers; it sets the attributes."""

    vision: VisionTower
    text: TextTower
    towers: nn.ModuleDict
    tower_tensors: TowerTensors
    before_peft: Parameters
    tower_source: str | None = None  # the name by which `bridger.load_towers` makes the towers
    _attached: bool
    _compiled: tuple[CompiledBlocks, CompiledBlocks] | None
    _frozen: list[nn.Module]
    _switched: list[Switched]
    _tried: frozenset[Any]

    @abstractmethod
    def disable(self) -> AbstractContextManager[None]:
        """Run without Bridgers and with the towers' own tensors."""

    @abstractmethod
    def _run(self, batch: Batch) -> BridgedFeatures:
        """Run both towers once."""

    def peft_parts(self) -> list[PeftPart]:
        """Return the adapters of peft in the towers; see `bridger.tower_peft.find_peft`."""
        self._owned()  # raises where peft took the place of what the adapter trains
        parts = find_peft(self._sides())
        if self._attached:
            self._try_peft()
        return parts

    def own_modules(self) -> Iterator[nn.Module]:
        """Return the modules that are the adapter's: all but the towers' own."""
        frozen = set(self._frozen)
        return (module for module in self.modules() if module not in frozen)

    @property
    def recomputing(self) -> bool:
        """Whether this encoder turned activation checkpointing on in the towers."""
        return bool(self._switched)

    def _try_peft(self) -> None:
        """Run the towers once for each new set of peft's layers, and refuse what takes no part."""
        layers = frozenset(running_layers(self.towers).values())
        if not layers <= self._tried:
            pixels, ids, mask = trial_inputs(self.vision, self.text)
            compiled, self._compiled = self._compiled, None
            try:
                with self.disable():
                    refuse_unused(self.towers, lambda: self._run(Batch(pixels, ids, mask, 1)))
            finally:
                self._compiled = compiled
        self._tried = layers

    def _sides(self) -> dict[str, Tower]:
        return {"vision": self.vision, "text": self.text}

    def _owned(self) -> dict[str, dict[str, Tensor]]:
        return self.tower_tensors.by_tower({k: v.module for k, v in self._sides().items()})

    def merge_peft(self) -> None:
        """Merge peft's layers into the towers for good, so that these run as fast as before.

        The towers then hold what the layers learnt, also when they are called alone. An adapter
        saved afterwards fits such towers only. As in peft, what is merged is what acts.

        Raises:
            ValueError: there are none, peft cannot merge them, or other encoders are attached to
                the same towers, such as those of a model's adapters that rest: merging would
                change these under them. Then all is as before.
        """
        parts = self.peft_parts()
        if not parts:
            raise ValueError("the towers hold no layers of peft: there is nothing to merge")
        if are_shared(module for part in parts for module in part.module.modules()):
            raise ValueError(
                "other encoders are attached to the towers, which merging would change for them "
                "too: detach them first, or delete the model's other adapters"
            )
        held = set(self._frozen)
        own = {name: m for name, _, m in own_modules(self.towers) if m in held}
        merge_peft(parts)
        self.before_peft.clear()
        self.tower_source = None
        for side in self._sides().values():
            forget(side)
        # Copies of whole layers that peft has trained take over what their originals had.
        copies = {name: m for name, _, m in own_modules(self.towers) if m not in held}
        hold(copies.values(), flags_before(own[name] for name in copies))
        self._frozen += copies.values()
