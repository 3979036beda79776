"""Which family of towers claims a module."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn

from bridger.towers.base import Tower, has_prompts, is_a, is_layer, unwrap
from bridger.towers.text import TextTower
from bridger.towers.text_calls import takes_ids
from bridger.towers.trial import UnreadableTowerError
from bridger.towers.unknown_text import generic_text
from bridger.towers.unknown_vision import generic_vision, takes_pictures
from bridger.towers.vision import VisionTower

TowerClass = TypeVar("TowerClass", bound=type[Tower])

_families: dict[str, list[type[Tower]]] = {"vision": [], "text": []}
_refusals: dict[str, list[tuple[Callable[[nn.Module], bool], str]]] = {"vision": [], "text": []}


def register_tower(side: str) -> Callable[[TowerClass], TowerClass]:
    """Class decorator: add a family of towers, on the "vision" or the "text" side.

    A file with a decorated class in `bridger.towers` is all that a new family takes, and so is a
    decorated class in a user's own code. Families registered later are asked first, all of them
    before the generic tower. A class defined again, as in a notebook, takes its own place.

    Args:
        side: "vision" or "text".

    Raises:
        TypeError: the class is no tower of that side.
        ValueError: the side is unknown, or another class has the same library and family.

    Example:
        >>> @register_tower("vision")  # doctest: +SKIP
        ... class MyTower(TokenVisionTower): ...
    """
    if side not in _families:
        raise ValueError(f"a tower is registered for 'vision' or 'text', found {side!r}")

    def register(family: TowerClass) -> TowerClass:
        base = VisionTower if side == "vision" else TextTower
        if not issubclass(family, base):
            raise TypeError(f"{family.__name__} must derive from {base.__name__}")
        if not family.__module__.startswith("bridger.towers."):
            _import_families()  # the library's own come first, so that a user's are asked first
        kept = [k for k in _families[side] if k is family or _place_of(k) != _place_of(family)]
        label = family.label()
        if label in (known.label() for known in kept):
            raise ValueError(f"there is already a {side} tower for {label}")
        _families[side] = [*kept, family]
        return family

    return register


def refuse_tower(side: str, matches: Callable[[nn.Module], bool], reason: str) -> None:
    """Say why no family claims such modules; refusals added later are asked first."""
    _refusals[side].append((matches, reason))


def registered_towers(side: str) -> tuple[type[Tower], ...]:
    """Return the families of one side, in the order in which they are asked.

    Args:
        side: "vision" or "text".
    """
    _import_families()
    return tuple(reversed(_families[side]))


@functools.cache
def _import_families() -> None:
    package = importlib.import_module("bridger.towers")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"bridger.towers.{info.name}")


def _place_of(family: type[Tower]) -> tuple[str, str]:
    return family.__module__, family.__qualname__


def find_vision_tower(module: nn.Module | Tower) -> VisionTower:
    """Return the vision tower of a module: an encoder, or a whole dual encoder.

    A tower itself (as `generic_vision` returns) is taken as it is; a module that no family
    claims is tried as an unknown tower.

    Args:
        module: of any supported library, or one's own.

    Raises:
        TypeError: neither a family nor a trial forward makes a vision tower of it.
        ValueError: the module lies on the meta device, or is built in a way that its family
            does not support, or its blocks are ambiguous.
    """
    return cast(VisionTower, _find("vision", module))  # register_tower has checked the class


def find_text_tower(module: nn.Module | Tower) -> TextTower:
    """Return the text tower of a module: an encoder, or a whole dual encoder.

    A tower itself (as `generic_text` returns) is taken as it is; a module that no family claims
    is tried as an unknown tower.

    Args:
        module: of any supported library, or one's own.

    Raises:
        TypeError: neither a family nor a trial forward makes a text tower of it.
        ValueError: the module lies on the meta device, or is built in a way that its family
            does not support, or its blocks are ambiguous.
    """
    return cast(TextTower, _find("text", module))


def tower_as_saved(
    side: str, module: nn.Module | Tower, saved: Mapping[str, Any]
) -> nn.Module | Tower:
    """Return the generic tower that an adapter was made for, or the module as it is.

    What was said or found when the adapter was made is repeated, so that it need not be said
    again, and so that neither a new family nor a better search makes an old adapter unreadable.

    Raises:
        ValueError: it does not hold of this module, which is another one of the same class.
    """
    if isinstance(module, Tower) or saved["library"] != "generic":
        return module
    if type(unwrap(module)).__name__ != saved["class"]:
        return module
    names = {
        "vision": ("blocks", "layout", "prefix", "patch", "image_size"),
        "text": ("blocks", "layout", "max_length", "vocab_size", "pad_id"),
    }
    generic: Any = generic_vision if side == "vision" else generic_text
    try:
        tower: Tower = generic(module, **{name: saved[name] for name in names[side]})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the adapter was made for another {saved['class']} than the {side} tower: {error}"
        ) from error
    return tower


def _find(side: str, module: nn.Module | Tower) -> Tower:
    other = "text" if side == "vision" else "vision"
    if isinstance(module, VisionTower if side == "vision" else TextTower):
        return module
    if isinstance(module, Tower):
        raise TypeError(_swapped(side, other, module.label()))
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the {side} tower must be a torch.nn.Module, found {type(module).__name__}"
        )
    _refuse_compiled(side, module)
    if side == "vision" and has_prompts(module):
        raise TypeError(
            "the vision tower is wrapped for virtual tokens, which peft puts before texts alone: "
            "use a method of peft that works inside layers, such as LoRA, IA3 or LN-tuning"
        )
    bare = module if has_prompts(module) else unwrap(module)
    for family in registered_towers(side):
        if family.matches(bare):
            _refuse_meta(side, module)
            return _read(family, side, module)
    found = f"{type(bare).__module__}.{type(bare).__qualname__}"
    if any(family.matches(bare) for family in registered_towers(other)):
        raise TypeError(_swapped(side, other, found))
    for matches, reason in reversed(_refusals[side]):
        if matches(bare):
            raise TypeError(f"{found} cannot be a {side} tower: {reason}")
    _refuse_meta(side, module)
    try:
        return generic_vision(module) if side == "vision" else generic_text(module)
    except UnreadableTowerError as error:
        if takes_ids(bare) if side == "vision" else takes_pictures(bare):
            raise TypeError(_swapped(side, other, found)) from error
        labels = {k.label() for k in registered_towers(side) if k.library != "peft"}  # no encoder
        known = ", ".join(sorted(labels))
        raise TypeError(
            f"no {side} tower is known for {found}; known: {known}, or wholes of these. "
            f"As an unknown tower: {error}"
        ) from error


def _read(family: type[Tower], side: str, module: nn.Module) -> Tower:
    try:
        return family(module)
    except AttributeError as error:
        if not any(map(is_layer, module.modules())):
            raise
        raise ValueError(
            f"{family.label()} cannot read the {side} tower's sizes where layers of peft stand "
            f"({error}): attach first, then put them in"
        ) from error


def _refuse_compiled(side: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"the {side} tower is a scripted or traced module, which takes no hooks: pass the "
            "module that it was made of"
        )
    if is_a(module, "torch", "OptimizedModule"):
        raise TypeError(
            f"the {side} tower was compiled whole, and bridging stops it between its blocks: pass "
            "model._orig_mod, and compile the blocks with encoder.compile()"
        )


def _swapped(side: str, other: str, found: str) -> str:
    return (
        f"expected a {side} tower, found the {other} tower {found}: pass the vision tower first, "
        f"the text tower second; of a whole model that no family knows, pass its {side} half"
    )


def _refuse_meta(side: str, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(
                f"the {side} tower {type(module).__name__} is on the meta device "
                f"({name} holds no numbers): load its weights before attaching"
            )
