"""The form of an adapter's config: which keys it has, said by name where it has others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridger._json import check_object, parse_json
from bridger.config import did_you_mean

FORMAT_VERSION = 1

# (keys that must be there, keys that may be)
TOP = (
    ("format_version", "bridger_version", "towers", "encoder", "heads", "processor"),
    ("tower_source", "etris", "trained_on"),
)
TOWERS = (("vision", "text"), ())
ENCODER = (
    ("stages", "bridgers", "trainable", "connect"),
    ("word_length", "peft", "bottlenecks", "spec"),
)
PEFT = (("side", "path", "adapter", "config"), ())
HEAD = (("type", "config", "loss_weight"), ())
TOWER = ("library", "class", "name", "num_blocks", "widths")  # generic ones say more

Keys = tuple[Sequence[str], Sequence[str]]


def read_config(text: str, source: Path) -> dict[str, Any]:
    """Read an adapter's config.

    Args:
        text: JSON.
        source: the file that it is in, for messages.

    Raises:
        ValueError: it is not JSON, of a later format, or keys are missing or unknown.
    """
    where = f"the bridger_config in {source}"
    config: dict[str, Any] = parse_json(text, where)
    # A later format may have other keys, so its number comes first.
    version = config.get("format_version", FORMAT_VERSION) if isinstance(config, dict) else 1
    if type(version) is not int:
        raise ValueError(f'"format_version" of {where} must be a whole number, found {version!r}')
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{source.parent} has format {version}, this bridger reads up to "
            f"{FORMAT_VERSION}; upgrade with pip install -U bridger-peft"
        )
    _check(config, TOP, where)
    source_name = config.get("tower_source")
    if not isinstance(source_name, str | None):
        raise ValueError(
            f'"tower_source" of {where} must be a name of towers or null, found {source_name!r}'
        )
    _check(config["towers"], TOWERS, f'"towers" of {where}')
    for side in ("vision", "text"):
        _check_there(config["towers"][side], TOWER, f"the {side} tower of {where}")
    _check(config["encoder"], ENCODER, f'"encoder" of {where}')
    for part in config["encoder"].get("peft", []):
        _check(part, PEFT, f'"peft" of {where}')
    check_object(config["heads"], f'"heads" of {where}')
    for name, head in config["heads"].items():
        _check(head, HEAD, f"head {name!r} of {where}")
    return config


def _check(values: Any, keys: Keys, where: str) -> None:
    required, optional = keys
    _check_there(values, required, where)
    known = [*required, *optional]
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}: {did_you_mean(key, known)}")


def _check_there(values: Any, required: Sequence[str], where: str) -> None:
    check_object(values, where)
    if missing := [key for key in required if key not in values]:
        raise ValueError(f"{where} lacks {missing}: expected the keys that save_pretrained writes")
