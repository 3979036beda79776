"""From pictures and words to a head's results: what `BridgedModel.predict` does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bridger.config import check_whole, did_you_mean
from bridger.encoder import BridgedEncoder
from bridger.features import TextFeatures
from bridger.freezing import in_eval_mode
from bridger.heads import Head, HeadOutput
from bridger.heads.windows import in_windows
from bridger.text_cache import cache_of
from bridger.texts import Texts

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.processing import ImageLike, Processor

ROWS_AT_ONCE = 64
"""Sequences of text for each picture of one forward; more are asked in chunks, to fit memory."""

TEXT_KEYS = ("input_ids", "attention_mask", "expression_mask", "mentions")
"""What a text consists of, in a batch."""


@torch.no_grad()
def answer(
    model: BridgedModel,
    head: str,
    pixel_values: Tensor,
    texts: Texts,
    rows_at_once: int = ROWS_AT_ONCE,
) -> HeadOutput:
    """Ask one head about every picture of a batch, in as many forwards as the texts need.

    Args:
        model: in eval mode.
        head: name of the head.
        pixel_values: (B, 3, H, W).
        texts: what is asked of every picture.
        rows_at_once: see `ROWS_AT_ONCE`.
    """
    chosen = model.heads[head]
    device = next(model.parameters()).device
    pixel_values = pixel_values.to(device)
    outputs = []
    read = reader_of(model.encoder, texts)
    for chunk in texts.chunks(rows_at_once):
        chunk = chunk.to(device)
        if read is None:
            given = chunk.batch(len(pixel_values))
        else:
            text = read(chunk.input_ids, chunk.attention_mask)
            given = {"text": text, "mentions": chunk.mentions}
        outputs.append(chosen(model.encode(pixel_values, **given)))
    return chosen.merge(outputs)


def reader_of(
    encoder: BridgedEncoder, texts: Texts
) -> Callable[[Tensor, Tensor], TextFeatures] | None:
    """Return what reads texts once for all pictures, or None where each picture changes them."""
    if encoder.training or not encoder.text_alone:
        return None
    # One sentence is not worth keeping: to see whether it may be believed takes as long.
    return (
        encoder.read_text if len(texts.input_ids) == 1 else partial(cache_of(encoder).read, encoder)
    )


def predict_one(
    model: BridgedModel,
    head: str,
    image: ImageLike,
    words: Any,
    rows_at_once: int,
    options: Mapping[str, Any],
) -> Any:
    """Return one picture's result; see `BridgedModel.predict`."""
    chosen = model.heads[head]
    check_options(chosen, options)
    check_whole("rows_at_once", rows_at_once)
    processor = required_processor(model)
    texts = chosen.texts(processor, words)
    with in_eval_mode(model):

        def ask(pixels: Tensor) -> HeadOutput:
            return answer(model, head, pixels, texts, rows_at_once)

        if "window" in options:
            at_once = max(1, rows_at_once // len(texts.input_ids))
            return in_windows(chosen, ask, processor, image, texts, at_once=at_once, **options)
        pixels, placement = processor.image(image)
        output = ask(pixels.unsqueeze(0))
    return chosen.results(output, processor, [placement], texts, **options)[0]


def check_options(head: Head, options: Mapping[str, Any]) -> None:
    """Refuse options of `predict` that would say nothing to a head.

    Raises:
        TypeError: the head has no such option, or `overlap` has no `window`.
        ValueError: a threshold that cannot be.
    """
    known = list(head.result_options())
    kind = type(head).__name__
    for name in options:
        if name not in known:
            have = did_you_mean(name, known) if known else "it has none"
            raise TypeError(f"{kind} has no option {name!r} for predict: {have}")
    threshold = options.get("threshold", 0)
    if not isinstance(threshold, Real) or not 0 <= float(threshold) <= 1:
        raise ValueError(f"threshold lies between 0 and 1, got {threshold!r}")
    if "overlap" in options and "window" not in options:
        raise TypeError("overlap= is that of windows: say how large these are, window=")


def required_processor(model: BridgedModel) -> Processor:
    """Return the model's processor.

    Raises:
        RuntimeError: it has none.
    """
    if model.processor is None:
        raise RuntimeError(
            "predict needs a processor and none could be inferred from the towers; set "
            "model.processor = bridger.Processor(image_size, mean, std, tokenizer, max_length)"
        )
    return model.processor


def texts_by_head(
    model: BridgedModel,
    flat: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, Any]] | None,
    targets: Mapping[str, Any],
) -> dict[str, tuple[list[str], Mapping[str, Any]]]:
    """Group heads by the text that they read, so that each text is run once.

    Args:
        model: its heads in order.
        flat: the one text of a batch, by `TEXT_KEYS`, None where not given.
        texts: texts by name: a head reads the one that has the head's own name, or else the one
            called as its kind, "expressions" or "classes"; a head without either rests.
        targets: labels by head name.

    Returns:
        By the text's name the heads that read it, and its tensors.

    Raises:
        TypeError: both or neither are given, or texts are no dict of dicts.
        ValueError: there is no text, one has an unknown key or no head that reads it, or a head
            with labels has none.
    """
    given = {key: value for key, value in flat.items() if value is not None}
    if (texts is None) == (not given):
        raise TypeError("pass either input_ids (and what belongs to them), or texts by name")
    if texts is None:
        return {"": (list(model.heads), given)}
    if not isinstance(texts, Mapping) or not all(isinstance(t, Mapping) for t in texts.values()):
        raise TypeError(
            f"texts must be a dict of texts by name, each a dict of {TEXT_KEYS}, got {texts!r}"
        )
    if not texts:
        raise ValueError("texts holds no text: pass one by the name or the kind of each head")
    for name, text in texts.items():
        if unknown := set(text) - set(TEXT_KEYS):
            raise ValueError(f"text {name!r} has {sorted(unknown)}; it may have {TEXT_KEYS}")
    groups: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for name, head in model.heads.items():
        key = name if name in texts else head.text
        if key in texts:
            groups.setdefault(key, ([], texts[key]))[0].append(name)
    if unread := set(texts) - set(groups):
        kinds = {name: head.text for name, head in model.heads.items()}
        raise ValueError(f"no head reads the texts {sorted(unread)}; the heads read {kinds}")
    reading = [name for names, _ in groups.values() for name in names]
    if silent := [name for name in targets if name not in reading]:
        raise ValueError(
            f"there are labels for {silent[0]!r}, and no text for it: texts must hold "
            f"{silent[0]!r} or {model.heads[silent[0]].text!r}, got {sorted(texts)}"
        )
    return groups


def joined(words: Any, images: Sequence[Any]) -> list[Any]:
    """Return one entry of words for each picture of several: the same ones, or as many.

    Raises:
        TypeError: the words are no list.
        ValueError: as many texts as pictures are missing.
    """
    if words is None:
        return [None] * len(images)
    if not isinstance(words, Collection):
        raise TypeError(f"{len(images)} pictures need as many texts, got {words!r}")
    if isinstance(words, str) or len(words) != len(images):
        count = 1 if isinstance(words, str) else len(words)
        raise ValueError(f"{len(images)} pictures need as many texts, got {count}")
    return list(words)
