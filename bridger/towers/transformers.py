"""What the encoders of transformers share, on both sides."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

from bridger.towers.base import child_at

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
