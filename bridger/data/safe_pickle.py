"""Reading pickles of plain data without running what is in them."""

from __future__ import annotations

import codecs
import os
import pickle
from typing import Any

# Containers that old protocols name instead of having an opcode for them.
_ALLOWED = {"set": set, "frozenset": frozenset}
_BUILTINS = ("builtins", "__builtin__")  # Python 3's name and Python 2's


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    """Decode the bytes that are not UTF-8, and those only."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("bridger.latin-1", _as_latin_1)


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

    The file is read piece by piece. Python 2's byte strings are read as UTF-8, and such of their
    bytes as are not UTF-8 as Latin-1.

    What is in a file cannot run, but it can claim memory: a forged one of ten bytes, by numbering
    an object beyond 500 million, has Python reserve 8 GB and more. To find that out beforehand
    would take two to three times as long as the reading itself.

    Raises:
        FileNotFoundError: there is no such file.
        pickle.UnpicklingError: the file is broken, or asks for a class or function; which one is
            said, and nothing of it is run.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding="utf-8", errors="bridger.latin-1").load()
        except (UnicodeDecodeError, pickle.UnpicklingError) as error:
            raise pickle.UnpicklingError(f"{path}: {error}") from error
        except Exception as error:
            # Broken opcodes raise nearly anything.
            raise pickle.UnpicklingError(f"{path}: not a whole pickle ({error!r})") from error
