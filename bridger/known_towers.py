"""Which pictures and which words two given towers were trained with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

EMBEDDED = Path(__file__).parent / "assets" / "tiny_clip"
LONGEST_GUESS = 1_000_000
"""Tokenizers without a limit name one beyond this."""


class Pictures(NamedTuple):
    """How a vision tower takes its pictures."""

    image_size: int | tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Sentences(NamedTuple):
    """How a text tower takes its words."""

    tokenizer: Any
    max_length: int


def known_inputs(vision: nn.Module, text: nn.Module) -> tuple[Pictures, Sentences] | None:
    """Return how two towers take pictures and words, or None where one side cannot be known.

    Attaching must work without a network and whatever lies in the cache, so nothing is
    downloaded, and a guess that fails is no error.
    """
    pictures = _first(vision, _embedded_pictures, _open_clip_pictures, _transformers_pictures)
    if pictures is None:
        return None
    sentences = known_words(text)
    return None if sentences is None else (pictures, sentences)


def known_words(text: nn.Module) -> Sentences | None:
    """Return how a text tower takes its words, or None where that cannot be known."""
    known: Sentences | None = _first(text, _embedded_words, _open_clip_words, _transformers_words)
    return known


def embedded_config() -> Any:
    """Return open_clip's config of the embedded pair."""
    return json.loads((EMBEDDED / "open_clip_config.json").read_text())


def embedded_inputs() -> tuple[Pictures, Sentences]:
    """Return how the embedded pair takes pictures and words."""
    from transformers import PreTrainedTokenizerFast

    config = embedded_config()
    model, preprocess = config["model_cfg"], config["preprocess_cfg"]
    size = model["vision_cfg"]["image_size"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(EMBEDDED))
    return (
        Pictures(size, tuple(preprocess["mean"]), tuple(preprocess["std"])),
        Sentences(tokenizer, model["text_cfg"]["context_length"]),
    )


def _first(module: nn.Module, *ways: Callable[[nn.Module], Any]) -> Any:
    for way in ways:
        try:
            found = way(module)
        except Exception:  # not on this machine, broken, or only alike: then it is not known
            continue
        if found is not None:
            return found
    return None


def _embedded_pictures(module: Any) -> Pictures | None:
    """The embedded vision tower is known by its shape, which no published model has."""
    visual = getattr(module, "visual", module)
    if type(visual).__name__ != "ModifiedResNet":
        return None
    vision = embedded_config()["model_cfg"]["vision_cfg"]
    blocks = [len(getattr(visual, f"layer{i}")) for i in (1, 2, 3, 4)]
    found = (blocks, visual.conv1.weight.shape[0], visual.image_size)
    expected = (vision["layers"], vision["width"] // 2, vision["image_size"])
    return embedded_inputs()[0] if found == expected else None


def _embedded_words(module: nn.Module) -> Sentences | None:
    text = embedded_config()["model_cfg"]["text_cfg"]
    module = getattr(module, "text", module)
    table = getattr(module, "token_embedding", None)
    shape = tuple(table.weight.shape) if isinstance(table, nn.Embedding) else None
    length = getattr(module, "context_length", None)
    if shape != (text["vocab_size"], text["width"]) or length != text["context_length"]:
        return None
    return embedded_inputs()[1]


def _open_clip_pictures(module: nn.Module) -> Pictures | None:
    config = getattr(getattr(module, "visual", module), "preprocess_cfg", None)
    if not isinstance(config, dict):
        return None
    size = config["size"]
    size = size if isinstance(size, int) else tuple(size)
    return Pictures(size, tuple(config["mean"]), tuple(config["std"]))


def _open_clip_words(module: nn.Module) -> Sentences | None:
    from bridger.words import OPEN_CLIP_VOCABULARY

    module = getattr(module, "text", module)
    length = getattr(module, "context_length", None)
    if getattr(module, "vocab_size", None) != OPEN_CLIP_VOCABULARY or length is None:
        return None
    from open_clip.tokenizer import SimpleTokenizer

    return Sentences(SimpleTokenizer(context_length=length), length)


def _transformers_pictures(module: Any) -> Pictures | None:
    if (folder := _checkpoint_of(module)) is None:
        return None
    from transformers import AutoImageProcessor

    from bridger.words import OWN_FILES_ALONE

    processor = AutoImageProcessor.from_pretrained(folder, **OWN_FILES_ALONE)
    mean, std = processor.image_mean, processor.image_std
    config = getattr(module.config, "vision_config", module.config)
    size = config.image_size
    return Pictures(size if isinstance(size, int) else tuple(size), tuple(mean), tuple(std))


def _transformers_words(module: Any) -> Sentences | None:
    if (folder := _checkpoint_of(module)) is None:
        return None
    from transformers import AutoTokenizer

    from bridger.words import OWN_FILES_ALONE

    tokenizer = AutoTokenizer.from_pretrained(folder, **OWN_FILES_ALONE)
    config = getattr(module.config, "text_config", module.config)
    limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    known = [limit for limit in limits if limit is not None and limit < LONGEST_GUESS]
    return Sentences(tokenizer, min(known)) if known else None


def _checkpoint_of(module: Any) -> str | None:
    """Return the folder that a model of transformers was loaded from, if it is on this machine.

    The library is given folders alone: for a name it asks the Hub, whatever it is told.
    """
    from bridger.hub_cache import model_folder

    name = getattr(module, "name_or_path", None) if hasattr(module, "config") else None
    if not name:
        return None
    folder = model_folder(name, getattr(module.config, "_commit_hash", None))
    return None if folder is None else str(folder)
