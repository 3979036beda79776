"""What an encoder has kept of pictures and sentences, and how a run takes it up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bridger.disabling import disabled, is_disabled
from bridger.features import TextFeatures
from bridger.prefix.keys import build_of, checksum, row_keys
from bridger.prefix.rules import (
    INSTEAD,
    prefixes_of,
    refuse_trained,
    state_of_tensors,
)
from bridger.prefix.skipping import Layout, Prefix
from bridger.prefix.stores import FolderStore, MemoryStore, Row, Store
from bridger.running import Batch, Ready, run_bridged
from bridger.tensor_state import same_state

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder

MEMORY = "memory"
LIMIT_BYTES = 4 * 2**30
FORMAT = 1


class PrefixCache:
    """What the towers of one encoder give at their first stage, by picture and by sentence.

    Made by `BridgedEncoder.cache_prefix`. Rows of a batch that are not kept run through the
    towers' prefixes in a pass of their own; then all rows are put in, and the towers run on from
    there. What is put in is what is kept, in its number type, also when it was computed just now.
    So results do not depend on what was seen before, but for the last bits that change with the
    size of a batch.

    Attributes:
        hits: rows (pictures and sentences) that were taken up.
        misses: rows that were computed.
    """

    def __init__(
        self,
        encoder: BridgedEncoder,
        where: str | os.PathLike[str],
        limit_bytes: int,
        dtype: torch.dtype | None,
    ) -> None:
        self.hits = self.misses = 0
        in_memory = where == MEMORY
        self._dtype = dtype if in_memory or dtype is not None else torch.bfloat16
        self._lock = Lock()
        self._layouts: dict[tuple[Any, ...], dict[str, Layout]] = {}
        self._state: list[tuple[Any, ...]] | None = None
        prefixes = prefixes_of(encoder)  # refuses before a folder is made
        self._store: Store = (
            MemoryStore(limit_bytes) if in_memory else FolderStore(Path(where), limit_bytes)
        )
        self._begin(prefixes)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._store.nbytes

    def clear(self) -> None:
        """Forget all that is kept, and count from 0; a folder loses its rows."""
        with self._lock:
            self._store.clear()
            self.hits = self.misses = 0

    def take_up(self, encoder: BridgedEncoder, ready: Ready, batch: Batch) -> Ready:
        """Return towers for one run that begin at their first stages.

        Args:
            encoder: the one that it was made for.
            ready: the towers as they would run.
            batch: what they run on. Pictures that ask for gradients go through the whole tower.

        Raises:
            ValueError: the prefix cannot be kept (any more), or the tower cannot run without it.
        """
        if batch.pixel_values.requires_grad and torch.is_grad_enabled():
            return ready
        with self._lock:
            prefixes = prefixes_of(encoder)
            self._begin(prefixes)
            runs = _runs(prefixes, ready, batch)
            context = _context(batch)
            # What the adapter trains is seen where it stands in for the towers' own alone.
            tried = context, len(runs), is_disabled(encoder)
            if tried not in self._layouts:
                self._layouts[tried] = _try(encoder, prefixes, ready, batch)
            layouts = self._layouts[tried]
        twins: dict[str, Any] = {
            side: self._skipping(side, run, layouts[side], context) for side, run in runs.items()
        }
        return ready._replace(**twins)

    def _begin(self, prefixes: dict[str, Prefix]) -> None:
        """Start anew where weights are others than before."""
        state = state_of_tensors(prefixes.values())
        if self._state is not None and same_state(state, self._state):
            return
        self._layouts.clear()
        self._state = None
        self._store.begin({side: self._manifest(prefix) for side, prefix in prefixes.items()})
        self._state = state

    def _manifest(self, prefix: Prefix) -> dict[str, Any]:
        """Return what rows in a folder are made by; in memory nothing asks for it."""
        if isinstance(self._store, MemoryStore):
            return {}
        return {
            "format": FORMAT,
            "tower": prefix.tower.label(),
            "block": prefix.name,
            "dtype": str(self._dtype),
            "build": build_of(prefix.modules),
            "weights": checksum(prefix.tensors()),
        }

    def _skipping(self, side: str, run: _Run, layout: Layout, context: str) -> Any:
        keys = row_keys(run.inputs, context)
        rows = self._read(side, keys)
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            inputs = run.inputs
            if len(missing) < len(keys):
                inputs = [tensor[missing] for tensor in inputs]
            output = run.prefix.reach(run.tower, inputs, run.tensors)
            refuse_trained(run.prefix, output)
            for index, row in zip(missing, layout.split(output, self._dtype), strict=True):
                rows[index] = row
                with self._lock:
                    self._store.write(side, keys[index], row)
        whole: list[Any] = rows
        return run.prefix.skipping(run.tower, layout.join(whole, run.inputs[0].device))

    def _read(self, side: str, keys: list[str]) -> list[Row | None]:
        with self._lock:
            rows = [self._store.read(side, key) for key in keys]
            found = sum(row is not None for row in rows)
            self.hits, self.misses = self.hits + found, self.misses + len(rows) - found
        return rows


class _Run(NamedTuple):
    """One tower's part of a run: what is called, on what."""

    prefix: Prefix
    tower: Any
    inputs: Sequence[Tensor]
    tensors: Any


