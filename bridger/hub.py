"""Adapters by name: in a folder, in the package, or on the Hub; and how they get there.

Finding knows nothing of model cards. Pushing reaches down to them, against the order of layers, and
imports them where it does.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bridger.adapter_files import (
    ADAPTER_FILES,
    CARD,
    PICTURE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    read_saved_config,
)
from bridger.config import did_you_mean
from bridger.hub_errors import Asked, said_plainly
from bridger.private_paths import blank_paths, warn_of_paths
from bridger.processing import FILE as PROCESSOR_FILE
from bridger.tiny_clip import SHIPPED
from bridger.words import TOKENIZER_FOLDER

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bridger.model_card import CardOptions
    from bridger.saving import SavedModel

LIBRARY = "bridger"
FILES = (
    ADAPTER_FILES.config,
    ADAPTER_FILES.weights,
    PROCESSOR_FILE,
    RECIPE_FILE,
    *(f"{TOKENIZER_FOLDER}/*{ending}" for ending in (".json", ".txt", ".model", ".jinja")),
    CARD,
    PICTURE,
)
"""What an adapter is made of: nothing else is ever pushed or downloaded, above all no pickles."""

_ON_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")


def find_adapter(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of an adapter, downloaded where it is on the Hub.

    What was downloaded once is found without a connection. HF_ENDPOINT, HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE mean what they do everywhere.

    Args:
        name: a folder, "tiny" or "tiny-heads", or the Hub's "user/name[@revision]". A `Path` is
            always a folder.
        revision: branch, tag or commit on the Hub; None: main.
        token: of the Hub; None: the one that is logged in, False: none.

    Raises:
        FileNotFoundError: there is no such adapter, repository or revision.
        NotADirectoryError: it is a file.
        PermissionError: the Hub wants another token.
        ConnectionError: the Hub cannot be reached, or the download broke off.
        ValueError: a revision of what is not on the Hub, or two.
    """
    said = os.fspath(name)
    folder = Path(os.path.expanduser(said))  # which leaves a user who is not there as it is
    if not folder.exists():
        if said in SHIPPED:
            folder = SHIPPED[said]
        elif said.startswith((".", "~", os.sep)):
            raise FileNotFoundError(f"there is no folder {said!r}: expected that of an adapter")
        elif isinstance(name, str) and (found := _ON_HUB.fullmatch(name)):
            return _download(found["id"], _one_revision(said, found["revision"], revision), token)
        else:
            raise FileNotFoundError(
                f"there is no adapter {said!r}: expected a folder, the Hub's user/name, or one in "
                f"the package ({did_you_mean(said, list(SHIPPED))})"
            )
    if revision is not None:
        raise ValueError(f"{said} is not on the Hub, so there is no revision {revision!r} of it")
    if not folder.is_dir():
        raise NotADirectoryError(f"{said} is a file: expected the folder of an adapter")
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"the folder {said} holds no adapter: expected {WEIGHTS_FILE} in it, as written by "
            f"model.save_pretrained or `bridger train`"
        )
    return folder


def _one_revision(name: str, named: str | None, given: str | None) -> str | None:
    if named and given and named != given:
        raise ValueError(f"{name} names another revision than {given!r}: give one of them")
    return given or named


