"""Pictures a second into the letterbox, against decoding alone, and where the time goes.

    OMP_NUM_THREADS=1 python examples/benchmarks/data_loading.py

The pictures are scenes of 640 x 480 pixels with grain, as JPEGs of quality 90 that are about as
large as COCO's (160 kB); masks are run-length encoded. First the parts, in milliseconds of this
process's CPU time (the median of all pictures, so that other work on the machine hardly matters);
then pictures a second by the clock, through a DataLoader with no cache, one ref per picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch.utils.data import DataLoader

from bridger.data import RefCollator, Sample
from bridger.data.masks import Segments
from bridger.data.scenes import make_scene
from bridger.etris import MEAN, STD
from bridger.pictures import read_picture
from bridger.processing import Processor
from bridger.warp import Placement

HEIGHT, WIDTH = 480, 640
GRAIN = 16.5  # grey levels; makes JPEGs of COCO's size
QUALITY = 90
BATCH = 32


def make_pictures(folder: Path, count: int) -> list[Sample]:
    """Write pictures, and return one ref of each."""
    samples = []
    for number in range(count):
        scene = make_scene("train", number, size=WIDTH)
        cut = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
        grain = np.random.default_rng(number).normal(0, GRAIN, (HEIGHT, WIDTH, 1))
        pixels = np.clip(scene.image[cut] + grain, 0, 255).astype(np.uint8)
        path = folder / f"{number:06}.jpg"
        Image.fromarray(pixels).save(path, quality=QUALITY)
        said = scene.expressions[0]
        mask = np.asfortranarray(scene.objects[said.target].mask[cut], dtype=np.uint8)
        samples.append(
            Sample(
                image_path=path,
                sentences=(said.sentence,),
                outline=Segments((rle.encode(mask),)),
                ref_id=number,
                ann_ids=(number,),
                sent_ids=(number,),
                kinds=(said.kind,),
                size=(HEIGHT, WIDTH),
                source="scenes",
            )
        )
    return samples


def make_processor(side: int) -> Processor:
    from open_clip.tokenizer import SimpleTokenizer

    return Processor(side, MEAN, STD, SimpleTokenizer(), 17)


def median(work: Callable[[Any], Any], inputs: Sequence[Any]) -> float:
    """Milliseconds of CPU time for one input."""
    work(inputs[0])
    taken = []
    for given in inputs:
        start = time.process_time()
        work(given)
        taken.append(time.process_time() - start)
    return 1000 * statistics.median(taken)


def decode(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def parts(samples: Sequence[Sample], side: int) -> dict[str, float]:
    """What each part takes."""
    processor = make_processor(side)
    files = [sample.image_path.read_bytes() for sample in samples]
    pictures = [read_picture(sample.image_path) for sample in samples]
    placement = Placement.fit((HEIGHT, WIDTH), processor.image_size)
    border = 255 * torch.tensor(MEAN)
    warped = [placement.into_input(picture, border) for picture in pictures]
    fitted = [processor.fit(sample.image_path)[0] for sample in samples]
    masks = [sample.mask for sample in samples]
    paths = [sample.image_path for sample in samples]
    return {
        "read the file": median(Path.read_bytes, paths),
        "decode": median(decode, files),
        "all of read_picture": median(read_picture, paths),
        "warp": median(lambda picture: placement.into_input(picture, border), pictures),
        "round to bytes": median(lambda w: w.round().clamp_(0, 255).to(torch.uint8), warped),
        "normalise": median(processor.normalize, fitted),
        "decode the mask": median(lambda sample: sample.mask, samples),
        "warp the mask": median(lambda mask: processor.target(mask, placement), masks),
    }


def rate(work: Callable[[], int]) -> float:
    """Pictures a second by the clock, the median of three runs."""
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def fitted_rate(paths: Sequence[Path], side: int) -> float:
    """Pictures a second from files into the letterbox."""
    processor = make_processor(side)
    return rate(lambda: len([processor.fit(path) for path in paths]))


def loaded(samples: list[Sample], side: int, workers: int) -> float:
    """Pictures a second through a DataLoader; its start does not count."""
    torch.set_num_threads(1)
    loader = DataLoader(
        samples,  # type: ignore[arg-type]
        BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=RefCollator(make_processor(side), cache=False),
    )
    for _ in loader:  # starts the workers
        pass
    return rate(lambda: sum(len(batch["labels"]) for batch in loader))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--sides", type=int, nargs="+", default=[416, 224])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = make_pictures(Path(folder), args.pictures)
        size = statistics.mean(sample.image_path.stat().st_size for sample in samples)
        print(
            f"{args.pictures} JPEGs of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB; torch "
            f"{torch.__version__}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}"
        )
        columns = {side: parts(samples, side) for side in args.sides}
        print("\n| ms of one picture | " + " | ".join(f"{side} px" for side in args.sides) + " |")
        print("| --- " * (1 + len(args.sides)) + "|")
        for name in columns[args.sides[0]]:
            figures = " | ".join(f"{columns[side][name]:.2f}" for side in args.sides)
            print(f"| {name} | {figures} |")
        print("\n| pictures a second | " + " | ".join(f"{side} px" for side in args.sides) + " |")
        print("| --- " * (1 + len(args.sides)) + "|")
        paths = [sample.image_path for sample in samples]
        alone = rate(lambda: len([decode(path.read_bytes()) for path in paths]))
        print("| read and decode alone | " + " | ".join([f"{alone:.0f}"] * len(args.sides)) + " |")
        fits = [fitted_rate(paths, side) for side in args.sides]
        print("| and the letterbox | " + " | ".join(f"{r:.0f}" for r in fits) + " |")
        for workers in args.workers:
            rates = [loaded(samples, side, workers) for side in args.sides]
            figures = " | ".join(f"{r:.0f}" for r in rates)
            print(f"| whole batches of {BATCH}, {workers} workers | {figures} |", flush=True)


if __name__ == "__main__":
    main()
