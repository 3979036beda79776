"""Serves the page: to this machine alone unless told otherwise, and without asking the internet."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from bridger.demo.choices import Choice
from bridger.demo.gallery import compose_gallery
from bridger.demo.limits import Limits
from bridger.demo.look import CSS, theme
from bridger.demo.page import PageBuilder
from bridger.demo.session import Desk

LOCALHOST = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
"""Where free ports are looked for."""
TAKEN = (errno.EADDRINUSE, errno.EACCES)


def check_gradio() -> None:
    """Refuse early where gradio is missing.

    Raises:
        ModuleNotFoundError: it is.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ModuleNotFoundError(
            "the page is made with gradio, which is not installed: pip install 'bridger-peft[demo]'"
        )


@contextmanager
def open_page(
    choices: Sequence[Choice],
    limits: Limits | None = None,
    *,
    host: str = LOCALHOST,
    port: int | None = None,
    browser: bool = False,
    debug: bool = False,
) -> Iterator[str]:
    """Serve the page while the block runs; its files are gone afterwards.

    Args:
        choices: the heads.
        limits: how much may be asked.
        host: the address of this machine at which it can be reached; 0.0.0.0: all of them.
        port: None: a free one from 7860 on; 0: any free one.
        browser: whether to open it in the browser.
        debug: whether unexpected errors print their traceback.

    Yields:
        The page's address.

    Raises:
        ModuleNotFoundError: gradio is missing.
        OSError: the port is taken, or the host is none of this machine.
    """
    check_gradio()
    limits = limits or Limits()
    port = find_port(host, port)
    with tempfile.TemporaryDirectory(prefix="bridger-demo-") as folder, _on_its_own(folder):
        scenes = Path(folder) / "scenes"
        scenes.mkdir()
        desk = Desk(choices, limits, debug, Path(folder))
        blocks = PageBuilder(desk, compose_gallery(scenes)).build()
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=True,
                max_file_size=limits.megabytes * 10**6,
                allowed_paths=[str(scenes)],
                state_session_capacity=limits.sessions,
                enable_monitoring=False,
                footer_links=[],
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=CSS,
            )
            yield address
        finally:
            blocks.close(verbose=False)


def find_port(host: str, asked: int | None) -> int:
    """Return a port that is free.

    Args:
        host: on which address.
        asked: that one; None: the first free one from 7860 on; 0: any.

    Raises:
        OSError: it is taken, all are, or the host is none of this machine.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + PORTS) if asked is None else [asked]
    for port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As servers do; a port whose last connection is still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno not in TAKEN:
                    raise OSError(f"--host {host}: {error.strerror or error}") from error
                reason = error.strerror
                continue
            found: int = probe.getsockname()[1]
            return found
    if asked is None:
        raise OSError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} of {host} is free")
    raise OSError(
        f"port {asked} of {host} cannot be had ({reason}): leave --port out to take a free one"
    )


@contextmanager
def _on_its_own(folder: str) -> Iterator[None]:
    """Keep gradio to this machine: no analytics, no history, files of its own, nothing fetched."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    none = ",".join([*([others] if others else []), LOCALHOST, "localhost", "::1"])
    values = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": str(Path(folder) / "files"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": none,
        "no_proxy": none,
    }
    with patch.dict(os.environ, values):
        from gradio import processing_utils  # which makes its folder when it is imported

        with patch.object(processing_utils, "async_ssrf_protected_download", _refused):
            yield


async def _refused(url: str, cache_dir: str) -> str:
    """Stand in for gradio's download of pictures that a request names by an address."""
    raise ValueError("This page takes pictures that are uploaded, and no addresses.")
