"""How unknown text modules are called and what their trial forwards say of ids and padding."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.text import mean_of_real
from bridger.towers.trial import (
    Firing,
    Trace,
    UnreadableTowerError,
    hinted,
    home_of,
    pooled_in,
    takes,
    tensors_in,
    watch,
)
from bridger.towers.views import view_changing, view_with

LAYOUTS = ("b l c", "l b c")
"""Layouts of states; the first is what the rest of the library reads."""

TEXTS, LENGTH = 2, 7
"""Of a trial: so many texts of so many tokens, if the module takes texts that short."""

UNLIMITED = 1_000_000
"""The longest text of a module without a position table."""

FIXED = (77, 64, 32, 16, 128, 256, 512, 12, 20, 24, 40, 48)
"""Lengths tried where texts of LENGTH tokens do not pass and the module names no length."""

MASKS = {
    "attention_mask": True,
    "key_padding_mask": False,
    "src_key_padding_mask": False,
    "padding_mask": False,
    "pad_mask": False,
}
"""Names under which modules take a mask (B, L), and what they expect at real tokens."""


class Way(NamedTuple):
    """One way to tell a module which tokens are real: an argument's name, and its dtype."""

    name: str | None
    dtype: torch.dtype = torch.bool


def ways_of(module: nn.Module) -> Iterator[Way]:
    """Yield the ways to be tried, no mask last."""
    for name, real in MASKS.items():
        if takes(module, name):
            yield from (Way(name, torch.int64), Way(name)) if real else (Way(name),)
    yield Way(None)


def call_text(
    module: nn.Module,
    input_ids: Tensor,
    token_mask: Tensor,
    way: Way,
    tensors: Mapping[str, Tensor],
) -> Any:
    """Run a module on ids (B, L) and a mask (B, L) bool, with `tensors` standing in."""
    view = _without_nesting(module, tensors)
    if way.name is None:
        return view(input_ids)
    mask = token_mask if MASKS[way.name] else ~token_mask
    return view(input_ids, **{way.name: mask.to(way.dtype)})


