"""The grammar of towers' names; to read one, nothing is loaded."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from bridger.hub_cache import commit_of, model_folder

KNOWN = (
    "tiny (the embedded pair), open_clip:MODEL[:WEIGHTS][@SIZE] such as "
    "open_clip:ViT-B-16-quickgelu:openai@416, transformers:MODEL[@REVISION][#CLASS] such as "
    "transformers:openai/clip-vit-base-patch16 or "
    "transformers:google-t5/t5-base#T5EncoderModel, "
    "etris:FILE[@WORDS] (a released ETRIS checkpoint), timm:MODEL[:WEIGHTS][@SIZE] and "
    "torchvision:MODEL[:WEIGHTS] for vision alone, and any two of these as VISION,TEXT"
)
VISION_ALONE = ("timm", "torchvision")
LIBRARIES = ("open_clip", "transformers", "etris", *VISION_ALONE)

# A comma may stand in a path, so only one in front of a text tower parts the two.
_PARTED = re.compile(rf",(?=tiny$|(?:{'|'.join(LIBRARIES)}):)")


class Checkpoint(NamedTuple):
    """What follows "transformers:".

    Attributes:
        model: an id on the Hub, or a folder.
        revision: branch, tag or commit; None: main.
        class_name: class of transformers; None: what its `AutoModel` makes of the model.
    """

    model: str
    revision: str | None
    class_name: str | None


def two_sides(name: str) -> tuple[str, str]:
    """Return the names of the vision and the text tower, equal where the two come together."""
    if name.startswith("etris:") and os.path.exists(split_words(name[6:])[0]):
        return name, name
    parts = _PARTED.split(name, maxsplit=1)
    return parts[0], parts[-1]


def check_name(name: str) -> str:
    """Return a pair's name.

    Raises:
        TypeError: it is no string.
        ValueError: it has another form than `bridger.load_towers` takes.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name of towers is a string, got {name!r}; known are {KNOWN}")
    vision, text = two_sides(name)
    for side in (vision, text):
        library, _, model = side.partition(":")
        if side != "tiny" and (library not in LIBRARIES or not model):
            raise ValueError(f"towers {name!r} are unknown; known are {KNOWN}")
        if library in ("open_clip", "timm"):
            split_size(model)
        if library == "transformers":
            split_checkpoint(model)
    if text.partition(":")[0] in VISION_ALONE:
        raise ValueError(f"{text!r} is a vision tower alone: expected VISION,TEXT, or {KNOWN}")
    return name


def split_size(model: str) -> tuple[str, int | None]:
    """Split MODEL[:WEIGHTS][@SIZE] at the size; a path may hold an @, too.

    Raises:
        ValueError: the size is no whole number of pixels.
    """
    rest, at, size = model.rpartition("@")
    if not at or os.path.isfile(model.partition(":")[2]):
        return model, None
    if size.isdecimal() and int(size):
        return rest, int(size)
    if "/" in size or os.sep in size:
        return model, None
    raise ValueError(f"the size after @ is a whole number of pixels, got {size!r}")


def split_weights(model: str) -> tuple[str, str]:
    """Split MODEL[:WEIGHTS] at the first colon: a path may hold more of them."""
    name, _, weights = model.partition(":")
    return name, os.path.expanduser(weights)


def split_sized(model: str) -> tuple[str, str, int | None]:
    """Split MODEL[:WEIGHTS][@SIZE]; see `split_size` and `split_weights`."""
    sized, size = split_size(model)
    return *split_weights(sized), size


def split_words(model: str) -> tuple[str, int | None]:
    """Split FILE[@WORDS]."""
    file, _, words = model.rpartition("@")
    if not words.isdecimal() or not file or os.path.exists(model):
        return model, None
    return file, int(words)


def split_checkpoint(model: str) -> Checkpoint:
    """Split MODEL[@REVISION][#CLASS]; a path may hold both marks, too.

    Raises:
        ValueError: what follows # is no name of a class.
    """
    model = os.path.expanduser(model)
    if os.path.exists(model):
        return Checkpoint(model, None, None)
    rest, mark, class_name = model.rpartition("#")
    if mark and not class_name.isidentifier():
        raise ValueError(f"after # stands a class of transformers, got {class_name!r} in {model!r}")
    rest = rest if mark else model
    path, at, revision = rest.rpartition("@")
    if not at or os.path.exists(rest):
        return Checkpoint(rest, None, class_name if mark else None)
    return Checkpoint(path, revision, class_name if mark else None)


def lasting(name: str) -> str:
    """Return one side's name so that it means the same from another folder, and tomorrow.

    Paths become absolute, and a model of transformers is named with the commit that is cached.

    Args:
        name: of one tower, or of two that come together, which were just loaded.
    """
    library, _, model = name.partition(":")
    if library == "transformers":
        path, revision, class_name = split_checkpoint(model)
        kind = f"#{class_name}" if class_name else ""
        if os.path.isdir(path):
            return f"transformers:{os.path.abspath(path)}{kind}"
        folder = model_folder(path, revision)
        at = revision if folder is None else commit_of(folder)
        return f"transformers:{path}{f'@{at}' if at else ''}{kind}"
    if library == "etris":
        file, words = split_words(model)
        return f"etris:{os.path.abspath(file)}" + (f"@{words}" if words else "")
    if library in ("open_clip", "timm"):
        model, weights, size = split_sized(model)
        if os.path.isfile(weights):
            return f"{library}:{model}:{os.path.abspath(weights)}" + (f"@{size}" if size else "")
    return name
