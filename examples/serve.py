"""A model behind HTTP on this machine, for several clients at once; without options it asks itself.

    python examples/serve.py
    python examples/serve.py --port 8000 --adapter my-adapter
    curl --data-binary @picture.png "http://127.0.0.1:8000/?say=the+owl&say=the+drum"

A picture is posted as it lies on disk. The answer is JSON: what was found, and a mask for each
sentence as PNG in base64. Each request has a thread of its own; the model is in eval mode, so that
they share it. It keeps what the vision tower makes of a picture before the first Bridger: further
sentences about a picture need not compute that again. What is kept is bounded, and nothing is
forgotten to make room: a server that runs for long calls `model.encoder.prefix_cache.clear()`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image

from bridger import BridgedModel
from bridger.data.scenes import make_scene
from bridger.predictions.masks import picture_of

MOST_BYTES = 20_000_000
KEPT_BYTES = 2**30


class Server(ThreadingHTTPServer):
    """Answers about pictures with one model, each request in a thread of its own."""

    daemon_threads = True

    def __init__(self, model: BridgedModel, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if not 0 < length <= MOST_BYTES:
            self.reply(413, {"error": f"post a picture of at most {MOST_BYTES} bytes"})
            return
        posted = self.rfile.read(length)
        said = parse_qs(urlsplit(self.path).query).get("say", [])
        try:
            picture = Image.open(io.BytesIO(posted))
            result = self.server.model.predict(picture, said)
        except (OSError, ValueError) as error:  # a broken picture, no sentence, an empty one
            self.reply(400, {"error": str(error)})
            return
        masks = [base64.b64encode(png(picture_of(mask))).decode() for mask in result.masks]
        self.reply(200, {"found": result.found(), "masks": masks})

    def reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write nothing for each request."""


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def ask(url: str, picture: bytes, *said: str) -> dict[str, Any]:
    """Ask a server, as any other program would."""
    with urlopen(f"{url}?{urlencode({'say': said}, doseq=True)}", picture) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@contextmanager
def serving(model: BridgedModel, port: int = 0) -> Iterator[Server]:
    """Serve in a thread until the end of the block; port 0: one that is free."""
    with Server(model, port) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def demonstrate(model: BridgedModel) -> None:
    """Let four clients ask at once, and compare with one question after the other."""
    scenes = [make_scene("val", seed) for seed in range(4)]
    asked = [(scene.image, e.sentence) for scene in scenes for e in scene.expressions]
    alone = [model.predict(image, said).masks[0] for image, said in asked]
    with serving(model) as server, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda one: ask(server.url, png(one[0]), one[1]), asked))
    masks = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["masks"][0])))) > 0
        for answer in answers
    ]
    equal = sum(np.array_equal(a, b) for a, b in zip(masks, alone, strict=True))
    print(f"{len(asked)} questions of 4 clients at once: {equal} masks are those of one by one")
    cache = model.encoder.prefix_cache
    if cache is not None:
        print(f"pictures and sentences that were known: {cache.hits}, new ones: {cache.misses}")
    model.predict(*asked[0]).overlay(asked[0][0], asked[0][1]).save("served.png")
    print(f"wrote served.png: {asked[0][1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="a folder, or an id on the Hub")
    parser.add_argument("--port", type=int, help="serve there until Ctrl-C")
    args = parser.parse_args()

    model = BridgedModel.from_pretrained(args.adapter).eval()
    model.encoder.cache_prefix("memory", limit_bytes=KEPT_BYTES)
    if args.port is None:
        demonstrate(model)
        return
    with serving(model, args.port) as server:
        print(f"listening at {server.url}, Ctrl-C ends", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
