"""What holds while a library loads a tower: quiet, safe, the same each time, and plain errors."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bridger.named_towers.names import split_sized

UNREACHED = (
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "URLError",
    "ConnectionError",
    "TransportError",
)
"""What libraries raise where a download fails, by class name: they are not all installed."""

TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Torch's own switch: some libraries ask it to run whatever a pickle holds."""


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Let a library load what a name means.

    Args:
        name: of the towers, for messages.

    Raises:
        OSError: a download failed; said in one line, in place of the libraries' retries.
        ValueError: a file holds other things than tensors.
    """
    try:
        with _quiet(), _tensors_alone(), _same_numbers():
            yield
    except Exception as error:
        causes = list(_causes(error))
        if any(isinstance(cause, pickle.UnpicklingError) for cause in causes):
            raise ValueError(
                f"the file of {name} holds other things than tensors, which are not read, since "
                f"reading them could run anything: save a state dict ({_first_line(causes)})"
            ) from error
        if not any(map(_unreached, causes)):
            raise
        raise OSError(
            f"the weights of {name} are not on this machine, and could not be downloaded: connect "
            f"it to the internet once{_local(name)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _tensors_alone() -> Iterator[None]:
    before = os.environ.get(TENSORS_ALONE)
    os.environ[TENSORS_ALONE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TENSORS_ALONE]
        else:
            os.environ[TENSORS_ALONE] = before


@contextmanager
def _same_numbers() -> Iterator[None]:
    """Draw random numbers from one seed, and put torch's generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # and not those of the accelerators
        yield


def _local(name: str) -> str:
    """Return how the same tower is named with weights that are on this machine already."""
    library, _, model = name.partition(":")
    if library not in ("open_clip", "timm", "transformers"):
        return ""
    local = "/path/to/folder"
    if library != "transformers":
        model, _, size = split_sized(model)
        local = f"{model}:/path/to/weights.pt{f'@{size}' if size else ''}"
    return f", or give a copy of your own, as in --set towers={library}:{local}"


def _unreached(error: BaseException) -> bool:
    return any(cls.__name__ in UNREACHED for cls in type(error).__mro__)


def _first_line(causes: list[BaseException]) -> str:
    return str(causes[-1]).strip().partition("\n")[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
