"""The heads of a model by name: they come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bridger.encoder import BridgedEncoder
from bridger.half_towers import HalfTowers
from bridger.heads import Head
from bridger.heads_of_model import LossWeights, build_heads, check_head


class ManagedHeads(HalfTowers):
    """Heads on one bridged encoder and the weights of their losses, as `BridgedModel` has them."""

    def __init__(
        self,
        encoder: BridgedEncoder,
        heads: Mapping[str, Head],
        loss_weights: Mapping[str, float] | None,
    ) -> None:
        super().__init__()
        for name, head in heads.items():
            check_head(name, head)
        self.encoder = encoder
        self.heads: Mapping[str, Head] = nn.ModuleDict(dict(heads))  # type: ignore[assignment]
        self._loss_weights = LossWeights(heads, loss_weights)

    @property
    def loss_weights(self) -> LossWeights:
        """The weight of each head's loss; entries can be set, see `LossWeights`."""
        return self._loss_weights

    def add_head(self, name: str, head: type[Head], **config: Any) -> None:
        """Put one more head on the features, as `BridgedEncoder.with_head` does.

        Optimisers made before do not know of it.

        Raises:
            TypeError: it is no class of heads.
            ValueError: the name is taken, or none that a head can have; options do not fit.
        """
        device = next(self.encoder.parameters()).device
        self._take_on(name, build_heads(self.encoder.spec, {name: (head, config)}, device)[name])

    def drop_head(self, name: str) -> None:
        """Take a head off, for good where it is not saved.

        Raises:
            ValueError: there is none of that name.
        """
        del self.heads[self.head_name(name)]  # type: ignore[attr-defined]
        del self.loss_weights.data[name]

    def _take_on(self, name: str, head: Head) -> None:
        check_head(name, head)
        if name in self.heads:
            raise ValueError(f"there is a head {name!r} already; drop_head({name!r}) takes it off")
        self.heads[name] = head.train(self.training)  # type: ignore[index]
        self.loss_weights.data[name] = 1.0

    def head_name(self, head: str | None = None) -> str:
        """Return the name of the head that answers: the given one, or the only one.

        Raises:
            RuntimeError: there is no head.
            ValueError: there are several and none is given, or there is none of that name.
        """
        names = list(self.heads)
        if not names:
            raise RuntimeError("this model has no head to predict with")
        if head is None and len(names) > 1:
            raise ValueError(f"several heads could answer; pass head= one of {names}")
        if head is not None and head not in names:
            raise ValueError(f"there is no head {head!r}; the heads are {names}")
        return head or names[0]

    def targets(self, labels: Any) -> Mapping[str, Any]:
        """Return labels by head name, where they may be the only head's.

        Raises:
            ValueError: they are for other heads, or for one of several that is not named.
        """
        if labels is None:
            return {}
        names = list(self.heads)
        if not isinstance(labels, Mapping):
            if len(names) > 1:
                raise ValueError(f"with several heads, labels must be a dict by head name: {names}")
            return {names[0]: labels}
        if unknown := set(labels) - set(names):
            raise ValueError(f"labels for unknown heads {sorted(unknown)}; the heads are {names}")
        return labels