def _runs(prefixes: dict[str, Prefix], ready: Ready, batch: Batch) -> dict[str, _Run]:
    vision, text = ready.tensors["vision"], ready.tensors["text"]
    runs = {"vision": _Run(prefixes["vision"], ready.vision, [batch.pixel_values], vision)}
    if "text" in prefixes and isinstance(batch.text, Tensor):
        inputs = [batch.text, batch.token_mask]
        runs["text"] = _Run(prefixes["text"], ready.text, inputs, text)
    return runs


def _context(batch: Batch) -> str:
    """Return what decides, beside a row's own numbers, what towers make of it."""
    kind = batch.pixel_values.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return f"{batch.pixel_values.dtype} autocast {cast}"


def _try(
    encoder: BridgedEncoder, prefixes: dict[str, Prefix], ready: Ready, batch: Batch
) -> dict[str, Layout]:
    """Run each tower with its prefix and without, on one picture and its sentences.

    Compiled blocks are left out, since they would be compiled for these few rows too.

    Raises:
        ValueError: without it a tower fails or gives something else, or something is trained in it.
    """
    if encoder._compiled is not None:
        ready = ready._replace(vision=encoder.vision, text=encoder.text)
    one = _first_of(batch)
    plain, layouts = _run_alone(encoder, ready, one), {}
    for side, run in _runs(prefixes, ready, one).items():
        prefix, label = run.prefix, run.tower.label()
        try:
            outputs = _outputs(run)
            layouts[side] = Layout(*outputs)
            output = prefix.reach(run.tower, run.inputs, run.tensors)
            twin: dict[str, Any] = {side: prefix.skipping(run.tower, output)}
            found = _run_alone(encoder, ready._replace(**twin), one)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"{label} cannot be run on from what its {prefix.name!r} gave: {error}. {INSTEAD}"
            ) from error
        refuse_trained(prefix, outputs[1])
        if not all(_close(a, b) for a, b in zip(found, plain, strict=True)):
            raise ValueError(
                f"{label} needs what it computes before {prefix.name!r} elsewhere too. {INSTEAD}"
            )
    return layouts


def _first_of(batch: Batch) -> Batch:
    n, text = batch.expressions, batch.text
    if isinstance(text, Tensor):
        text = text[:n]
    else:
        text = TextFeatures(text.tokens[:n], text.token_mask[:n], text.sentence[:n])
    return Batch(batch.pixel_values[:1], text, batch.token_mask[:n], n)


def _run_alone(encoder: BridgedEncoder, ready: Ready, batch: Batch) -> list[Tensor]:
    """Run without Bridgers, and draw nothing from the numbers that training draws from."""
    device = batch.pixel_values.device
    devices = [] if device.type == "cpu" else [device]
    with disabled(encoder), torch.random.fork_rng(devices, device_type=device.type):
        out = run_bridged(encoder, ready, batch)
    return [t for t in (*out.maps, out.tokens, out.sentence, out.pooled) if t is not None]


def _outputs(run: _Run) -> list[Any]:
    """Return what a prefix makes of the first row, and of that row twice.

    Gradients are on, to see what is trained in it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        first = [tensor[:1].detach() for tensor in run.inputs]
        rows = [[tensor.repeat_interleave(n, dim=0) for tensor in first] for n in (1, 2)]
        # What the adapter owns shows itself, whether or not it is trained at the moment.
        owned = {
            k: v.detach().requires_grad_(v.is_floating_point()) for k, v in run.tensors.items()
        }
        return [run.prefix.reach(run.tower, inputs, owned) for inputs in rows]


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same up to rounding."""
    tolerance = max(1e-5, 4 * torch.finfo(b.dtype).eps)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
