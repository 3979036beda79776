"""Names by content: rows with the same bits have the same key, and no others."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from bridger.recomputing import FLAGS

LANES, ROWS_AT_ONCE = 4, 8


def row_keys(inputs: Sequence[Tensor], context: str) -> list[str]:
    """Return a key for every row of a tower's inputs.

    On the CPU bytes are digested by BLAKE2. Elsewhere the device reduces every row to 32 bytes,
    and only these are copied to the host, which waits for them.

    Args:
        inputs: tensors with B rows each.
        context: what else decides what the tower makes of them.
    """
    kinds = [(tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in inputs]
    seed = f"{context} {kinds}".encode()
    digest = _digests if all(tensor.device.type == "cpu" for tensor in inputs) else _reduced
    found = [digest(tensor.detach().contiguous().flatten(1)) for tensor in inputs]
    rows = (b"".join((seed, *parts)) for parts in zip(*found, strict=True))
    return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build_of(modules: Mapping[str, nn.Module]) -> str:
    """Return a digest of what modules are beside their tensors: classes, and plain attributes.

    Two towers may hold the same weights and compute other things: activations, numbers of heads,
    the epsilons of norms.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, module in modules.items():
        plain = {
            key: value
            for key, value in sorted(vars(module).items())
            if not key.startswith("_")
            and key not in ("training", "name_or_path", *FLAGS)
            and isinstance(value, (bool, int, float, str, tuple, type(None)))
        }
        digest.update(f"{name} {type(module).__name__} {module.extra_repr()} {plain}".encode())
    return digest.hexdigest()


def _digests(rows: Tensor) -> list[bytes]:
    return [hashlib.blake2b(row.numpy()).digest() for row in rows.view(torch.uint8)]


def _reduced(rows: Tensor) -> list[bytes]:
    """Hash rows (B, n) on their device: sums of words times fixed random numbers, modulo 2^64.

    Words have at most 32 bits, so two rows that differ agree in one such sum with a probability
    of at most 2^-33, and in all four with 2^-132 (multilinear hashing: Lemire and Kaser, "Strongly
    universal string hashing is fast", 2014).
    """
    words = rows.view({1: torch.uint8, 2: torch.int16}.get(rows.element_size(), torch.int32))
    factors = _factors(words.shape[1], words.device)
    parts = (part.long() for part in torch.split(words, ROWS_AT_ONCE))
    sums = [torch.stack([(part * lane).sum(dim=1) for lane in factors], dim=1) for part in parts]
    return [row.tobytes() for row in torch.cat(sums).cpu().numpy()]


@lru_cache(maxsize=8)
def _factors(count: int, device: torch.device) -> Tensor:
    """Return (LANES, count) random int64, the same in every process."""
    numbers = bytearray(random.Random(count).randbytes(8 * LANES * count))
    return torch.frombuffer(numbers, dtype=torch.int64).view(LANES, count).to(device)
