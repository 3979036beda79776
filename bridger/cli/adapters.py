"""What the verbs on adapters share: their options, and how an adapter is found and loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger._importing import import_modules

if TYPE_CHECKING:
    import torch

    from bridger.tasks import Task

ADAPTER = "a folder, the Hub's USER/NAME[@REVISION], or tiny or tiny-heads: those in the package"


def add_towers_option(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which towers an adapter is for, and whether to download them."""
    parser.add_argument(
        "--towers",
        metavar="NAME",
        help="tiny, open_clip:MODEL[:WEIGHTS][@SIZE], transformers:MODEL[@REVISION][#CLASS], "
        "etris:FILE[@WORDS], or VISION,TEXT with timm:MODEL[:WEIGHTS][@SIZE] and "
        "torchvision:MODEL[:WEIGHTS] for vision too (default: what the adapter says)",
    )
    parser.add_argument(
        "--download",
        action=argparse.BooleanOptionalAction,
        help="download the towers' weights without asking, or not at all (default: ask where they "
        "are more than a gigabyte)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the model runs."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps or auto (default): a GPU where there is one",
    )


def add_prefix_cache_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option that says where what frozen towers have made is kept.

    Args:
        parser: gets the option.
        default: what is done without it, for the help.
    """
    parser.add_argument(
        "--prefix-cache",
        metavar="memory|DIR",
        help="keep what the towers make of pictures before Bridgers act on them, and begin there "
        f"when a picture comes again; DIR serves other runs too (default: {default})",
    )


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes heads, tasks and towers of the user's own known."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE|FILE.py",
        help="import this first: it registers a head, a task or a family of towers of your own; "
        "may be given often",
    )


def import_own(args: argparse.Namespace) -> None:
    """Import what `--import` names; of a verb without that option, nothing."""
    import_modules(getattr(args, "imports", ()))


def device_of(name: str) -> torch.device:
    """Return torch's device of a name.

    Args:
        name: as `add_device_option` takes it.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    there = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return torch.device("cpu") if there is None else there
    known = ["cpu"]
    if there is not None:
        known += [
            there.type,
            *(f"{there.type}:{i}" for i in range(torch.accelerator.device_count())),
        ]
    if name not in known:
        raise ValueError(
            f"--device {name}: there is no such device here; there is {', '.join(known)}"
        )
    return torch.device(name)


def trains_on_cpu(name: str) -> bool:
    """Whether a run of training is to use the CPU; if not, transformers' Trainer takes the GPU.

    Args:
        name: as `add_device_option` takes it.

    Raises:
        ValueError: there is no such device, or the Trainer would take another one.
    """
    device = device_of(name)
    index = name.partition(":")[2]
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--device {name}: of several processes each takes its own: say auto")
    if index not in ("", "0"):
        raise ValueError(
            f"--device {name}: training takes the first GPU that it sees: set "
            f"CUDA_VISIBLE_DEVICES={index} and say {device.type}"
        )
    return device.type == "cpu"


def add_head_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which head of an adapter answers."""
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="which of the adapter's heads, by its name there or by what it is, such as detection "
        "(default: the only one)",
    )


def find(name: str, args: argparse.Namespace) -> Path:
    """Return the folder of an adapter; errors call it by the name that was typed.

    Args:
        name: as the user typed it, see `ADAPTER`.
        args: remembers which folder it is.

    Raises:
        FileNotFoundError, OSError: see `bridger.hub.find_adapter`.
    """
    from bridger.hub import find_adapter
    from bridger.tiny_clip import SHIPPED

    if Path(name).expanduser().exists() or name in SHIPPED:
        folder = find_adapter(name)
    else:
        with _without_bars():
            folder = find_adapter(name)
    if folder != Path(name):
        args.typed = {**getattr(args, "typed", {}), str(folder): name}
    return folder


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let huggingface_hub draw nothing: its bars for several files stay open until Python ends.

    What is printed after them would stand between their lines. An adapter is a few megabytes.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:  # the user decided
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def named_as_typed(message: str, args: argparse.Namespace) -> str:
    """Replace folders in a message by what the user typed: a cache's path tells nobody anything."""
    for folder, name in getattr(args, "typed", {}).items():
        message = message.replace(folder, name)
    return message


def head_in(adapter: Path, asked: str | None) -> tuple[str, str]:
    """Return the name of the head of an adapter that is asked for, and its registered name.

    Args:
        adapter: its folder.
        asked: the head's name in the adapter, or its registered name where no other has it; None:
            the only head.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: there is no such head, or several.
    """
    from bridger.adapter_files import read_saved_config

    found = read_saved_config(adapter)["heads"]
    heads = {name: head["type"] for name, head in found.items()}
    fitting = [name for name in heads if asked in (None, name)]
    fitting = fitting or [name for name in heads if heads[name] == asked]
    if len(fitting) == 1:
        return fitting[0], heads[fitting[0]]
    listed = ", ".join(f"{name} ({registered})" for name, registered in heads.items()) or "none"
    if not fitting:
        what = "a head" if asked is None else f"a head {asked!r}"
        raise ValueError(f"{adapter} does not have {what}: it has {listed}")
    raise ValueError(f"several heads of {adapter} could answer, name one with --head: {listed}")


def datasets_of(task: Task, adapter: Path, root: Path, given: list[str] | None) -> list[str | None]:
    """Return the data sets of a task in `root` to judge an adapter on.

    Those given, or those of the adapter's recipe that are there, or the only one.

    Raises:
        FileNotFoundError, ValueError: see `bridger.tasks.find_data`; names where folders hold one.
    """
    from bridger.adapter_files import read_recipe
    from bridger.tasks import find_data

    if given and not task.datasets:
        raise ValueError(
            f"--dataset means nothing for {task.name}: a folder holds one data set of it"
        )
    names = list(given or ())
    if given is None and task.datasets and (wanted := (read_recipe(adapter) or {}).get("datasets")):
        from bridger.data.catalog import data_sets

        there = data_sets(root)
        names += [name for name in wanted if name in there]
    return find_data(task, root, names)


def load_model(adapter: str | Path, args: argparse.Namespace) -> Any:
    """Load an adapter onto its towers, ready to answer; `args` as the options here fill them."""
    from bridger.model import BridgedModel

    device = device_of(args.device)
    model = BridgedModel.from_pretrained(adapter, towers=args.towers, download=args.download)
    return model.to(device)
