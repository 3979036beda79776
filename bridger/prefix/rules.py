"""Where the prefix of a tower is not the same from run to run, so that it cannot be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bridger.prefix.skipping import Prefix
from bridger.recomputing import recomputes_in_train_mode
from bridger.sharded import is_sharded, is_wrapped
from bridger.tensor_state import version_of
from bridger.tower_peft import tuned_modules
from bridger.tower_tensors import RUNNING

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder

INSTEAD = "Run without a prefix cache: encoder.cache_prefix(None), or leave prefix_cache out"


def prefixes_of(encoder: BridgedEncoder) -> dict[str, Prefix]:
    """Return the prefixes of an encoder's towers by side; a text that is finished first has none.

    Raises:
        ValueError: one cannot be kept.
    """
    vision, text = encoder.stages[0]
    prefixes = {"vision": Prefix(encoder.vision, vision, encoder.text.module)}
    if text is not None:
        prefixes["text"] = Prefix(encoder.text, text, encoder.vision.module)
    owned = encoder._owned()
    for side, prefix in prefixes.items():
        _refuse_owned(prefix, owned[side])
        _refuse_modules(prefix)
    return prefixes


def refuse_trained(prefix: Prefix, output: Any) -> None:
    """Refuse what a block gave, where it asks for gradients.

    Raises:
        ValueError: it does.
    """
    states = output if isinstance(output, tuple) else (output,)
    if any(isinstance(state, Tensor) and state.requires_grad for state in states):
        raise ValueError(_refusal(prefix, "something trained acts in it, a tensor of trainable="))


def state_of_tensors(prefixes: Iterable[Prefix]) -> list[tuple[Any, ...]]:
    """Return what shows that weights have changed; writes through `.data` do not show."""
    return [
        (tensor, tensor.dtype, tensor.data_ptr(), tensor.requires_grad, version_of(tensor))
        for prefix in prefixes
        for _, tensor in prefix.tensors()
    ]


def _refuse_owned(prefix: Prefix, owned: Mapping[str, Tensor]) -> None:
    """Refuse what is known without a run; of the rest, the prefix's output tells."""
    inside = tuple(f"{name}." for name in prefix.blocks)
    for name in owned:
        if name.rpartition(".")[2] in RUNNING:
            raise ValueError(_refusal(prefix, "running statistics are trained (trainable=)"))
        if name.startswith(inside) or name in prefix.tower.position_names():
            raise ValueError(_refusal(prefix, f"the adapter trains {name!r} in it (trainable=)"))


def _refuse_modules(prefix: Prefix) -> None:
    tuned = set(tuned_modules(prefix.tower.module))
    for name, module in prefix.modules.items():
        if module in tuned:
            raise ValueError(_refusal(prefix, f"peft's layer {name!r} may act in it"))
        if module.training and not recomputes_in_train_mode(module):
            reason = f"{name or 'the tower'} is in train mode, so dropout or the batch may act"
            raise ValueError(_refusal(prefix, f"{reason}; call train() or eval() of the encoder"))
        if is_wrapped(module):
            raise ValueError(_refusal(prefix, "FSDP needs all processes to run it together"))
    if any(is_sharded(tensor) for _, tensor in prefix.tensors()):
        raise ValueError(_refusal(prefix, "FSDP needs all processes to run it together"))


def _refusal(prefix: Prefix, reason: str) -> str:
    return (
        f"the prefix of {prefix.tower.label()}, up to {prefix.name!r}, cannot be kept: {reason}. "
        f"{INSTEAD}"
    )
