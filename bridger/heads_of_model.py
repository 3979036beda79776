"""What the heads of one model have in common: names, first numbers, weights, optimiser groups."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from bridger.config import did_you_mean
from bridger.features import EncoderSpec
from bridger.heads import Head, HeadOutput
from bridger.heads.base import TextKind
from bridger.output import BridgedOutput
from bridger.tower_peft import tuned_parameters

if TYPE_CHECKING:
    from bridger.model import BridgedModel

PARTS = ("bridgers", "tower_tensors", "peft")
"""Names of what is trained beside the heads."""


class LossWeights(UserDict[str, float]):
    """The weight of each head's loss in the sum; a head of weight 0 rests while others train.

    Args:
        heads: names of the heads.
        weights: of some of them; the others' is 1.

    Raises:
        ValueError: a name that no head has, or what is no weight.
    """

    def __init__(self, heads: Iterable[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.data = dict.fromkeys(heads, 1.0)
        self.update(weights or {})

    def __setitem__(self, name: str, weight: Any) -> None:
        if name not in self.data:
            names = list(self.data)
            raise ValueError(f"no head is called {name!r}: {did_you_mean(name, names)}")
        is_number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not (is_number and 0 <= float(weight) < math.inf):
            raise ValueError(f"the loss weight of {name!r} must be 0 or more, got {weight!r}")
        self.data[name] = float(weight)

    def __delitem__(self, name: str) -> None:
        raise TypeError(
            f"every head has a loss weight; model.loss_weights[{name!r}] = 0 lets it rest, and "
            f"model.drop_head({name!r}) takes it off"
        )


def check_head(name: str, head: Head) -> None:
    """Refuse a name that a head cannot have.

    Raises:
        ValueError: it is no identifier, or means something else already.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"a head cannot be called {name!r}: its name must be an identifier that torch's "
            f"ModuleDict has no use for; choose another name"
        )
    if name in PARTS:
        raise ValueError(
            f"a head cannot be called {name!r}: {', '.join(PARTS)} are the groups of other "
            f"parameters in parameter_groups(); choose another name"
        )
    if name in get_args(TextKind) and name != head.text:
        raise ValueError(
            f"a head cannot be called {name!r}, a kind of text, while it reads {head.text}; "
            f"choose another name"
        )


def build_heads(
    spec: EncoderSpec,
    heads: Mapping[str, tuple[type[Head], Mapping[str, Any]]],
    device: torch.device,
) -> dict[str, Head]:
    """Build heads, (class, config) by name.

    Each draws its first numbers from the same state of torch's generator, as if it was the only
    one, so that a head starts alike whatever stands beside it.

    Raises:
        TypeError: one is no class of heads.
    """
    for name, (head, _) in heads.items():
        if not (isinstance(head, type) and issubclass(head, Head)):
            raise TypeError(
                f"head {name!r} must be a class of heads, such as ReferringSegmentationHead, "
                f"got {head!r}; bridger.heads.get_head gives a class by its registered name"
            )
    chance = torch.get_rng_state()
    built = {}
    for name, (head, config) in heads.items():
        torch.set_rng_state(chance)
        built[name] = head.from_spec(spec, **config).to(device)
    return built


def is_resting(model: BridgedModel, name: str, targets: Mapping[str, Any]) -> bool:
    """Whether a head is left out of a forward with these targets: it would train nothing."""
    idle = name not in targets or not model.loss_weights[name]
    return model.training and bool(targets) and idle


def put_together(outputs: Mapping[str, HeadOutput], weights: Mapping[str, float]) -> BridgedOutput:
    """Return what a model returns of its heads' outputs, with the weighted sum of their losses."""
    result = BridgedOutput()
    losses = [
        weights[name] * out.loss
        for name, out in outputs.items()
        if out.loss is not None and weights[name]
    ]
    if losses:
        result["loss"] = torch.stack(losses).sum()
    result["logits"] = next(iter(outputs.values())).logits
    result["heads"] = dict(outputs)
    return result


def parameter_groups(model: BridgedModel) -> list[dict[str, Any]]:
    """Return the groups of what is trained; see `BridgedModel.parameter_groups`."""
    return [
        {"name": name, "params": parameters}
        for name, part in _parts(model)
        if (parameters := [p for p in part if p.requires_grad])
    ]


def _parts(model: BridgedModel) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
    encoder = model.encoder
    encoder.peft_parts()  # what would train without effect is refused here
    bridgers = encoder.bridgers.parameters() if encoder.bridgers else ()
    others = (bridgers, encoder.tower_tensors.parameters(), tuned_parameters(encoder.towers))
    yield from zip(PARTS, others, strict=True)
    for name, head in model.heads.items():
        if model.loss_weights[name]:
            yield name, head.parameters()
