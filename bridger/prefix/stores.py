"""Where rows are kept: in memory, or in a folder that several processes and runs may share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bridger._files import replacing
from bridger._json import read_json, save_json

Row = tuple[Tensor, ...]
Manifests = Mapping[str, Mapping[str, Any]]

MANIFEST = "manifest.json"
LOOKS = 64
"""A folder is measured anew whenever this part of the limit was written: others write too."""


class Store(Protocol):
    """Rows by side ("vision" or "text") and key, of `limit_bytes` at most.

    What is full takes nothing more and gives nothing away: in the random order of epochs, giving
    away the oldest would lose most rows just before they are wanted again.
    """

    limit_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        ...

    def begin(self, manifests: Manifests) -> None:
        """Start to keep rows of the towers that the manifests describe, by side."""
        ...

    def read(self, side: str, key: str) -> Row | None:
        """Return a row, or None."""
        ...

    def write(self, side: str, key: str, row: Row) -> None:
        """Keep a row, if there is room."""
        ...

    def clear(self) -> None:
        """Forget all rows."""
        ...


class MemoryStore:
    """Rows on the device where they were computed; see `Store`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._rows: dict[tuple[str, str], Row] = {}

    def begin(self, manifests: Manifests) -> None:
        """Forget what other towers, or others' weights, have made."""
        self.clear()

    def read(self, side: str, key: str) -> Row | None:
        """Return a row, or None."""
        return self._rows.get((side, key))

    def write(self, side: str, key: str, row: Row) -> None:
        """Keep a row, if there is room."""
        size = _bytes_of(row)
        if (side, key) not in self._rows and self.nbytes + size <= self.limit_bytes:
            self._rows[side, key] = row
            self.nbytes += size

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()
        self.nbytes = 0


class FolderStore:
    """Rows in memory-mapped safetensors files, one each, which appear whole; see `Store`.

    Args:
        folder: becomes `<side>/manifest.json` and `<side>/<key>.safetensors`.
        limit_bytes: of its files.

    Raises:
        ValueError: the folder holds other things.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not any(folder.glob(f"*/{MANIFEST}")):
            raise ValueError(
                f"{folder} holds files that are no prefix cache: give an empty folder, or a new one"
            )
        self._measure()

    @property
    def nbytes(self) -> int:
        """Bytes in the folder, as far as this process knows."""
        return self._measured + self._written

    def begin(self, manifests: Manifests) -> None:
        """Write what the rows are made by.

        Raises:
            ValueError: the folder's rows are made by something else.
        """
        for side, expected in manifests.items():
            path = self.folder / side / MANIFEST
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                save_json(path, expected)
            found = read_json(path)  # another process may have been faster
            if found != expected:
                raise ValueError(self._made_by_another(side, expected, found))

    def read(self, side: str, key: str) -> Row | None:
        """Return a row, or None; its tensors lie in the file until they are looked at."""
        try:
            with safe_open(self._path(side, key), framework="pt") as file:
                return tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
        except (FileNotFoundError, SafetensorError):  # a crash of the machine leaves empty files
            return None

    def write(self, side: str, key: str, row: Row) -> None:
        """Keep a row, if there is room."""
        size = _bytes_of(row)
        if self._written > self.limit_bytes // LOOKS:
            self._measure()
        if self.nbytes + size > self.limit_bytes:
            return
        with replacing(self._path(side, key)) as partial:
            save_file({str(i): tensor.cpu() for i, tensor in enumerate(row)}, partial)
        self._written += size

    def clear(self) -> None:
        """Delete all rows, those of other processes too."""
        for path in self._files():
            path.unlink(missing_ok=True)
        self._measure()

    def _path(self, side: str, key: str) -> Path:
        return self.folder / side / f"{key}.safetensors"

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*/*.safetensors"))

    def _measure(self) -> None:
        self._written, self._measured = 0, 0
        for path in self._files():
            try:
                self._measured += path.stat().st_size
            except FileNotFoundError:  # cleared by another process
                continue

    def _made_by_another(
        self, side: str, expected: Mapping[str, Any], found: Mapping[str, Any]
    ) -> str:
        names = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
        pairs = "; ".join(f"{n} is {expected.get(n)!r}, there {found.get(n)!r}" for n in names)
        return (
            f"the prefix cache in {self.folder} was made by another {side} tower: {pairs}. Give "
            "another folder, or delete this one"
        )


def _bytes_of(row: Row) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in row)


def as_kept(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy of a row, in another floating-point type where one is asked for."""
    kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(kept, copy=True, memory_format=torch.contiguous_format)