def _without_nesting(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a view in which `nn.TransformerEncoder` keeps its states padded.

    Under a mask it packs them into nested tensors, which Bridgers could neither read nor write.
    """
    nesting = [
        name
        for name, below in module.named_modules()
        if isinstance(below, nn.TransformerEncoder) and below.use_nested_tensor
    ]
    padded = {f"{name}.use_nested_tensor".lstrip("."): False for name in nesting}
    return view_changing(view_with(module, tensors), padded)


def trial_ids(module: nn.Module, length: int, pad_id: int) -> Tensor:
    """Return ids (TEXTS, length), small ones that every vocabulary has, none of them padding."""
    device = home_of(module).device
    words = torch.tensor([word for word in range(3, 8) if word != pad_id])
    generator = torch.Generator().manual_seed(0)
    return words[torch.randint(len(words), (TEXTS, length), generator=generator)].to(device)


def pad_id_of(module: nn.Module) -> int:
    """Return what a module's config, or an embedding's `padding_idx`, says, or 0."""
    for value in hinted(module, "pad_token_id", "padding_idx"):
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def layout_of(state: Tensor, length: int) -> str | None:
    """Return the layout of a trial's state, or None where it is no state of all tokens."""
    if state.ndim != 3 or state.is_nested or not state.is_floating_point():
        return None
    shapes = {(TEXTS, length): LAYOUTS[0], (length, TEXTS): LAYOUTS[1]}
    return shapes.get((state.shape[0], state.shape[1]))


def tokens_in(result: Any) -> Tensor | None:
    """Return the first per-token feature, three-dimensional, in a result, or None."""
    found = [t for t in tensors_in(result) if t.ndim == 3 and t.is_floating_point()]
    return next(iter(found), None)


def vocabulary_in(trace: Trace, input_ids: Tensor) -> int | None:
    """Return the rows of the embedding that took the ids, or None where none did."""
    for firing in trace.firings:
        given = firing.given
        if isinstance(firing.module, nn.Embedding) and given is not None:
            if any(
                given.shape == ids.shape and torch.equal(given, ids)
                for ids in (input_ids, input_ids.T)
            ):
                return firing.module.num_embeddings
    return None


def longest_in(module: nn.Module, trace: Trace, length: int, width: int) -> int:
    """Return how many tokens fit the position table, or UNLIMITED where none is found.

    The table is an embedding that took consecutive numbers, or a tensor called so.
    """
    for firing in trace.firings:
        given = firing.given
        if isinstance(firing.module, nn.Embedding) and given is not None and given.numel() > 1:
            row = given.reshape(-1)[:length]
            if len(row) == length and bool((row.diff() == 1).all()):
                # Some tables start behind the padding id.
                return firing.module.num_embeddings - int(row[0])
    tensors = [*module.named_parameters(), *module.named_buffers()]
    rows = [
        tensor.numel() // width
        for name, tensor in tensors
        if "pos" in name.lower() and tensor.ndim > 1 and tensor.shape[-1] == width
    ]
    names = ("max_position_embeddings", "context_length", "max_length", "max_len", "n_positions")
    hints = [hint for hint in hinted(module, *names) if isinstance(hint, int)]
    return min((n for n in [*rows, *hints] if n >= length), default=UNLIMITED)


def sentence_of(result: Any, tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Return the result's own feature (B, D), or the mean of the real tokens (B, L, C)."""
    pooled = pooled_in(result)
    return mean_of_real(tokens, token_mask) if pooled is None else pooled


def same_for_real_tokens(
    padded: Trace, alone: Trace, block: Firing, layout: str, token_mask: Tensor
) -> bool:
    """Whether a text says the same padded, as the last row of a batch, and alone."""
    length = int(token_mask[-1].sum())
    states = [
        rearrange(firing.state, f"{layout} -> b l c")[-1, :length]
        for trace in (padded, alone)
        for firing in trace.firings
        if firing.name == block.name and firing.state is not None
    ]
    pooled = [pooled_in(trace.result) for trace in (padded, alone)]
    pairs: Sequence[Sequence[Tensor]] = [states]
    if pooled[0] is not None and pooled[1] is not None:
        pairs = [states, [pooled[0][-1], pooled[1][-1]]]
    return all(_close(one, other) for one, other in pairs)


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 5e-2
    difference = (one.float() - other.float()).abs().max()
    return bool(difference <= tolerance * one.float().abs().max())


class Trial(NamedTuple):
    """A trial forward that went through, and the ways to pass a mask that do so too."""

    input_ids: Tensor
    trace: Trace
    ways: list[Way]

    @property
    def length(self) -> int:
        """Return how many tokens its texts have."""
        return self.input_ids.shape[1]

    @property
    def free(self) -> bool:
        """Whether the module takes texts of any length."""
        return self.length == LENGTH

    def could_be_state(self, state: Tensor) -> bool:
        """Whether a tensor could be a block's state, by its shape."""
        return layout_of(state, self.length) is not None

    def layout(self, blocks: Sequence[Firing]) -> str:
        """Return the one layout of all blocks; ValueError where there are two."""
        layouts = {
            layout_of(block.state, self.length) for block in blocks if block.state is not None
        }
        (layout,) = layouts if len(layouts) == 1 else (None,)
        if layout is None:
            shapes = [block.shape for block in blocks]
            raise ValueError(f"the blocks' states {shapes} differ in layout: name other `blocks`")
        return layout


def try_lengths(
    module: nn.Module, pad_id: int, max_length: int | None, *, free: bool = True
) -> Trial:
    """Run a module on texts of several lengths, short ones first, until one passes.

    Args:
        module: the text encoder.
        pad_id: the id of padding, which trial texts do not hold.
        max_length: the one length to try, where it takes no other.
        free: first see whether it takes any length.

    Raises:
        UnreadableTowerError: none passed; the message holds what the module raised.
    """
    errors: list[str] = []
    for length in _lengths(module, max_length, free):
        ids = trial_ids(module, length, pad_id)
        real = torch.ones_like(ids, dtype=torch.bool)
        ways, first = [], None
        for way in ways_of(module):
            try:
                trace = watch(module, functools.partial(call_text, module, ids, real, way, {}))
            except Exception as error:  # whatever an unknown module raises
                errors.append(f"{length} tokens: {type(error).__name__}: {str(error)[:100]}")
                continue
            first = first or trace
            ways.append(way)
        if first is not None:
            return Trial(ids, first, ways)
    raise UnreadableTowerError(
        f"{type(module).__name__} ran on ids (B, L) of no length that was tried "
        f"({'; '.join(errors[:3])}). Pass the text encoder alone, with `max_length` if it takes "
        "one length only: attach_bridgers(vision, generic_text(encoder, max_length=...))"
    )


def _lengths(module: nn.Module, max_length: int | None, free: bool) -> Iterator[int]:
    if free and (max_length is None or max_length > LENGTH):
        yield LENGTH
    hints = [
        hint
        for hint in hinted(module, "context_length", "max_position_embeddings", "max_length")
        if isinstance(hint, int) and LENGTH < hint <= 4096
    ]
    yield from dict.fromkeys([*hints, *FIXED]) if max_length is None else (max_length,)


def takes_ids(module: nn.Module) -> bool:
    """Whether the module runs on token ids of some usual length."""
    try:
        try_lengths(module, pad_id_of(module), None)
    except UnreadableTowerError:
        return False
    return True
