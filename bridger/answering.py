"""From pictures and words to a head's results: what `BridgedModel.predict` does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridger.attending import check_attention, with_attention
from bridger.bridgers.attention_maps import recording
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
    from bridger.processing import ImageLike, Placement, Processor

ROWS_AT_ONCE = 64
"""Sequences of text in one forward, over all of its pictures: what is more is asked in turn."""

PICTURES_AT_ONCE = 16
"""Most pictures of one forward; with more, memory grows and speed does not."""

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


def predict_each(
    model: BridgedModel,
    head: str,
    images: Sequence[ImageLike],
    words: Sequence[Any],
    rows_at_once: int,
    options: Mapping[str, Any],
    return_attention: bool = False,
) -> list[Any]:
    """Return each picture's result, of as many in one forward as may be; see `predict`."""
    chosen = model.heads[head]
    check_options(chosen, options)
    check_whole("rows_at_once", rows_at_once)
    if return_attention:
        check_attention(model, options)
    processor = required_processor(model)
    texts = texts_of_each(chosen, processor, words)
    results: dict[int, Any] = {}
    with in_eval_mode(model):
        if "window" in options:
            return [
                predict_in_windows(model, head, image, asked, rows_at_once, options)
                for image, asked in zip(images, texts, strict=True)
            ]
        for numbers in batches(texts, rows_at_once):
            pixels, placements = processor.images([images[i] for i in numbers])
            asked = [texts[i] for i in numbers]
            with recording(return_attention) as recorded:
                found, chunks = answer_batch(
                    model, head, pixels, placements, asked, rows_at_once, options
                )
            if return_attention:
                found = with_attention(model, found, recorded, chunks, placements)
            results.update(zip(numbers, found, strict=True))
    return [results[i] for i in range(len(results))]


def answer_batch(
    model: BridgedModel,
    head: str,
    pixels: Tensor,
    placements: Sequence[Placement],
    asked: Sequence[Texts],
    rows_at_once: int,
    options: Mapping[str, Any],
) -> tuple[list[Any], list[list[Texts]]]:
    """Return the results of B pictures, and for each the texts of the forwards that it took.

    Args:
        model: in eval mode.
        head: name of the head.
        pixels: (B, 3, H, W).
        placements: (B) where each picture lies in them.
        asked: (B) texts that can share a forward.
        rows_at_once: see `ROWS_AT_ONCE`.
        options: of the head's results.
    """
    chosen, processor = model.heads[head], required_processor(model)
    if all(one is asked[0] for one in asked):
        output = answer(model, head, pixels, asked[0], rows_at_once)
        found = chosen.results(output, processor, placements, asked[0], **options)
        return found, [asked[0].chunks(rows_at_once)] * len(asked)
    outputs = answer_each(model, head, pixels, asked)
    found = [
        chosen.results(output, processor, [placement], one, **options)[0]
        for output, placement, one in zip(outputs, placements, asked, strict=True)
    ]
    return found, [[one] for one in asked]


def predict_in_windows(
    model: BridgedModel,
    head: str,
    image: ImageLike,
    texts: Texts,
    rows_at_once: int,
    options: Mapping[str, Any],
) -> Any:
    """Return the result of one large picture, with `window` among the options."""

    def ask(pixels: Tensor) -> HeadOutput:
        return answer(model, head, pixels, texts, rows_at_once)

    at_once = max(1, rows_at_once // len(texts.input_ids))
    processor = required_processor(model)
    return in_windows(model.heads[head], ask, processor, image, texts, at_once=at_once, **options)


def texts_of_each(head: Head, processor: Processor, words: Sequence[Any]) -> list[Texts]:
    """Return the texts of each picture: the very same object where words are equal to the last."""
    texts: list[Texts] = []
    for number, said in enumerate(words):
        before = words[number - 1] if number else object()
        equal = said is before or (isinstance(said, (str, list, tuple)) and said == before)
        texts.append(texts[-1] if equal else head.texts(processor, said))
    return texts


def batches(texts: Sequence[Texts], rows_at_once: int) -> Iterator[list[int]]:
    """Yield the numbers of pictures that can share a forward: of one text, or as many sentences."""
    fitting: dict[int | tuple[int], list[int]] = {}
    for number, one in enumerate(texts):
        key = len(one.input_ids) if one.mentions is None else (id(one),)
        fitting.setdefault(key, []).append(number)
    for numbers in fitting.values():
        rows = len(texts[numbers[0]].input_ids)
        at_once = max(1, min(PICTURES_AT_ONCE, rows_at_once // rows))
        yield from (numbers[at : at + at_once] for at in range(0, len(numbers), at_once))


@torch.no_grad()
def answer_each(
    model: BridgedModel, head: str, pixel_values: Tensor, texts: Sequence[Texts]
) -> list[HeadOutput]:
    """Ask one head about every picture of a batch with sentences of its own, in one forward.

    Args:
        model: in eval mode.
        head: name of the head.
        pixel_values: (B, 3, H, W).
        texts: B of them, each of N sentences.

    Returns:
        B outputs, of one picture each.
    """
    device = next(model.parameters()).device
    length = max(one.input_ids.shape[1] for one in texts)
    pad_id = required_processor(model).words.pad_id
    ids = torch.stack([padded(one.input_ids, length, pad_id) for one in texts])
    mask = torch.stack([padded(one.attention_mask, length, False) for one in texts])
    features = model.encode(pixel_values.to(device), ids.to(device), mask.to(device))
    output = model.heads[head](features)
    return [output.of_picture(index) for index in range(len(texts))]


def padded(rows: Tensor, length: int, value: int | bool) -> Tensor:
    """Return rows (N, L) with a value behind them, (N, length)."""
    return F.pad(rows, (0, length - rows.shape[1]), value=value)


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
