"""The base of every configuration that is saved: frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT", bound="Config")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return the end of an error message: the nearest known names, or all of them."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {sorted(known)}"


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`, with a ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "positive integer" if least == 1 else f"whole number, {least} or more"
        raise ValueError(f"{name} must be a {kind}, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Refuse what is no finite number of 0 or more, with a ValueError."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number, 0 or more, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number of at least 0 and below 1, with a ValueError."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def check_known(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is not among the known names, with a ValueError that offers the nearest ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown: {did_you_mean(str(value), list(known))}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False, with a ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of the frozen dataclasses that are written to `bridger_config.json`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """Build the config from `to_dict`'s result.

        JSON knows no tuples, so lists become tuples again.

        Raises:
            ValueError: a key is unknown; the message offers the nearest ones.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"{cls.__name__} has no option {key!r}: {did_you_mean(key, known)}"
                )
        return cls(**{key: _freeze(value) for key, value in values.items()})

    def replace(self: ConfigT, **changes: Any) -> ConfigT:
        """Return a copy with some fields changed; unknown names raise as in `from_dict`."""
        return type(self).from_dict({**self.to_dict(), **changes})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value
