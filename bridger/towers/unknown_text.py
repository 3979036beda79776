"""Text towers of no known family: read off a trial forward, or as the user describes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.base import is_a, state_of, unwrap, with_state
from bridger.towers.discovery import find_blocks
from bridger.towers.text import TextTower, fill_up, without_padding
from bridger.towers.text_calls import (
    LAYOUTS,
    UNLIMITED,
    Trial,
    Way,
    call_text,
    layout_of,
    longest_in,
    pad_id_of,
    same_for_real_tokens,
    sentence_of,
    tokens_in,
    try_lengths,
    vocabulary_in,
)
from bridger.towers.trial import Firing, UnreadableTowerError, watch


def generic_text(
    module: nn.Module,
    *,
    blocks: str | Sequence[str] | None = None,
    layout: str | None = None,
    max_length: int | None = None,
    vocab_size: int | None = None,
    pad_id: int | None = None,
) -> TextTower:
    """Describe a text encoder that no family knows, for `attach_bridgers` to take in its place.

    What is not said is read off trial forwards, which leave no trace on the module. A mask is
    passed where the module's `forward` takes one (`attention_mask`, `key_padding_mask` and the
    like). Where padding reaches real tokens all the same, texts are padded to `max_length`, so
    that what a text says never depends on what it is batched with.

    Args:
        module: an encoder whose `forward` takes ids (B, L) first.
        blocks: the name of a module whose children are the blocks, or the blocks' names, in the
            order in which they run.
        layout: of the blocks' states: "b l c" or "l b c".
        max_length: how many tokens a text may have; by default the rows of the position table.
        vocab_size: by default the rows of the embedding that the ids go into.
        pad_id: the id of padding; by default the config's or the embedding's, or 0.

    Returns:
        A tower whose sentence feature is the module's own (B, D), or the mean of real tokens.

    Raises:
        TypeError: the module takes no ids, generates text, or nothing in it looks like blocks.
        ValueError: something is ambiguous or does not hold; the message says which argument
            decides.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {list(LAYOUTS)}, found {layout!r}")
    inner = unwrap(module)
    _refuse_generators(inner)
    pad = pad_id_of(inner) if pad_id is None else pad_id
    trial, found = _tried(inner, pad, max_length, blocks)
    read = trial.layout(found)
    if layout not in (None, read):
        raise ValueError(f"layout={layout!r} does not fit: states are {found[0].shape}, {read!r}")
    vocab_size = vocab_size or vocabulary_in(trial.trace, trial.input_ids)
    if vocab_size is None:
        raise ValueError(
            f"no embedding of {type(inner).__name__} took the ids as they are, so the size of its "
            "vocabulary is not known: `vocab_size` decides"
        )
    width = found[0].shape[2]
    longest = longest_in(inner, trial.trace, trial.length, width)
    limit = max_length or (longest if trial.free else trial.length)
    way, padded = _padding(inner, trial, found[-1], read, pad, limit)
    tower = GenericText(module, found, read, way, pad)
    tower.max_length, tower.vocab_size, tower.fixed_length = limit, vocab_size, padded
    tower.read_widths(trial)
    return tower


def _tried(
    module: nn.Module, pad_id: int, max_length: int | None, blocks: str | Sequence[str] | None
) -> tuple[Trial, tuple[Firing, ...]]:
    """Return a trial in which blocks were found, and these."""
    trial = try_lengths(module, pad_id, max_length)
    try:
        return trial, find_blocks(module, trial.trace, trial.could_be_state, blocks)
    except (UnreadableTowerError, ValueError) as error:
        states = [f.state for f in trial.trace.firings if f.state is not None]
        understood = any(map(trial.could_be_state, states))
        if not trial.free or (max_length is None and understood):
            raise
        if max_length is None:
            raise type(error)(
                f"{error}\nThe trial had {trial.length} tokens. If the encoder pads texts by "
                "itself, `max_length` decides: a number of tokens that it leaves as they are"
            ) from error
        first = error
    try:
        trial = try_lengths(module, pad_id, max_length, free=False)
    except UnreadableTowerError:
        raise first from None
    return trial, find_blocks(module, trial.trace, trial.could_be_state, blocks)


def _padding(
    module: nn.Module, trial: Trial, block: Firing, layout: str, pad_id: int, limit: int
) -> tuple[Way, bool]:
    """Return how to pass masks, and whether texts must be padded to one length all the same."""
    ids, real = trial.input_ids.clone(), torch.ones_like(trial.input_ids, dtype=torch.bool)
    real[-1, -3:] = False
    ids[-1, -3:] = pad_id
    if not trial.free:
        return _way_with_padding(module, trial, ids, real), True
    for way in trial.ways:
        try:
            padded, alone = (
                watch(module, functools.partial(call_text, module, these, mask, way, {}))
                for these, mask in ((ids, real), (ids[-1:, :-3], real[-1:, :-3]))
            )
        except Exception:  # it takes texts of the first trial's length only, or no padding
            continue
        if same_for_real_tokens(padded, alone, block, layout, real):
            return way, False
    if limit == UNLIMITED:
        raise ValueError(
            f"padding changes what {type(module).__name__} makes of a text, so texts must all be "
            "padded to one length: `max_length` decides (or give its forward an `attention_mask`)"
        )
    return trial.ways[-1], True


