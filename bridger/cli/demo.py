"""`bridger demo`."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

from bridger.cli.adapters import (
    ADAPTER,
    add_device_option,
    add_import_option,
    add_towers_option,
    device_of,
    find,
)
from bridger.cli.base import ended_like_ctrl_c, say, whole, write_json

HELP = "open a page in the browser that shows what words mean"
EXAMPLES = """\
  bridger demo
  bridger demo my-adapter
  bridger demo tiny tiny-heads --port 8000 --no-open
  bridger demo my-adapter --towers open_clip:ViT-B-16-quickgelu:openai@416 --device cuda
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "adapters",
        nargs="*",
        metavar="ADAPTER",
        help=f"{ADAPTER}; adapters for the same towers share them (default: tiny and tiny-heads)",
    )
    parser.set_defaults(trailing="adapters")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="address at which this machine serves the page; 0.0.0.0 opens it to everyone who "
        "reaches this machine (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=whole(0),
        metavar="N",
        help="0: any free one (default: the first free one from 7860 on)",
    )
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to open it in the browser (default: yes)",
    )
    parser.add_argument(
        "--seconds",
        type=whole(1),
        metavar="N",
        help="most time for an answer (default: 60)",
    )
    add_towers_option(parser)
    add_device_option(parser)
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve the page until Ctrl-C, which is how it ends: with exit code 0."""
    from dataclasses import replace

    from bridger.demo.limits import Limits
    from bridger.demo.serving import check_gradio, find_port, open_page

    check_gradio()
    find_port(args.host, args.port)  # loading may take a while, so what is wrong is said before
    from bridger.demo.choices import load_choices
    from bridger.tiny_clip import SHIPPED

    started = time.monotonic()
    adapters = args.adapters or list(SHIPPED)
    limits = Limits() if args.seconds is None else replace(Limits(), seconds=args.seconds)
    for adapter in adapters:
        find(adapter, args)
    say(f"loading {', '.join(adapters)}")
    device = device_of(args.device)
    choices = load_choices(adapters, args.towers, device, download=args.download)
    loaded = time.monotonic()
    result: dict[str, Any] = {"heads": {choice.label: choice.adapter for choice in choices}}
    with (
        ended_like_ctrl_c(),
        open_page(
            choices, limits, host=args.host, port=args.port, browser=args.open, debug=args.debug
        ) as address,
    ):
        try:
            seconds = {"loading": loaded - started, "opening": time.monotonic() - loaded}
            result = {"address": address, **result, "seconds": seconds}
            write_json(args, result)
            args.json = None  # written while the page is open: scripts want its address
            say(f"the page is open at {address} (Ctrl-C ends it)")
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
    say("closed")
    return result
