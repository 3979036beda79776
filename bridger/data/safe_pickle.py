"""Reading pickles of plain data without running what is in them."""

from __future__ import annotations

import os
import pickle
from typing import Any, BinaryIO

# Containers that old protocols name instead of having an opcode for them.
_ALLOWED = {"set": set, "frozenset": frozenset}
_BUILTINS = ("builtins", "__builtin__")  # Python 3's name and Python 2's


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, numbers and strings; looks up nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _BUILTINS and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(
            f"the pickle asks for {module}.{name}, but only lists, dicts, sets, numbers and "
            f"strings are read; nothing of it was run"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to objects outside of it")


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read a pickle that holds plain data, such as RefCOCO's refs files.

    The file is read piece by piece. Python 2's byte strings are read as UTF-8, or as Latin-1 where
    they are not UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        pickle.UnpicklingError: the file is broken, or asks for a class or function; which one is
            said, and nothing of it is run.
    """
    try:
        with open(path, "rb") as file:
            try:
                return _load(file, "utf-8")
            except UnicodeDecodeError:
                file.seek(0)
                return _load(file, "latin-1")
    except (UnicodeDecodeError, pickle.UnpicklingError) as error:
        raise pickle.UnpicklingError(f"{path}: {error}") from error


def _load(file: BinaryIO, encoding: str) -> Any:
    try:
        return _PlainUnpickler(file, encoding=encoding).load()
    except (UnicodeDecodeError, pickle.UnpicklingError):
        raise
    except Exception as error:
        # Broken opcodes raise nearly anything.
        raise pickle.UnpicklingError(f"not a whole pickle ({error!r})") from error