def _way_with_padding(module: nn.Module, trial: Trial, ids: Tensor, real: Tensor) -> Way:
    errors = []
    for way in trial.ways:
        try:
            watch(module, functools.partial(call_text, module, ids, real, way, {}))
        except Exception as error:  # whatever an unknown module raises
            errors.append(f"{type(error).__name__}: {str(error)[:100]}")
            continue
        return way
    raise ValueError(
        f"{type(module).__name__} takes texts of {trial.length} tokens only, and none with padding "
        f"({'; '.join(dict.fromkeys(errors))}), so shorter texts cannot be passed: "
        "put it into a module whose forward pads or leaves out the mask"
    )


def _refuse_generators(module: Any) -> None:
    if is_a(module, "transformers", "PreTrainedModel") and module.can_generate():
        raise UnreadableTowerError(
            f"expected a text encoder, found the generative language model "
            f"{type(module).__name__}: pass its encoder, such as model.get_encoder() or "
            "model.base_model"
        )


class _Result(NamedTuple):
    """What a forward gave, with the mask that a mean needs: (B, L, C), any, (B, L)."""

    tokens: Tensor | None
    own: Any
    token_mask: Tensor


class GenericText(TextTower):
    """An unknown text encoder with states (B, L, C) or (L, B, C).

    Attributes:
        layout: of the blocks' states.
        way: how the mask is passed.
        fixed_length: whether texts are padded to `max_length`.
        pad_id: the id of padding.
        block_names: below the module that peft may have wrapped.
    """

    library = "generic"
    family = "text"
    fixed_length: bool

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Any module may be tried; this class stands in no registry."""
        return True

    def __init__(
        self, given: nn.Module, blocks: Sequence[Firing], layout: str, way: Way, pad_id: int
    ) -> None:
        """Hold the module and the blocks that a trial forward found."""
        self.module = unwrap(given)
        self.layout, self.way, self.pad_id = layout, way, pad_id
        self.block_names = [block.name for block in blocks]
        modules, widths = [b.module for b in blocks], [b.shape[2] for b in blocks]
        self.blocks = self._name_blocks(given, modules, widths, [None] * len(blocks))

    def read_widths(self, trial: Trial) -> None:
        """Set what a trial's result says; TypeError where it is about words to come."""
        tokens, last = tokens_in(trial.trace.result), self.blocks[-1].width
        kept = None if tokens is None else layout_of(tokens, trial.length)
        self._result_layout = kept
        self.token_width = last if tokens is None or kept is None else tokens.shape[2]
        if self.token_width == self.vocab_size and self.token_width != last:
            raise UnreadableTowerError(
                f"expected a text encoder, found {type(self.module).__name__}, which returns "
                f"{self.vocab_size} numbers a token, one for each word of its vocabulary: pass the "
                "encoder inside it"
            )
        blank = torch.zeros(*trial.input_ids.shape, self.token_width)
        mask = torch.ones(trial.input_ids.shape, dtype=torch.bool)
        self.sentence_width = sentence_of(trial.trace.result, blank, mask).shape[1]

    def describe(self) -> dict[str, Any]:
        """Return the tower's identity and all that `generic_text` must be told to repeat it."""
        return {
            **super().describe(),
            "class": type(self.module).__name__,
            "blocks": self.block_names,
            "layout": self.layout,
            "pad_id": self.pad_id,
            "mask": self.way.name,
            "fixed_length": self.fixed_length,
        }

    def position_names(self) -> tuple[str, ...]:
        """Return nothing: which tensors hold positions is not known."""
        return ()

    def default_mask(self, input_ids: Tensor) -> Tensor:
        """Return ids != pad_id; ValueError where a row is all padding, or padded on the left."""
        return without_padding(input_ids, self.pad_id)

    def pad(self, input_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad to one length where padding would change what a text says."""
        if not self.fixed_length:
            return input_ids, token_mask
        return fill_up(input_ids, token_mask, self.max_length, self.pad_id)

    def call(self, input_ids: Tensor, token_mask: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Run the module; see `TextTower.call`."""
        self._check_tensors(tensors)
        own = call_text(self.module, input_ids, token_mask, self.way, tensors)
        tokens = None if self._result_layout is None else tokens_in(own)
        if tokens is not None:
            tokens = rearrange(tokens, f"{self._result_layout} -> b l c")
        return _Result(tokens, own, token_mask)

    def read_tokens(self, block: int, output: Any) -> Tensor:
        """Return a block's state (B, L, C), turned where it is (L, B, C)."""
        return rearrange(state_of(output), f"{self.layout} -> b l c")

    def write_tokens(self, block: int, output: Any, tokens: Tensor) -> Any:
        """Return a block's output with other tokens; see `TextTower.write_tokens`."""
        turned = with_state(output, self.read_tokens(block, output))
        written = super().write_tokens(block, turned, tokens)
        return with_state(output, rearrange(state_of(written), f"b l c -> {self.layout}"))

    def tokens(self, last_state: Tensor, result: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the module's own tokens where it returns them, else the last block's."""
        own: Tensor | None = result.tokens
        return last_state if own is None else own

    def sentence(self, tokens: Tensor, input_ids: Tensor, result: Any) -> Tensor:
        """Return the module's own sentence feature, or the mean of the real tokens."""
        return sentence_of(result.own, tokens, result.token_mask)
