"""How long `bridger demo` takes: from the command to the page, and from a click to the mask.

    python examples/benchmarks/demo.py                      # needs gradio, playwright and Chromium
    python examples/benchmarks/demo.py --clicks 50 --adapter my-adapter

Clicks are timed in the browser: from the button's click until the picture with the mask is decoded,
in a headless Chromium on the machine that serves the page. Each asks for something else, so that no
answer is shown that was kept. Beside them stands what the model and the drawing take alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measuring import cpu_name

from bridger.demo.choices import Choice, load_choices
from bridger.demo.gallery import compose_gallery

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
THINGS = ("candle", "chair", "tangerine", "microscope", "thing", "fruit", "tool", "furniture")
PLACES = ("{}", "the {}", "{} on the left", "{} on the right", "top {}", "lowest {}", "biggest {}")
CLICK = """() => new Promise((done) => {
  const seen = document.querySelector("#seen");
  const before = seen.querySelector("img")?.src;
  const started = performance.now();
  const observer = new MutationObserver(async () => {
    const image = seen.querySelector("img");
    if (!image || image.src === before) return;
    observer.disconnect();
    await image.decode();
    done(performance.now() - started);
  });
  observer.observe(seen, {subtree: true, childList: true, attributes: true});
  document.querySelector("#ask").click();
})"""


@contextmanager
def served(adapter: str) -> Iterator[tuple[str, float]]:
    """Serve the page; yield its address, and the seconds until it was there."""
    command = [sys.executable, "-m", "bridger", "demo", adapter, "--port", "0", "--no-open"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found.group(), time.perf_counter() - started
                    return
            raise RuntimeError("the page did not open; see above")
        finally:
            process.terminate()


def clicks(address: str, sentences: list[str]) -> tuple[float, list[float]]:
    """Return the seconds until the page can be used, and those of each click."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise SystemExit(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        page.goto(address)
        page.locator("#ask").wait_for()
        page.locator("#picture img").wait_for()
        opened = time.perf_counter() - started
        seconds = []
        for sentence in sentences:
            page.locator("#words-expressions textarea").fill(sentence)
            page.wait_for_timeout(200)  # a person takes longer
            seconds.append(page.evaluate(CLICK) / 1000)
        browser.close()
    return opened, seconds


def alone(choice: Choice, picture: str, sentences: list[str]) -> dict[str, list[float]]:
    """Return the seconds of the model and of the drawing by themselves."""
    seconds: dict[str, list[float]] = {"predict": [], "overlay": []}
    for sentence in sentences:
        started = time.perf_counter()
        result = choice.model.predict(picture, sentence, head=choice.name)
        predicted = time.perf_counter()
        result.overlay(picture, sentence)
        seconds["predict"].append(predicted - started)
        seconds["overlay"].append(time.perf_counter() - predicted)
    return seconds


def spread(seconds: list[float]) -> str:
    """Write the median of timings, and between which the middle half of them lies."""
    quarters = [1000 * value for value in statistics.quantiles(seconds, n=4)]
    return f"{quarters[1]:.0f} ms (half of them {quarters[0]:.0f} to {quarters[2]:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", default="tiny", help="with a head that finds masks")
    parser.add_argument("--clicks", type=int, default=20, help="after the first one")
    args = parser.parse_args()
    sentences = [place.format(thing) for place in PLACES for thing in THINGS][: args.clicks + 1]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{cpu_name()}, load {load}")
    with served(args.adapter) as (address, seconds):
        print(f"from the command to the page's address: {seconds:.1f} s", flush=True)
        opened, (first, *others) = clicks(address, sentences)
    print(f"until it can be used in the browser:    {opened:.1f} s more")
    print(f"from the first click to the mask:       {1000 * first:.0f} ms")
    print(f"from a click to the mask:               {spread(others)}, {len(others)} clicks")
    with tempfile.TemporaryDirectory() as folder:
        scene = compose_gallery(Path(folder), 1)[0]
        [choice] = [c for c in load_choices([args.adapter]) if c.label == "Masks"]
        parts = alone(choice, scene.path, sentences)
    print(f"the model alone (`predict`):            {spread(parts['predict'][1:])}")
    print(f"the drawing alone (`overlay`):          {spread(parts['overlay'][1:])}")


if __name__ == "__main__":
    main()
