"""Texts that are the same beside every picture are read once, and kept from picture to picture.

What is kept is believed while no tensor of the text's side has changed, and while the first text
that was read still reads the same, to the last bit. The latter is run again for every batch of
pictures: it sees what tensors do not tell, such as writes through `.data`, the switches of peft's
layers, hooks and autocast.

Shapes: S texts, L tokens.
"""

from __future__ import annotations

from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from bridger.disabling import is_disabled
from bridger.encoder import BridgedEncoder
from bridger.features import TextFeatures
from bridger.tensor_state import same_state, version_of

CACHE_BYTES = 256 * 2**20
"""So much is kept of each encoder's texts at most, on their device; the oldest go first."""


class TextCache:
    """What an encoder reads, in eval mode, of texts to which no Bridger writes.

    Args:
        encoder: see `BridgedEncoder.text_alone`.

    Attributes:
        state: what the texts depend on, of the time of the first reading.
    """

    def __init__(self, encoder: BridgedEncoder) -> None:
        self.state = _state(encoder)
        self._first: tuple[Tensor, Tensor, TextFeatures] | None = None
        self._kept: dict[Any, TextFeatures] = {}
        self._bytes = 0
        self._lock = Lock()

    def holds(self, encoder: BridgedEncoder) -> bool:
        """Whether the encoder would still read what is kept."""
        if not same_state(self.state, _state(encoder)):
            return False
        if self._first is None:
            return True
        ids, mask, before = self._first
        now = encoder.read_text(ids, mask)
        pairs = ((now.tokens, before.tokens), (now.sentence, before.sentence))
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)

    def read(
        self, encoder: BridgedEncoder, input_ids: Tensor, attention_mask: Tensor
    ) -> TextFeatures:
        """Read S texts, or say again what was read of them.

        Args:
            encoder: the one that it was made for, and that it `holds` for.
            input_ids: (S, L).
            attention_mask: (S, L).
        """
        key = tuple((t.shape, t.cpu().numpy().tobytes()) for t in (input_ids, attention_mask))
        with self._lock:
            found = self._kept.pop(key, None)
            if found is None:
                found = encoder.read_text(input_ids, attention_mask)
                self._bytes += found.nbytes
            if self._first is None:
                ids, mask = input_ids[:1], attention_mask[:1]
                self._first = ids, mask, encoder.read_text(ids, mask)
            self._kept[key] = found  # as the latest
            while self._bytes > CACHE_BYTES:
                self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return found


_caches: WeakKeyDictionary[BridgedEncoder, TextCache] = WeakKeyDictionary()


def cache_of(encoder: BridgedEncoder) -> TextCache:
    """Return what is kept of an encoder's texts; a new cache where it would read others now."""
    cache = _caches.get(encoder)
    if cache is None or not cache.holds(encoder):
        cache = _caches[encoder] = TextCache(encoder)
    return cache


def _state(encoder: BridgedEncoder) -> list[tuple[Any, ...]]:
    tensors: list[Tensor] = []
    for module in (encoder.text.module, encoder.tower_tensors):
        tensors += [*module.parameters(), *module.buffers()]
    versions = [(t, t.dtype, t.device, version_of(t)) for t in tensors]
    return [(is_disabled(encoder),), *versions]
