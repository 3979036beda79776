"""Towers by name, so that recipes and the command line can say which pair they mean."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from bridger.named_towers.downloads import allow_download, offline
from bridger.named_towers.loading import loading
from bridger.named_towers.names import (
    KNOWN,
    check_name,
    lasting,
    split_checkpoint,
    split_sized,
    split_weights,
    split_words,
    two_sides,
)
from bridger.tower_source import remember

if TYPE_CHECKING:
    from torch import nn

    from bridger.known_towers import Pictures
    from bridger.processing import Processor

    Towers = tuple[nn.Module, nn.Module, Processor | None]


def load_towers(
    name: str, *, download: bool | None = True, trust_remote_code: bool = False
) -> tuple[nn.Module, nn.Module, Processor | None]:
    """Load a pair of towers, which remember the name: an adapter saves it.

    The same name gives the same towers, to the last bit: what no weights are loaded for is
    random, but drawn from the same seed each time. Torch's own random numbers go on as if nothing
    had been drawn. Files are read for tensors alone; no pickle in them is run.

    Args:
        name: `tiny`, the embedded pair; `open_clip:MODEL[:WEIGHTS][@SIZE]`, with WEIGHTS one of
            open_clip's tags or a file, and SIZE the side of the pictures in pixels;
            `transformers:MODEL[@REVISION][#CLASS]`, with MODEL an id on the Hub or a folder, and
            CLASS what of transformers is to load it, such as T5EncoderModel (by default what its
            AutoModel takes); `etris:FILE[@WORDS]`, the towers in a released ETRIS
            checkpoint, with WORDS the tokens of a text, which it does not tell (17, or 22 for
            G-Ref; by default 17); or `VISION,TEXT`, one of each, where the vision tower may be
            `timm:MODEL[:WEIGHTS][@SIZE]` or `torchvision:MODEL[:WEIGHTS]` too. Without WEIGHTS,
            open_clip's, timm's and torchvision's are random.
        download: whether weights may be downloaded. None: yes up to a gigabyte; above it a
            terminal is asked, and without one they are refused.
        trust_remote_code: whether code that a model of transformers brings along may be run.

    Returns:
        The vision tower, the text tower, and the processor where it comes with them.

    Warns:
        UserWarning: a checkpoint of transformers lacks tensors of the model, such as a pooler's.

    Raises:
        ValueError: the name has another form, or means nothing to its library; a model brings
            code along that may not be run; a file holds other things than tensors.
        OSError: weights are neither on this machine nor to be had, or may not be downloaded.
    """
    vision_name, text_name = two_sides(check_name(name))
    with loading(name):
        allow_download(name, download)
    with offline() if download is False else nullcontext():
        if vision_name == text_name:
            vision, text, processor = _one(text_name, trust_remote_code)
        else:
            vision, text, processor = _two(vision_name, text_name, trust_remote_code)
    for tower, side in ((vision, vision_name), (text, text_name)):
        remember(tower, lasting(side))
    return vision, text, processor


def _one(name: str, trust_remote_code: bool) -> Towers:
    """Load two towers that come together."""
    library, _, model = name.partition(":")
    if library == "open_clip":
        from bridger.named_towers.open_clip_pair import load_open_clip

        with loading(name):
            clip = load_open_clip(*split_sized(model))
        return clip.visual, clip, None
    if library == "transformers":
        both = _from_transformers(name, model, trust_remote_code)
        return both, both, None
    if library == "etris":
        return _from_etris(model)
    from bridger.tiny_clip import load_tiny_clip

    return load_tiny_clip()


def _two(vision: str, text: str, trust_remote_code: bool) -> Towers:
    """Load two towers that do not come together."""
    library, _, model = vision.partition(":")
    text_tower = _one(text, trust_remote_code)[1]
    if library == "timm":
        tower, pictures = _from_timm(vision, model)
        return tower, text_tower, _processor(pictures, text_tower)
    if library == "torchvision":
        import torchvision

        model, weights = split_weights(model)
        with loading(vision):
            return torchvision.models.get_model(model, weights=weights or None), text_tower, None
    return _one(vision, trust_remote_code)[0], text_tower, None


def _from_transformers(name: str, model: str, trust_remote_code: bool) -> nn.Module:
    import transformers

    path, revision, class_name = split_checkpoint(model)
    if os.path.isabs(path) and not os.path.isdir(path):
        raise FileNotFoundError(f"there is no folder {path}")
    kind: Any = transformers.AutoModel
    if class_name is not None:
        kind = getattr(transformers, class_name, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise ValueError(f"transformers has no model of the class {class_name!r} ({name})")
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    with loading(name):
        both, found = kind.from_pretrained(
            path, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        warnings.warn(
            f"the checkpoint of {name} lacks {', '.join(missing[:4])}"
            f"{' and others' if missing[4:] else ''}: they are random, the same each time",
            UserWarning,
            stacklevel=4,
        )
    tower: nn.Module = both
    return tower


def _from_timm(name: str, model: str) -> tuple[nn.Module, Pictures]:
    """Load timm's model; return how it takes pictures beside it."""
    import timm

    from bridger.known_towers import Pictures

    model, weights, size = split_sized(model)
    local = {"pretrained_cfg_overlay": {"file": weights}} if os.path.isfile(weights) else {}
    tagged = f"{model}.{weights}" if weights and not local else model
    with loading(name):
        tower: Any = timm.create_model(tagged, pretrained=bool(weights), num_classes=0, **local)
    config = tower.pretrained_cfg
    return tower, Pictures(size or config["input_size"][-1], config["mean"], config["std"])


def _processor(pictures: Pictures, text: nn.Module) -> Processor | None:
    """Return the processor for a vision tower's pictures and a text tower's words."""
    from bridger.known_towers import known_words
    from bridger.processing import Processor

    words = known_words(text)
    return None if words is None else Processor(*pictures, *words)


def _from_etris(path: str) -> Towers:
    from bridger import etris

    file, words = split_words(path)
    model = etris.load(file) if words is None else etris.load(file, words)
    model.detach()
    return model.encoder.vision.module, model.encoder.text.module, model.processor


__all__ = ["KNOWN", "load_towers"]
