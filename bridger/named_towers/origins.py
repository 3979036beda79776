"""Where towers come from, for others than the one who has them: on the Hub, or on one machine."""

from __future__ import annotations

from typing import NamedTuple

from bridger.named_towers.names import split_checkpoint, split_sized, two_sides
from bridger.tower_source import is_path


class Origin(NamedTuple):
    """Where one tower, or two that come together, come from.

    Attributes:
        name: by which `load_towers` makes them, without the path of a file on this machine.
        hub_id: of the model on the Hub; None where it is not known.
        is_local: whether they are files on this machine, which others do not have.
    """

    name: str
    hub_id: str | None = None
    is_local: bool = False


def origins_of(name: str) -> list[Origin]:
    """Return where the towers of a name come from: one entry, or vision and text.

    Args:
        name: as for `load_towers`; what it stands for need not be here.
    """
    return [_origin(side) for side in dict.fromkeys(two_sides(name))]


def _origin(name: str) -> Origin:
    library, _, model = name.partition(":")
    if library == "etris":
        return Origin("etris:FILE", is_local=True)
    if library == "transformers":
        checkpoint = split_checkpoint(model)
        if is_path(checkpoint.model):
            kind = f"#{checkpoint.class_name}" if checkpoint.class_name else ""
            return Origin(f"transformers:FOLDER{kind}", is_local=True)
        return Origin(name, checkpoint.model)
    if library in ("open_clip", "timm"):
        model, weights, size = split_sized(model)
        if weights and is_path(weights):
            return Origin(f"{library}:{model}:FILE{f'@{size}' if size else ''}", is_local=True)
        return Origin(name, _hub_id(library, model, weights) if weights else None)
    return Origin(name)


def _hub_id(library: str, model: str, weights: str) -> str | None:
    """Return where a library would download weights from, if that is the Hub."""
    if library == "open_clip":
        import open_clip

        found = open_clip.get_pretrained_cfg(model.replace("/", "-"), weights).get("hf_hub")
    else:
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(f"{model}.{weights}")
        found = config and config.hf_hub_id
    return "/".join(found.split("/")[:2]) if found else None
