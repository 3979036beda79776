"""Towers by name, so that recipes and the command line can say which pair they mean."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bridger.tower_source import remember

if TYPE_CHECKING:
    from torch import nn

    from bridger.known_towers import Pictures
    from bridger.processing import Processor

KNOWN = (
    "tiny (the embedded pair), open_clip:MODEL[:WEIGHTS][@SIZE] such as "
    "open_clip:ViT-B-16-quickgelu:openai@416, transformers:MODEL[@REVISION] such as "
    "transformers:openai/clip-vit-base-patch16, etris:FILE[@WORDS] (a released ETRIS checkpoint), "
    "timm:MODEL[:WEIGHTS][@SIZE] and torchvision:MODEL[:WEIGHTS] for vision alone, and any two of "
    "these as VISION,TEXT"
)
UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "URLError", "ConnectionError")
"""What libraries raise where a download fails, by class name: they are not all installed."""

# A comma may stand in a path, so only one in front of a text tower parts the two.
_PARTED = re.compile(r",(?=tiny$|(?:open_clip|transformers|etris|timm|torchvision):)")


def load_towers(
    name: str, *, trust_remote_code: bool = False
) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load a pair of towers, which remember the name: an adapter saves it.

    Args:
        name: `tiny`, the embedded pair; `open_clip:MODEL[:WEIGHTS][@SIZE]`, with WEIGHTS one of
            open_clip's tags or a file, and SIZE the side of the pictures in pixels;
            `transformers:MODEL[@REVISION]`; `etris:FILE[@WORDS]`, the towers in a released ETRIS
            checkpoint, with WORDS the tokens of a text, which it does not tell (17, or 22 for
            G-Ref; by default 17); or `VISION,TEXT`, one of each, where the vision tower may be
            `timm:MODEL[:WEIGHTS][@SIZE]` or `torchvision:MODEL[:WEIGHTS]` too. Without WEIGHTS,
            open_clip's, timm's and torchvision's are random.
        trust_remote_code: whether code that a model of transformers brings along may be run.

    Returns:
        The vision tower, the text tower, and the processor where it comes with them.

    Raises:
        ValueError: the name has another form, or means nothing to its library.
        OSError: weights are neither on this machine nor to be had.
    """
    parts = [] if name.startswith("etris:") else _PARTED.split(name, maxsplit=1)
    if len(parts) == 2 and parts[0] != parts[1]:
        vision, text, processor = _two(parts[0], parts[1], trust_remote_code)
    else:
        vision, text, processor = _one(parts[-1] if parts else name, trust_remote_code)
    remember(vision, parts[0] if parts else name)
    remember(text, parts[-1] if parts else name)
    return vision, text, processor


def _one(name: str, trust_remote_code: bool) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load two towers that come together."""
    library, _, model = name.partition(":")
    if name == "tiny":
        from bridger.tiny_clip import load_tiny_clip

        return load_tiny_clip()
    if library == "open_clip" and model:
        from bridger.named_towers.open_clip_pair import load_open_clip

        model, size = _with_size(model)
        with _downloading(name):
            clip = load_open_clip(*_with_weights(model), size)
        return clip.visual, clip, None
    if library == "transformers" and model:
        both = _from_transformers(name, model, trust_remote_code)
        return both, both, None
    if library == "etris" and model:
        return _from_etris(model)
    if library in ("timm", "torchvision") and model:
        raise ValueError(f"{name!r} is a vision tower alone: expected VISION,TEXT, or {KNOWN}")
    raise ValueError(f"towers {name!r} are unknown; known are {KNOWN}")


def _from_transformers(name: str, model: str, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModel

    path, at, revision = model.rpartition("@")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if at and not os.path.exists(model):
        model, options["revision"] = path, revision
    with _downloading(name):
        both: nn.Module = AutoModel.from_pretrained(model, **options)
    return both


def _two(
    vision: str, text: str, trust_remote_code: bool
) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load two towers that do not come together."""
    library, _, model = vision.partition(":")
    text_tower = _one(text, trust_remote_code)[1]
    if library == "timm" and model:
        tower, pictures = _from_timm(vision, model)
        return tower, text_tower, _processor(pictures, text_tower)
    if library == "torchvision" and model:
        import torchvision

        model, weights = _with_weights(model)
        with _downloading(vision):
            return torchvision.models.get_model(model, weights=weights or None), text_tower, None
    return _one(vision, trust_remote_code)[0], text_tower, None


def _from_timm(name: str, model: str) -> tuple[nn.Module, Pictures]:
    """Load timm's model; return how it takes pictures beside it."""
    import timm

    from bridger.known_towers import Pictures

    model, size = _with_size(model)
    model, weights = _with_weights(model)
    local = {"pretrained_cfg_overlay": {"file": weights}} if os.path.isfile(weights) else {}
    tagged = f"{model}.{weights}" if weights and not local else model
    with _downloading(name):
        tower: Any = timm.create_model(tagged, pretrained=bool(weights), num_classes=0, **local)
    config = tower.pretrained_cfg
    return tower, Pictures(size or config["input_size"][-1], config["mean"], config["std"])


def _processor(pictures: Pictures, text: nn.Module) -> Processor | None:
    """Return the processor for a vision tower's pictures and a text tower's words."""
    from bridger.known_towers import known_words
    from bridger.processing import Processor

    words = known_words(text)
    return None if words is None else Processor(*pictures, *words)


def _with_size(model: str) -> tuple[str, int | None]:
    """Split MODEL[:WEIGHTS][@SIZE] at the size; a path may hold an @, too."""
    rest, at, size = model.rpartition("@")
    if not at or os.path.isfile(model.partition(":")[2]):
        return model, None
    if size.isdecimal() and int(size):
        return rest, int(size)
    if "/" in size or os.sep in size:
        return model, None
    raise ValueError(f"the size after @ is a whole number of pixels, got {size!r}")


def _with_weights(model: str) -> tuple[str, str]:
    """Split MODEL[:WEIGHTS] at the first colon: a path may hold more of them."""
    name, _, weights = model.partition(":")
    return name, os.path.expanduser(weights)


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Say in one line what could not be downloaded, in place of the libraries' retries.

    Raises:
        OSError: a download failed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except Exception as error:
        if not any(_unreached(cause) for cause in _causes(error)):
            raise
        raise OSError(
            f"the weights of {name} are not on this machine, and could not be downloaded: connect "
            f"it once{_local(name)}"
        ) from error
    finally:
        logging.disable(before)


def _local(name: str) -> str:
    """Return how the same tower is named with weights that are on this machine already."""
    library, _, model = name.partition(":")
    if library not in ("open_clip", "timm", "transformers"):
        return ""
    local = "/path/to/folder"
    if library != "transformers":
        model, size = _with_size(model)
        local = f"{_with_weights(model)[0]}:/path/to/weights.pt{f'@{size}' if size else ''}"
    return f", or give a copy of your own, as in --set towers={library}:{local}"


def _unreached(error: BaseException) -> bool:
    return any(cls.__name__ in UNREACHED for cls in type(error).__mro__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _from_etris(path: str) -> tuple[nn.Module, nn.Module, Processor | None]:
    from bridger import etris

    file, _, words = path.rpartition("@")
    given = words.isdecimal() and not os.path.exists(path)
    model = etris.load(file, int(words)) if given else etris.load(path)
    model.detach()
    return model.encoder.vision.module, model.encoder.text.module, model.processor
