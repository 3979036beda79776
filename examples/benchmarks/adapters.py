"""Five adapters on one pair of towers: what switching and keeping them costs, beside peft's LoRA.

    python examples/benchmarks/adapters.py                   # ViT-B/16, random weights
    python examples/benchmarks/adapters.py --small           # 4 blocks, a few seconds

bridger: Bridgers at three stages (preset "paper") and the referring head; `model.set_adapter`.
peft: LoRA in the feed-forward layers of both towers, of the rank that comes closest to as many
parameters; `PeftModel.set_adapter`. Each runs in a process of its own, whose resident set is read
before and after each loading; "tensors" are the bytes of storages that came with an adapter. The
forwards differ (peft runs the towers alone), so that each is compared with its own: the first one
after a switch, and one without a switch.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from measuring import cpu_name, random_clip
from torch import Tensor, nn

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead

COUNT = 5
LAYERS = ("c_fc", "c_proj")
SMALL = {
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 128, "layers": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 128, "heads": 2, "layers": 4},
}


class Switched(Protocol):
    """What bridger's and peft's models have in common."""

    def load_adapter(self, *args: Any) -> Any: ...

    def set_adapter(self, name: str) -> None: ...


def towers(small: bool) -> Any:
    """open_clip's CLIP with random weights."""
    import open_clip

    torch.manual_seed(0)
    if small:
        clip = open_clip.CLIP(128, SMALL["vision_cfg"], SMALL["text_cfg"], quick_gelu=True)
    else:
        clip = random_clip("ViT-B-16-quickgelu")
    return clip.eval().requires_grad_(False)


def inputs(clip: Any) -> tuple[Tensor, Tensor]:
    side = clip.visual.image_size[0]
    ids = torch.zeros(1, clip.context_length, dtype=torch.long)
    ids[0, :6] = torch.tensor([1, 5, 9, 4, 7, clip.vocab_size - 1])
    return torch.randn(1, 3, side, side), ids


def own_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def write_bridged(small: bool, folder: Path) -> int:
    """Save five adapters with numbers of their own; returns the parameters of one."""
    clip = towers(small)
    for index in range(COUNT):
        torch.manual_seed(index)
        encoder = attach_bridgers(clip.visual, clip, 3, "paper")
        model = encoder.with_head(ReferringSegmentationHead, width=64 if small else 512)
        model.processor = None
        model.save_pretrained(folder / f"adapter-{index}")
        model.detach()
    return own_parameters(model)


def write_lora(small: bool, folder: Path, parameters: int) -> int:
    """Save five adapters of LoRA with about as many parameters; returns those of one."""
    import peft

    clip = towers(small)
    wide = [
        layer.in_features + layer.out_features
        for name, layer in clip.named_modules()
        if name.rpartition(".")[2] in LAYERS
    ]
    rank = max(1, round(parameters / sum(wide)))
    config = peft.LoraConfig(r=rank, target_modules=list(LAYERS), init_lora_weights="gaussian")
    model = peft.get_peft_model(clip, config, "adapter-0")
    for index in range(1, COUNT):
        model.add_adapter(f"adapter-{index}", config)
    model.save_pretrained(str(folder))
    return own_parameters(model)


def first_bridged(clip: Any, folder: Path) -> tuple[Switched, Callable[[], Any]]:
    model = BridgedModel.from_pretrained(folder, clip.visual, clip)
    pictures, ids = inputs(clip)
    return model, lambda: model(pictures, ids)


def first_lora(clip: Any, folder: Path) -> tuple[Switched, Callable[[], Any]]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(clip, str(folder), "default").eval()
    pictures, ids = inputs(clip)
    return model, lambda: (clip.visual(pictures), clip.encode_text(ids))


def load_another(model: Any, name: str, folder: Path) -> None:
    """Load one more adapter: the two libraries' arguments come in another order."""
    if isinstance(model, BridgedModel):
        model.load_adapter(name, folder)
    else:
        model.load_adapter(str(folder), name)


def tensor_bytes() -> int:
    """Return the bytes of all storages that some tensor in this process holds."""
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


@torch.inference_mode()
def measure(library: str, small: bool, folder: Path, switches: int) -> dict[str, list[float]]:
    """Load five adapters onto fresh towers and switch among them."""
    clip, process = towers(small), psutil.Process()
    first = first_bridged if library == "bridger" else first_lora
    model, forward = first(clip, folder / "adapter-0")
    forward()
    found: dict[str, list[float]] = {
        key: [] for key in ("load", "tensors", "resident", "switch", "after", "plain")
    }
    names = ["default"]
    for index in range(1, COUNT):
        tensors, resident = tensor_bytes(), process.memory_info().rss
        names.append(f"adapter-{index}")
        folder_of = folder / names[-1]
        found["load"].append(timed(lambda f=folder_of: load_another(model, names[-1], f)))
        found["tensors"].append((tensor_bytes() - tensors) / 1e6)
        found["resident"].append((process.memory_info().rss - resident) / 1e6)
    for index in range(switches + COUNT):
        name = names[(index + 1) % COUNT]
        times = timed(lambda n=name: model.set_adapter(n)), timed(forward), timed(forward)
        if index >= COUNT:  # each has run once before
            for key, value in zip(("switch", "after", "plain"), times, strict=True):
                found[key].append(value)
    return found


def line(label: str, values: list[float], unit: str) -> str:
    """Return the median and the quartiles of measured values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{label:>34}: {middle:9.2f} [{low:.2f}, {high:.2f}] {unit}"


def machine() -> str:
    threads, load = torch.get_num_threads(), psutil.getloadavg()[0]
    return f"torch {torch.__version__}, {threads} torch threads, {cpu_name()}, load {load}"


def table(library: str, parameters: int, found: dict[str, list[float]]) -> str:
    rows = {
        "load one more": ("load", "ms"),
        "set_adapter": ("switch", "ms"),
        "first forward after it": ("after", "ms"),
        "forward without a switch": ("plain", "ms"),
        "tensors of one more adapter": ("tensors", "MB"),
        "resident memory of one more": ("resident", "MB"),
    }
    lines = [line(label, found[key], unit) for label, (key, unit) in rows.items()]
    return "\n".join([f"{library}: {COUNT} adapters of {parameters:,} parameters", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description="Several adapters on one pair of towers.")
    parser.add_argument("--small", action="store_true", help="towers of 4 blocks, 128 wide")
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--measure", nargs=2, metavar=("LIBRARY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        library, folder = args.measure
        print(json.dumps(measure(library, args.small, Path(folder), args.switches)))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in ("bridger", "peft")}
        parameters = {"bridger": write_bridged(args.small, folders["bridger"])}
        parameters["peft"] = write_lora(args.small, folders["peft"], parameters["bridger"])
        for library, folder in folders.items():
            command = [sys.executable, __file__, "--measure", library, str(folder)]
            command += ["--switches", str(args.switches), *(["--small"] if args.small else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(table(library, parameters[library], json.loads(done.stdout.splitlines()[-1])))


if __name__ == "__main__":
    main()
