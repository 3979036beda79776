"""Which family of towers claims a module."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar, cast

from torch import nn

from bridger.towers.base import Tower, unwrap
from bridger.towers.text import TextTower
from bridger.towers.vision import VisionTower

TowerClass = TypeVar("TowerClass", bound=type[Tower])

_families: dict[str, list[type[Tower]]] = {"vision": [], "text": []}
_refusals: dict[str, list[tuple[Callable[[nn.Module], bool], str]]] = {"vision": [], "text": []}


def register_tower(side: str) -> Callable[[TowerClass], TowerClass]:
    """Class decorator: add a family of towers, on the "vision" or the "text" side.

    Every module of `bridger.towers` is imported on the first look-up, so a file with a decorated
    class is all that a new family takes. Families registered later are asked first.

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
        label = family.label()
        if label in (known.label() for known in _families[side]):
            raise ValueError(f"there is already a {side} tower for {label}")
        _families[side].append(family)
        return family

    return register


def refuse_tower(side: str, matches: Callable[[nn.Module], bool], reason: str) -> None:
    """Say why no family claims such modules; refusals added later are asked first."""
    _refusals[side].append((matches, reason))


def registered_towers(side: str) -> tuple[type[Tower], ...]:
    """Return the families of one side, in the order in which they are asked."""
    package = importlib.import_module("bridger.towers")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"bridger.towers.{info.name}")
    return tuple(reversed(_families[side]))


def find_vision_tower(module: nn.Module) -> VisionTower:
    """Return the vision tower of a module: an encoder, or a whole dual encoder.

    Raises:
        TypeError: no family claims the module (it may be a text tower).
        ValueError: the module lies on the meta device, or is built in a way that its family
            does not support.
    """
    return cast(VisionTower, _find("vision", module))  # register_tower has checked the class


def find_text_tower(module: nn.Module) -> TextTower:
    """Return the text tower of a module: an encoder, or a whole dual encoder.

    Raises:
        TypeError: no family claims the module (it may be a vision tower).
        ValueError: the module lies on the meta device, or is built in a way that its family
            does not support.
    """
    return cast(TextTower, _find("text", module))


def _find(side: str, module: nn.Module) -> Tower:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the {side} tower must be a torch.nn.Module, found {type(module).__name__}"
        )
    bare = unwrap(module)
    for family in registered_towers(side):
        if family.matches(bare):
            _refuse_meta(side, module)
            return family(module)
    other = "text" if side == "vision" else "vision"
    found = f"{type(bare).__module__}.{type(bare).__qualname__}"
    if any(family.matches(bare) for family in registered_towers(other)):
        raise TypeError(
            f"expected a {side} tower, found the {other} tower {found}: "
            "pass the vision tower first, the text tower second"
        )
    for matches, reason in reversed(_refusals[side]):
        if matches(bare):
            raise TypeError(f"{found} cannot be a {side} tower: {reason}")
    known = ", ".join(sorted(family.label() for family in registered_towers(side)))
    raise TypeError(f"no {side} tower is known for {found}; known: {known}, or wholes of these")


def _refuse_meta(side: str, module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(
                f"the {side} tower {type(module).__name__} is on the meta device "
                f"({name} holds no numbers): load its weights before attaching"
            )
