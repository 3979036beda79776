"""Putting PEFT layers and virtual tokens into towers, taking them out, merging them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from bridger.tower_peft.parts import PeftPart, layers_in, outermost, refuse_config
from bridger.towers import TextTower
from bridger.towers.base import has_prompts, is_a, unwrap

if TYPE_CHECKING:
    from peft import PeftModel

Parameters = dict[nn.Module, dict[str, nn.Parameter | None]]


def wrap_prompts(
    text_model: nn.Module | TextTower, saved: Sequence[Mapping[str, Any]]
) -> nn.Module | TextTower:
    """Return a text model with the virtual tokens of a saved adapter, with fresh numbers.

    The model itself stays as it is: peft wraps it, or what it wraps already. Without such tokens
    it is returned.

    Args:
        text_model: what the user gave.
        saved: side, path, adapter and config of each adapter of peft, as from `describe_peft`.

    Raises:
        ValueError: peft cannot give it these, or it has some and the adapter none.
    """
    entry = next((entry for entry in saved if _is_prompt(entry)), None)
    if entry is None:
        if has_prompts(text_model):
            raise ValueError(
                "the text tower is wrapped for virtual tokens, and the adapter was saved without "
                "any: pass what is wrapped, text_model.get_base_model()"
            )
        return text_model
    module = text_model.module if isinstance(text_model, TextTower) else text_model
    try:
        wrapped: nn.Module = _wrapped(unwrap(module), entry)
        return wrapped
    except Exception as error:
        raise ValueError(
            f"the adapter's virtual tokens do not fit the text tower ({error}): "
            "pass the tower that it was made with"
        ) from error


def _is_prompt(entry: Mapping[str, Any]) -> bool:
    return bool(_config(entry).is_prompt_learning)


def _config(entry: Mapping[str, Any]) -> Any:
    from peft import PeftConfig

    config = dict(entry["config"])
    if "prompt_tuning_init" in config:  # numbers come from the file, so no tokenizer is loaded
        config |= {"prompt_tuning_init": "RANDOM", "tokenizer_kwargs": None}
    return PeftConfig.from_peft_type(**config)


def _wrapped(module: nn.Module, entry: Mapping[str, Any]) -> PeftModel:
    """Return peft's model around a module whose flags stay as they are."""
    from peft import get_peft_model

    with _keeping_flags(list(module.modules())), warnings.catch_warnings():
        # One tower may be part of the other, and each is given layers of its own.
        warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second")
        return get_peft_model(module, _config(entry), entry["adapter"])


