"""What a bridged model returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bridger.heads import HeadOutput


class BridgedOutput(dict[str, Any]):
    """A dict (as trainers and DDP expect) whose keys are attributes too.

    Keys:
        loss: the weighted sum of the heads' losses; absent without labels.
        logits: the logits of the only head, or of the first one.
        heads: {head name: HeadOutput}.
    """

    @property
    def loss(self) -> Tensor | None:
        """The weighted sum of the heads' losses, or None without labels."""
        return self.get("loss")

    @property
    def logits(self) -> Tensor:
        """The only head's logits, or the first one's."""
        logits: Tensor = self["logits"]
        return logits

    @property
    def heads(self) -> dict[str, HeadOutput]:
        """Every head's output by name."""
        heads: dict[str, HeadOutput] = self["heads"]
        return heads
