"""What the encoders of transformers share, on both sides."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from bridger.towers.base import child_at, is_a

LIBRARY = "transformers"


def call_plainly(encoder: Any, **inputs: Any) -> Any:
    """Call an encoder for its plain result, whatever its config asks for.

    Hidden states would leave hooks on the user's blocks; tuples have no names to read by.
    """
    return encoder(**inputs, **_plain_options(type(encoder).forward))


@cache
def _plain_options(forward: Callable[..., Any]) -> dict[str, bool]:
    """Return the options for a plain result, as far as that forward takes them."""
    takes = inspect.signature(forward).parameters.values()
    names = {parameter.name for parameter in takes}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)
    options = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
    if hasattr(forward, "__wrapped__"):  # then `return_dict` is taken by the library's decorator
        names.add("return_dict")
    return {name: value for name, value in options.items() if open_ended or name in names}


def core_of(module: nn.Module, classes: tuple[str, ...], *homes: str) -> Any:
    """Return the model of one of those classes: the module, or the model that it puts a head on.

    A model with a head is defined in the same file of the library as what it wraps: a dual
    encoder that is put together from any two models projects their features, and is not meant.
    None where there is none.

    Args:
        module: any module.
        classes: names of the library's classes.
        homes: children that may hold the model, besides the one that `base_model_prefix` names.
    """
    if is_a(module, LIBRARY, *classes):
        return module
    for name in (getattr(module, "base_model_prefix", None), *homes):
        core = module._modules.get(name) if isinstance(name, str) else None
        if core is not None and is_a(core, LIBRARY, *classes):
            files = {base.__module__ for base in type(core).__mro__ if base.__name__ in classes}
            if any(base.__module__ in files for base in type(module).__mro__):
                return core
    return None


def core_path(module: Any, name: str) -> str:
    """Return "name." where the encoder proper is such a child, or "" where it is the module.

    Which of the two holds for `CLIPVisionModel` and `CLIPTextModel` depends on the version.
    """
    return f"{name}." if name in module._modules else ""


def name_of(core: Any) -> str | None:
    name = getattr(core.config, "_name_or_path", None)
    return str(name) if name else None


def part_of(encoder: nn.Module, paths: tuple[str, ...], label: str) -> Any:
    """Return what lies at the first of several paths, since names differ between versions.

    Raises:
        ValueError: nothing lies at any of them.
    """
    for path in paths:
        if (part := child_at(encoder, path)) is not None:
            return part
    raise ValueError(
        f"{label} was expected to have {' or '.join(paths)}, but this "
        f"{type(encoder).__name__} has not: this version of {LIBRARY} is not known"
    )