def _download(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download

    asked: dict[str, Any] = {"revision": revision, "token": token, **_library()}
    with said_plainly(Asked(repo_id, revision)):
        folder = Path(snapshot_download(repo_id, allow_patterns=list(FILES), **asked))
        # What is in the cache may be half a download: asking for what is missing says why it is.
        if not (folder / WEIGHTS_FILE).is_file() and not _from_hub(repo_id, WEIGHTS_FILE, **asked):
            raise FileNotFoundError(
                f"{repo_id} on the Hub is no adapter of bridger: it has no {WEIGHTS_FILE}"
            )
        if read_saved_config(folder)["processor"] and not (folder / PROCESSOR_FILE).is_file():
            _from_hub(repo_id, PROCESSOR_FILE, **asked)
    return folder


def _from_hub(repo_id: str, file: str, **asked: Any) -> Path | None:
    """Download one file; None where the repository has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, file, **asked))
    except LocalEntryNotFoundError:  # a kind of the other one: the Hub was not asked
        raise
    except EntryNotFoundError:
        return None


def push(
    model: SavedModel,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    dtype: torch.dtype | None = None,
    **card: Unpack[CardOptions],
) -> str:
    """Put a model's adapter on the Hub, with a model card; see `push_folder` for what is raised.

    Args:
        model: with a processor where it is to predict elsewhere, too.
        repo_id: "user/name"; made where there is none.
        private: whether a new repository can be seen by you alone; None: as your account has it.
        revision: the branch to put it on, made where there is none; None: main.
        commit_message: what the history of the repository says.
        token: of the Hub, with the right to write; None: the one that is logged in.
        dtype: of the numbers, such as torch.float16 for half the size; None: the model's own,
            which come back as the same bits.
        **card: see `bridger.model_card.write_card`.

    Returns:
        The address of what was pushed.
    """
    from bridger.model_card import write_card

    _check_id(repo_id)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, dtype)
        write_card(folder, repo_id, model=model, **card)
        return _upload(folder, repo_id, private, revision, commit_message, token, card)


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    **card: Unpack[CardOptions],
) -> str:
    """Put an adapter's folder on the Hub, with a model card.

    The folder is left as it is. Only an adapter's own files are pushed: of a run neither
    checkpoints nor logs. A card that is in it is pushed, where no options for a new one are given;
    one that bridger made of another id or other weights is made anew, with what it said.
    One that was changed on the Hub is kept there, unless the one in the folder was changed, too,
    or `overwrite` is true. It is one commit: others see the old adapter or the new one.

    Args:
        folder: an adapter's; any name that `find_adapter` knows.
        repo_id: "user/name"; made where there is none.
        private: see `push`.
        revision: see `push`.
        commit_message: see `push`.
        token: see `push`.
        **card: see `bridger.model_card.write_card`.

    Returns:
        The address of what was pushed.

    Raises:
        FileNotFoundError: there is no such adapter.
        FileExistsError: options for a card, and the folder has a README.md of yours.
        PermissionError: the token is wrong or may not write there.
        ConnectionError: the Hub cannot be reached, or the connection broke; the same call goes on.
        ValueError: the id is none, or options of the card do not fit the adapter.

    Warns:
        UserWarning: others cannot load the towers by themselves; there is no processor; paths of
            this machine can be read in what is pushed; a README.md was kept.
    """
    from bridger.model_card import renew_card, write_card

    _check_id(repo_id)
    source = find_adapter(folder)
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for path in (path for pattern in FILES for path in source.glob(pattern)):
            target = staged / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        blank_paths(staged)
        if card or not (staged / CARD).is_file():
            if card.get("picture") is not None:
                (staged / PICTURE).unlink(missing_ok=True)  # of the copy
            write_card(staged, repo_id, **card)
        else:
            renew_card(staged, repo_id)
        return _upload(staged, repo_id, private, revision, commit_message, token, card)


def _check_id(repo_id: str) -> None:
    found = _ON_HUB.fullmatch(repo_id)
    if not found or found["revision"]:
        raise ValueError(
            f"{repo_id!r} is no id on the Hub: expected user/name, and a branch as revision="
        )


def _upload(
    folder: Path,
    repo_id: str,
    private: bool | None,
    revision: str | None,
    commit_message: str | None,
    token: str | bool | None,
    card: CardOptions,
) -> str:
    from huggingface_hub import HfApi, constants

    from bridger import __version__
    from bridger.model_card import warn_of_processor, warn_of_towers

    warn_of_towers(folder)
    warn_of_processor(folder)
    warn_of_paths(folder)
    api = HfApi(token=token, **_library())
    with said_plainly(Asked(repo_id, revision, writing=True)):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        files = list(FILES)
        if not card.get("overwrite") and _keeps_its_text(folder, repo_id, revision, token):
            files = [name for name in files if name not in (CARD, PICTURE)]
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Share an adapter of bridger {__version__}",
            allow_patterns=files,
            delete_patterns=files,  # what the adapter there had, and this one has not
        )
    return f"{constants.ENDPOINT}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def _keeps_its_text(
    folder: Path, repo_id: str, revision: str | None, token: str | bool | None
) -> bool:
    """Whether the README.md on the Hub was changed there, and the one here is made by bridger."""
    from bridger.cards.signature import is_own_text

    if is_own_text(folder / CARD):
        return False
    there = _from_hub(repo_id, CARD, revision=revision, token=token, **_library())
    if there is None or not is_own_text(there):
        return False
    warnings.warn(
        f"kept the {CARD} of {repo_id}, which bridger did not write or somebody changed; "
        f"overwrite=True replaces it",
        UserWarning,
        stacklevel=4,
    )
    return True


def _library() -> dict[str, Any]:
    from bridger import __version__

    return {"library_name": LIBRARY, "library_version": __version__}
