"""Several adapters on one pair of towers: they are loaded, chosen, averaged and let go.

Names and meanings are those of peft's `PeftModel`. Each adapter is an encoder and heads of its own
on the same towers. The one that acts is the model's; the others are no part of its modules, so
that they are neither trained nor saved with it.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bridger import averaging, checkpoint, hub
from bridger.config import did_you_mean
from bridger.disabling import is_disabled
from bridger.encoder import BridgedEncoder
from bridger.heads import Head
from bridger.saving import SavedModel
from bridger.sharded import is_wrapped
from bridger.tower_peft import LayersAside, tuned_modules
from bridger.towers.base import is_layer, unwrap

FIRST = "default"
"""What the adapter is called that a model was made or loaded with."""

PARTS = ("encoder", "heads", "_loss_weights", "processor", "etris_layout")
"""Attributes of a model that are its adapter's."""


class ManagedAdapters(SavedModel):
    """Adapters by name, of which one acts, as `BridgedModel` has them."""

    def __init__(
        self,
        encoder: BridgedEncoder,
        heads: Mapping[str, Head],
        loss_weights: Mapping[str, float] | None,
    ) -> None:
        super().__init__(encoder, heads, loss_weights)
        # A resting adapter stands in a model of its own, with its layers of peft kept aside.
        self._resting: dict[str, tuple[ManagedAdapters, LayersAside] | None] = {FIRST: None}

    @property
    @abstractmethod
    def memory(self) -> str:
        """How much memory training takes."""

    @abstractmethod
    def save_memory(self, level: str) -> None:
        """Choose what backward computes again."""

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters, in the order in which they came."""
        return list(self._resting)

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that acts."""
        return next(name for name, resting in self._resting.items() if resting is None)

    def load_adapter(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        heads: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        """Read one more adapter onto the same towers; `set_adapter` lets it act.

        It may be of other stages, Bridgers and heads than those at hand, and may bring layers of
        peft, which are in the towers while it acts.

        Args:
            name: what it is called here.
            folder: written by `save_pretrained`, the Hub's "user/name", or the name of an adapter
                in the package.
            heads: names of the heads to load; None: all.
            revision: branch, tag or commit on the Hub; None: main.
            token: of the Hub; None: the one that is logged in.

        Raises:
            FileNotFoundError: there is no such adapter, here or on the Hub.
            OSError: the Hub cannot be reached.
            RuntimeError: the model is detached, or its tensors are spread over processes.
            ValueError: the name is taken; the adapter is for other towers, has no such head, or its
                files do not fit together; the towers hold layers of peft that were not loaded.
        """
        self._check_free(name)
        found = hub.find_adapter(folder, revision=revision, token=token)
        with self._plain_towers():
            vision, text = unwrap(self.encoder.vision.given), unwrap(self.encoder.text.given)
            loaded = checkpoint.load(found, vision, text, heads)
            loaded.processor = loaded.processor or self.processor  # the towers are the same
            self._resting[name] = loaded, LayersAside(loaded.encoder.before_peft)

    def set_adapter(self, name: str) -> None:
        """Let another adapter act in place of the one at hand.

        Its encoder, heads, loss weights and processor become the model's, on the device, in the
        dtype and mode of those that rest from now on; what `save_memory` chose stays. What was
        compiled stays so, and what was not is not: `compile()` is of one adapter.

        Optimisers and hooks that were made before are of the other adapter's modules. Switch
        between forwards: threads that run the model at the same time would see parts of both. For
        several users at once, load a model for each onto the same towers.

        Raises:
            RuntimeError: the model is detached or disabled, or its tensors are spread over
                processes: switch before FSDP or DDP wraps it.
            ValueError: there is no adapter of that name.
        """
        chosen = self._resting_as(name)
        if chosen is None:
            return
        self._check_changeable()
        if is_disabled(self.encoder):
            raise RuntimeError("leave model.disable() before another adapter is set")
        aside, (model, layers) = self._take_out(), chosen
        active, own = self.active_adapter, list(self._own_modules())
        parameters = (p for module in own for p in module.parameters(recurse=False))
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
        memory = self.memory
        if memory != "fast":
            self.save_memory("fast")
        for part in PARTS:
            mine, theirs = getattr(self, part), getattr(model, part)
            setattr(self, part, theirs)
            setattr(model, part, mine)
        self._resting |= {active: (model, aside), name: None}
        layers.put_back(self.encoder.before_peft)
        self._follow(dtype)
        if memory != "fast":
            self.save_memory(memory)

    def delete_adapter(self, name: str) -> None:
        """Let go of an adapter that does not act, with all that it left in the towers.

        Raises:
            ValueError: there is none of that name, or it is the one that acts.
        """
        chosen = self._resting_as(name)
        if chosen is None:
            others = [other for other in self._resting if other != name]
            instead = (
                f"set another one first, such as set_adapter({others[0]!r})"
                if others
                else "it is the only one; model.detach() takes it off the towers"
            )
            raise ValueError(f"adapter {name!r} acts, and cannot be deleted: {instead}")
        del self._resting[name]
        chosen[0].detach()

    def add_weighted_adapter(
        self, names: Sequence[str], weights: Sequence[float], name: str
    ) -> None:
        """Make one more adapter of the weighted average of others' numbers.

        All must be of one shape: the same encoder and heads, with the same options. Loss weights
        and the processor come from the first.

        Args:
            names: of adapters; one may come more than once.
            weights: of each, 0 or more; they are divided by their sum.
            name: what the average is called; `set_adapter` lets it act.

        Raises:
            RuntimeError: the model is detached, or its tensors are spread over processes.
            ValueError: there is no such adapter, the new name is taken, weights cannot be, adapters
                are of different shapes (every difference is named) or have layers of peft.
        """
        self._check_free(name)
        shares = averaging.shares(names, weights)
        with self._plain_towers() as active:
            chosen = [self._resting_as(one) or (self, active) for one in names]
            tuned = [
                one
                for one, (model, layers) in zip(names, chosen, strict=True)
                if layers or model.encoder.peft_parts()
            ]
            if tuned:
                raise ValueError(
                    f"adapters with layers of peft cannot be averaged, and {tuned} have some: "
                    "their numbers mean something as products alone"
                )
            average = averaging.average(names, [model for model, _ in chosen], shares)
            self._resting[name] = average, LayersAside({})

    def detach(self) -> None:
        """Remove every trace of all adapters from the towers."""
        for resting in self._resting.values():
            (self if resting is None else resting[0]).encoder.detach()

    def merge_peft(self) -> None:
        """Merge peft's layers into the towers for good; see `BridgedEncoder.merge_peft`.

        Raises:
            ValueError: as there, and where other adapters stand on the same towers.
        """
        if others := [name for name in self._resting if name != self.active_adapter]:
            raise ValueError(
                f"merging would change the towers of the adapters {others} too: delete them first"
            )
        self.encoder.merge_peft()

    def _resting_as(self, name: str) -> tuple[ManagedAdapters, LayersAside] | None:
        """Return what rests under a name, or None where that adapter acts."""
        if name not in self._resting:
            known = did_you_mean(str(name), list(self._resting))
            raise ValueError(f"there is no adapter {name!r}: {known}")
        return self._resting[name]

    def _check_free(self, name: str) -> None:
        """Refuse a name that a new adapter cannot have, and a model that takes none on."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"an adapter's name must be a string, got {name!r}")
        if name in self._resting:
            raise ValueError(
                f"there is an adapter {name!r} already: choose another name, or call "
                f"delete_adapter({name!r}) first"
            )
        self._check_changeable()

    def _check_changeable(self) -> None:
        self.encoder.check_attached()
        if any(map(is_wrapped, (self, *self._own_modules()))):
            raise RuntimeError(
                "this model is spread over processes: load and set adapters before FSDP wraps it"
            )

    @contextmanager
    def _plain_towers(self) -> Iterator[LayersAside]:
        """Inside, no layers of peft are in the towers; yields those of the active adapter."""
        aside = self._take_out()
        try:
            yield aside
        finally:
            aside.put_back(self.encoder.before_peft)

    def _take_out(self) -> LayersAside:
        """Take the active adapter's layers of peft out of the towers.

        Raises:
            ValueError: the user put layers there, which are not the adapter's alone.
        """
        aside = LayersAside(self.encoder.before_peft)
        if any(map(is_layer, self.encoder.towers.modules())):
            aside.put_back(self.encoder.before_peft)
            raise ValueError(
                "the towers hold layers of peft that would act for every adapter: save this one, "
                "and load it with from_pretrained onto towers without peft, which brings the "
                "layers along and can take them out again"
            )
        return aside

    def _own_modules(self) -> Iterator[nn.Module]:
        """Return the modules of the active adapter, none of the towers'."""
        yield from self._modules["heads"].modules()  # type: ignore[union-attr]
        yield from self.encoder.own_modules()

    def _follow(self, dtype: torch.dtype | None) -> None:
        """Bring the active adapter to the towers' device, a dtype, and the model's mode."""
        own, towers = list(self._own_modules()), self.encoder.towers
        first = next(towers.parameters())
        copies: set[nn.Module] = set()
        if self.encoder.before_peft:
            # Layers of which peft trains a copy get what the layers around them give.
            copies = {*tuned_modules(towers)} - {*tuned_modules(towers, copies=False)}

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(first.device, kind if tensor.is_floating_point() else None)

        for module in own:
            kind = first.dtype if module in copies else dtype
            module._apply(moved, recurse=False)  # type: ignore[no-untyped-call]
        if any(module.training != self.training for module in own):
            self.train(self.training)
