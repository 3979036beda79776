"""What the verbs on adapters share: their options, and how an adapter is found and loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridger.tasks import Task

ADAPTER = "a folder, the Hub's USER/NAME[@REVISION], or tiny or tiny-heads: those in the package"


def add_towers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which towers an adapter is for."""
    parser.add_argument(
        "--towers",
        metavar="NAME",
        help="tiny, open_clip:MODEL[:PRETRAINED][@SIZE], transformers:MODEL, "
        "etris:FILE[@WORDS], or VISION,TEXT with timm:MODEL and torchvision:MODEL for vision too "
        "(default: what the adapter says)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the model runs."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps or auto (default): a GPU where there is one",
    )


def device_of(name: str) -> Any:
    """Return torch's device of a name.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {name}: torch has no such device here ({str(error).splitlines()[0]})"
        ) from error


def add_head_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which head of an adapter answers."""
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="which of the adapter's heads, by its name there or by what it is, such as detection "
        "(default: the only one)",
    )


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


def recipe_beside(adapter: Path) -> dict[str, Any]:
    """Return the options of the recipe that was saved with an adapter; none where there is none."""
    path = adapter / "recipe.json"
    options: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return options


def datasets_of(task: Task, adapter: Path, root: Path, given: list[str] | None) -> list[str | None]:
    """Return the data sets of a task in `root` to judge an adapter on.

    Those given, or those of the adapter's recipe that are there, or the only one.

    Raises:
        FileNotFoundError, ValueError: see `bridger.tasks.find_data`; names where folders hold one.
    """
    from bridger.tasks import find_data

    if given and not task.datasets:
        raise ValueError(
            f"--dataset means nothing for {task.name}: a folder holds one data set of it"
        )
    names = list(given or ())
    if given is None and task.datasets and (wanted := recipe_beside(adapter).get("datasets")):
        from bridger.data.catalog import data_sets

        there = data_sets(root)
        names += [name for name in wanted if name in there]
    return find_data(task, root, names)


def load_model(adapter: str | Path, args: argparse.Namespace) -> Any:
    """Load an adapter onto its towers, ready to answer; `args` as the options here fill them."""
    from bridger.model import BridgedModel

    device = device_of(args.device)
    return BridgedModel.from_pretrained(adapter, towers=args.towers).to(device)
