"""How much a name of towers would download, and asking before it is much."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from bridger.hub_cache import (
    MODEL_FILES,
    cached_file,
    chosen_files,
    has_content,
    model_folder,
    weights_in,
)
from bridger.named_towers.names import split_checkpoint, split_size, split_weights, two_sides

LARGE = 10**9
"""Bytes: what is more is not downloaded without asking."""

PATIENCE = 10.0
"""Seconds to wait for an answer."""


class OnHub(NamedTuple):
    """Weights on the Hub.

    Attributes:
        repo_id: "user/name".
        kinds: patterns of their files, the best first: the first kind that is there is loaded.
        revision: branch, tag or commit; None: main.
    """

    repo_id: str
    kinds: tuple[str, ...]
    revision: str | None = None

    def is_here(self) -> bool:
        """Whether all of them are in the cache."""
        if self.kinds is MODEL_FILES:
            folder = model_folder(self.repo_id, self.revision)
            return folder is not None and bool(weights_in(folder))
        return any(cached_file(self.repo_id, kind, self.revision) for kind in self.kinds)

    def missing_bytes(self) -> int | None:
        """Return how many bytes would be downloaded; see `download_size`."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
        from huggingface_hub.errors import RevisionNotFoundError as NoRevision

        here = self.is_here()
        pinned = self.revision is not None and len(self.revision) == 40
        if constants.HF_HUB_OFFLINE or (here and pinned):
            return 0
        try:
            found = HfApi().model_info(
                self.repo_id, revision=self.revision, timeout=PATIENCE, files_metadata=True
            )
        except (RepositoryNotFoundError, NoRevision):
            return 0  # there is nothing to download; loading says so
        except HfHubHTTPError:
            return None
        except Exception:
            if here:  # as the libraries themselves do, without a connection
                return 0
            raise
        files = {file.rfilename: file for file in found.siblings or ()}
        chosen = [files[name] for name in chosen_files(files, self.kinds)]
        return _sum(
            file.size
            for file in chosen
            if cached_file(self.repo_id, file.rfilename, found.sha) is None
            and not (file.lfs and has_content(self.repo_id, file.lfs.sha256))
        )


class AtUrl(NamedTuple):
    """A file of weights at an address.

    Attributes:
        url: its address.
        path: where the library keeps it once it is downloaded.
    """

    url: str
    path: Path

    def is_here(self) -> bool:
        """Whether it was downloaded."""
        return self.path.is_file()

    def missing_bytes(self) -> int | None:
        """Return how many bytes would be downloaded; see `download_size`."""
        if self.is_here():
            return 0
        request = urllib.request.Request(self.url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                length = answer.headers.get("Content-Length")
        except urllib.error.HTTPError:
            return None
        return int(length) if length else None


def download_size(name: str) -> int | None:
    """Return how many bytes of weights `bridger.load_towers` would download for a name now.

    Only the files that would be loaded are counted, and of them those that are not on this
    machine. The Hub, and servers elsewhere, are asked for sizes alone.

    Args:
        name: as for `bridger.load_towers`.

    Returns:
        Bytes, 0 where all is here; None where it cannot be known.

    Raises:
        OSError: what would have to be asked cannot be reached. Libraries have errors of their own
            for this, too.
    """
    return _sum(file.missing_bytes() for file in _weights_of(name))


def allow_download(name: str, download: bool | None) -> None:
    """Ask before a large download.

    Args:
        name: as for `bridger.load_towers`.
        download: whether weights may be downloaded. None: yes up to `LARGE`; above it a terminal
            is asked, and without one they are refused.

    Raises:
        OSError: they are not on this machine, and may not be downloaded.
    """
    if download:
        return
    if download is not None:
        if not all(file.is_here() for file in _weights_of(name)):
            raise OSError(
                f"the weights of {name} are not on this machine, and download=False "
                f"(--no-download in the shell) keeps them from being downloaded: leave it out once"
            )
        return
    size = download_size(name)
    if size is not None and size <= LARGE:
        return
    shown = "of unknown size" if size is None else f"of {size / 1e9:.2f} GB"
    needed = f"the towers {name} need a download {shown}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise OSError(
            f"{needed}, and there is no terminal to ask on: allow it with download=True "
            f"(--download in the shell)"
        )
    print(f"{needed}; go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise OSError(f"{needed}, which was declined")


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hub's library, and those that load through it, from the network."""
    from huggingface_hub import constants, utils

    # Older ones give clients that know whether they are offline.
    reset = getattr(utils, "reset_sessions", lambda: None)
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    reset()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        reset()


def _weights_of(name: str) -> Iterable[OnHub | AtUrl]:
    """Return the files of a name, each once: both towers may come from one checkpoint."""
    return dict.fromkeys(_weights_of_sides(name))


def _weights_of_sides(name: str) -> Iterator[OnHub | AtUrl]:
    for side in dict.fromkeys(two_sides(name)):
        library, _, model = side.partition(":")
        if library == "transformers":
            model, revision, _ = split_checkpoint(model)
            if not os.path.isdir(model):
                yield OnHub(model, MODEL_FILES, revision)
        elif library in ("open_clip", "timm", "torchvision"):
            if library != "torchvision":
                model, _ = split_size(model)
            model, weights = split_weights(model)
            if weights and not os.path.isfile(weights):
                yield from {
                    "open_clip": _of_open_clip,
                    "timm": _of_timm,
                    "torchvision": _of_torchvision,
                }[library](model, weights)


def _of_open_clip(model: str, tag: str) -> Iterator[OnHub | AtUrl]:
    import open_clip

    found = open_clip.get_pretrained_cfg(model.replace("/", "-"), tag)
    if hub := found.get("hf_hub"):
        repo_id, file = os.path.split(hub)
        kinds = _or_safe(file or "open_clip_pytorch_model.bin", (".bin", ".pth"))
        yield OnHub(repo_id, tuple(kinds))
    elif url := found.get("url"):
        yield AtUrl(url, Path("~/.cache/clip").expanduser() / os.path.basename(url))


def _of_timm(model: str, tag: str) -> Iterator[OnHub | AtUrl]:
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(f"{model}.{tag}")
    if found and found.hf_hub_id:
        repo_id, _, revision = found.hf_hub_id.partition("@")
        file = found.hf_hub_filename or "pytorch_model.bin"
        kinds = ["model.safetensors", file] if file == "pytorch_model.bin" else _or_safe(file)
        yield OnHub(repo_id, tuple(kinds), revision or None)
    elif found and found.url:
        url, file = found.url if isinstance(found.url, (tuple, list)) else (found.url, None)
        yield AtUrl(url, _in_torch_hub(file or url))


def _of_torchvision(model: str, weights: str) -> Iterator[OnHub | AtUrl]:
    import torchvision

    kind = torchvision.models.get_model_weights(model)
    url = kind.verify(weights).url
    yield AtUrl(url, _in_torch_hub(url))


def _in_torch_hub(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)


def _or_safe(file: str, unsafe: tuple[str, ...] = (".bin",)) -> list[str]:
    """Return a file's names in the order in which open_clip and timm look for them."""
    if not file.endswith(unsafe):
        return [file]
    if file == "open_clip_pytorch_model.bin":
        return ["open_clip_model.safetensors", file]
    return [f"{os.path.splitext(file)[0]}.safetensors", file]


def _sum(sizes: Iterator[int | None]) -> int | None:
    """Return their sum; None where one is not known."""
    known = list(sizes)
    return None if None in known else sum(size for size in known if size is not None)
