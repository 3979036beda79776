"""What goes wrong with the Hub, said in one sentence with what to do.

huggingface_hub changed its HTTP library twice, and answers of the Hub mean several things: 401 is
a wrong token, or a repository that is private or not there. Here they get the classes of Python's
own errors, the same with every version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages whose errors mean that a connection was not made, or broke."""

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class Asked(NamedTuple):
    """What was asked of the Hub.

    Attributes:
        repo_id: "user/name".
        revision: branch, tag or commit; None: main.
        writing: whether something was to be put there.
    """

    repo_id: str
    revision: str | None = None
    writing: bool = False


@contextmanager
def said_plainly(asked: Asked) -> Iterator[None]:
    """Raise errors of huggingface_hub and of its HTTP library as Python's own.

    Raises:
        FileNotFoundError: there is no such repository, revision or file.
        PermissionError: the token is wrong or may not do this, or none is there.
        ConnectionError: the Hub cannot be reached, or the connection broke.
        OSError: the Hub answers with another error.
        ValueError: the id is none.
    """
    try:
        yield
    except Exception as error:
        plain = _plain(error, asked)
        if plain is None:
            raise
        raise plain from error


def _plain(error: BaseException, asked: Asked) -> Exception | None:
    """Return the error to raise in place of another one; None: that one says it."""
    from huggingface_hub import errors

    name = asked.repo_id
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name!r} is no id on the Hub: expected user/name ({error})")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"{name}: there is no token on this machine: {LOG_IN}")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _plain(error.__cause__, asked) if error.__cause__ else _offline(asked)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(asked)
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error, asked)
    if _is_transport(error):
        return _unreached(asked)
    if error.__cause__ is not None and type(error) is RuntimeError:  # of a thread that uploads
        return _plain(error.__cause__, asked)
    return None


def _answered(error: Exception, asked: Asked) -> Exception:
    """Return what an answer of the Hub means."""
    from huggingface_hub import constants, errors

    name, address = asked.repo_id, f"{constants.ENDPOINT}/{asked.repo_id}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "Invalid credentials" in str(error):
        return PermissionError(f"{name}: the Hub does not know this token: {LOG_IN}")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{name} is gated: ask for access at {address}, and {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{name} has no revision {asked.revision or 'main'!r}: its branches and tags are at "
            f"{address}/tree/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        if asked.writing:
            return PermissionError(f"{name}: the Hub asks for a token that may write: {LOG_IN}")
        return FileNotFoundError(
            f"there is no {name} on the Hub, or it is private, and no folder of that name here: "
            f"check the name; if you may read it, {LOG_IN}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(f"{name} on the Hub lacks a file of an adapter ({error})")
    if status == 403:
        return PermissionError(
            f"{name}: your token may not do this: give it the right to write at "
            f"{constants.ENDPOINT}/settings/tokens, or push to a name of your own"
        )
    return OSError(f"{name}: the Hub answers with {status} ({_last_line(error)}): try it later")


def _offline(asked: Asked) -> Exception:
    if asked.writing:
        return ConnectionError(
            f"cannot push to {asked.repo_id} while HF_HUB_OFFLINE is set: unset it and push again"
        )
    return ConnectionError(
        f"{_what(asked)} is neither a folder here nor complete in this machine's cache of the Hub, "
        f"and cannot be downloaded while HF_HUB_OFFLINE is set: unset it and try again"
    )


def _unreached(asked: Asked) -> Exception:
    from huggingface_hub import constants

    if asked.writing:
        return ConnectionError(
            f"the connection to {constants.ENDPOINT} failed before it confirmed the push to "
            f"{asked.repo_id}: push again, which is safe to repeat and sends only what is missing"
        )
    return ConnectionError(
        f"{_what(asked)} could not be downloaded, since the connection to {constants.ENDPOINT} "
        f"failed: try again, which downloads only what is missing"
    )


def _what(asked: Asked) -> str:
    return asked.repo_id + (f"@{asked.revision}" if asked.revision else "")


def _is_transport(error: BaseException) -> bool:
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(packages & set(TRANSPORT))


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