@contextmanager
def _keeping_flags(modules: Collection[nn.Module]) -> Iterator[None]:
    """Keep from detaching that peft freezes towers, also where it writes new parameters."""
    flags = [
        (module, name, parameter.requires_grad)
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    try:
        yield
    finally:
        for module, name, flag in flags:
            if (parameter := module._parameters.get(name)) is not None:
                parameter.requires_grad_(flag)


def inject_peft(towers: Mapping[str, nn.Module], saved: list[Mapping[str, Any]]) -> Parameters:
    """Put saved adapters of peft back into the towers, with fresh numbers.

    Args:
        towers: the towers' modules by side.
        saved: side, path, adapter and config of each, as `describe_peft` returned; virtual
            tokens are for `wrap_prompts`.

    Returns:
        The towers' parameters by the module that owns them, for `take_out_peft`.

    Raises:
        ValueError: a tower holds layers of peft already, which the adapter knows nothing of; a
            config would change a tower's own tensors.
    """
    saved = [entry for entry in saved if not _is_prompt(entry)]
    for entry in saved:
        refuse_config(entry["side"], entry["config"])  # before peft writes to a tower
    theirs = "brings its own" if saved else "was saved without any"
    for side, tower in towers.items():
        if any(True for _ in layers_in(tower)):
            raise ValueError(
                f"the {side} tower holds layers of peft, and the adapter {theirs}: "
                "pass plain towers; layers of your own can be added once it is loaded"
            )
    modules = {module for tower in towers.values() for module in tower.modules()}
    before = {module: dict(module._parameters) for module in modules} if saved else {}
    try:
        with _keeping_flags(before):
            _inject(towers, saved)
    except Exception as error:
        take_out_peft(before)
        raise ValueError(
            f"the adapter's layers of peft do not fit these towers ({error}): "
            "pass them as they were passed when it was made"
        ) from error
    return before


def _inject(towers: Mapping[str, nn.Module], saved: list[Mapping[str, Any]]) -> None:
    wrapped: dict[tuple[str, str], PeftModel] = {}
    adapters: dict[tuple[str, str], list[str]] = {}
    for entry in saved:
        place, adapter = (entry["side"], entry["path"]), entry["adapter"]
        module = unwrap(towers[entry["side"]]).get_submodule(entry["path"])
        if place in wrapped:
            wrapped[place].add_adapter(adapter, _config(entry))
        else:
            wrapped[place] = _wrapped(module, entry)
        adapters.setdefault(place, []).append(adapter)
    for place, names in adapters.items():
        wrapped[place].base_model.set_adapter(names)


def take_out_peft(before: Parameters) -> None:
    """Undo `inject_peft`, to the same parameters in the same order.

    For torch's attention, peft writes new parameters at every forward, rounded anew; the
    towers' own come back.
    """
    _remove([module for module in before if "peft_config" in vars(module)], merge=False)
    give_back(before)


def give_back(before: Parameters) -> None:
    """Give modules, which peft has left, the very parameters that they had before."""
    for module, parameters in before.items():
        for name, parameter in parameters.items():
            now = module._parameters.get(name)
            if parameter is not None and now is not None:
                parameter.data = parameter.data.to(now)  # the towers may have moved since
                parameter.requires_grad_(now.requires_grad)  # or be held by others still
        module._parameters.clear()
        module._parameters.update(parameters)


def merge_peft(parts: list[PeftPart]) -> None:
    """Take peft's layers out of the towers, and leave in these what the layers did.

    Raises:
        ValueError: peft cannot merge such layers; then all is as before.
    """
    modules = list(dict.fromkeys(part.module for part in parts))
    for module in modules:
        if has_prompts(module):
            raise ValueError("virtual tokens before the texts cannot be merged into a tower")
        for name, layer in outermost(module):
            _try_merging(name, layer)
    _remove(modules, merge=True)


def _try_merging(name: str, layer: Any) -> None:
    """Merge a copy: peft changes some layers before it finds that it cannot merge another."""
    for inside in layers_in(layer):
        if is_a(inside, "peft", "BaseTunerLayer") and not hasattr(inside, "merge"):
            raise ValueError(f"peft cannot merge {type(inside).__name__} into the tower")
    try:
        _without(copy.deepcopy(layer), merge=True)
    except Exception as error:
        raise ValueError(
            f"peft cannot merge the layer at {name} ({error}). Nothing was merged"
        ) from error


def _remove(modules: Iterable[nn.Module], *, merge: bool) -> None:
    for module in dict.fromkeys(modules):
        for name, layer in list(outermost(module)):
            _put(module, name, _without(layer, merge))
        vars(module).pop("peft_config", None)  # a tower inside what peft was applied to has none


def _without(layer: Any, merge: bool) -> nn.Module:
    """Return what stands in the place of a layer of peft when that is gone."""
    if not merge and is_a(layer, "peft", "AuxiliaryTrainingWrapper"):
        original: nn.Module = layer.original_module  # where peft would leave the trained copy
        return original
    if hasattr(layer, "unload_and_optionally_merge_module"):
        alone: nn.Module = layer.unload_and_optionally_merge_module(
            merge=merge, safe_merge=merge, adapter_names=None
        )
        return alone
    if merge and hasattr(layer, "merge"):
        layer.merge(safe_merge=True)
    inner: nn.Module = layer.get_base_layer()
    return inner


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = root.get_submodule(parent)
    owner._modules[leaf] = module
