"""`bridger quickstart`: the main job, end to end, with what comes in the package."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger._json import read_json
from bridger.cli.adapters import add_device_option, trains_on_cpu
from bridger.cli.base import Counter, command, figures, megabytes, say, table, whole
from bridger.cli.data import DEFAULTS, describe_data, make_missing_scenes

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.training import Recipe

HELP = "go the whole way with what comes in the package"
ABOUT = """\
Makes 2,300 scenes, tunes Bridgers and a head on the frozen Tiny CLIP, judges
them on three splits and segments a picture. Takes minutes on two CPU cores and
downloads nothing. Ctrl-C saves; the same command goes on.
"""
EXAMPLES = """\
  bridger quickstart
  bridger quickstart --short --out smoke       seconds: does all of it work?
  bridger quickstart --no-bridgers --out head-alone
  bridger quickstart --steps 4000 --out longer
"""
SPLITS = ("val", "testA", "testB")
SHORT_COUNTS = {"train": 32, "val": 4, "testA": 4, "testB": 4}
SHORT_STEPS = 10
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Plan:
    """What one run of the quickstart does.

    Attributes:
        out: folder of the adapter and everything else.
        data: folder of the scenes, made where it is not there.
        steps: updates; None: the recipe's.
        seed: of training; scenes are always the same.
        changes: options of the recipe that differ from the quickstart's.
        short: a smoke run with hardly any data.
        use_cpu: train on the CPU where there is a GPU too.
    """

    out: Path
    data: Path
    steps: int | None = None
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    short: bool = False
    use_cpu: bool = False


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("quickstart"), metavar="DIR", help="default: quickstart"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="scenes, made if missing (default: OUT/scenes)"
    )
    parser.add_argument(
        "--steps", type=whole(1), metavar="N", help="updates (default: as the recipe has it)"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="of training")
    parser.add_argument(
        "--no-bridgers", action="store_true", help="the same head on unbridged towers"
    )
    parser.add_argument("--short", action="store_true", help="a smoke run of seconds")
    add_device_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the plan that the arguments describe."""
    data = args.data or args.out / "scenes"
    changes = {"bridgers": None} if args.no_bridgers else {}
    use_cpu = trains_on_cpu(args.device)
    return perform(Plan(args.out, data, args.steps, args.seed, changes, args.short, use_cpu))


def perform(plan: Plan) -> dict[str, Any]:
    """Make scenes, train, judge, save and show; return the figures.

    Raises:
        FileExistsError: the folder holds a finished run of another recipe.
        KeyboardInterrupt: Ctrl-C; what was trained is saved, and the next call goes on.
    """
    from bridger.training import Recipe
    from bridger.training.run import has_checkpoint, train

    changes: dict[str, Any] = {**plan.changes, "seed": plan.seed}
    if plan.steps or plan.short:
        changes["steps"] = plan.steps or SHORT_STEPS
    recipe = Recipe.preset("quickstart", **changes)
    if (plan.out / METRICS_FILE).exists():
        return show_again(plan.out, recipe)
    started = time.monotonic()
    make_scenes(plan)
    from bridger.data import RefCOCO

    resume = has_checkpoint(plan.out)
    with_or_without = "Bridgers and head" if recipe.bridgers else "the head alone"
    say(f"training {with_or_without} on the frozen Tiny CLIP, {recipe.steps} steps")
    if resume:
        say("going on from the last checkpoint")
    splits = {name: RefCOCO(plan.data, name) for name in ("train", *SPLITS)}
    try:
        model = train(
            recipe,
            splits["train"],
            plan.out,
            validation=splits["val"],
            resume=resume,
            use_cpu=plan.use_cpu,
        )
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("the same command goes on") from interruption
    trained = time.monotonic()
    results = judge(model, {name: splits[name] for name in SPLITS}, short=plan.short)
    picture = show(model, splits["testA"], plan.out)
    seconds = {"training": trained - started, "all": time.monotonic() - started}
    summary = {
        "recipe": recipe.to_dict(),
        "splits": results,
        "seconds": seconds,
        **conclude(model, plan, picture),
    }
    (plan.out / METRICS_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    say(f"all of it took {seconds['all']:.0f} s")
    model.detach()
    return summary


def show_again(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Print the figures of a finished run in place of repeating it."""
    from bridger.training import Recipe

    summary: dict[str, Any] = read_json(out / METRICS_FILE)
    if recipe.differences(Recipe.from_dict(summary["recipe"])):
        raise FileExistsError(
            f"{out} holds a finished run of another recipe: choose another folder with --out"
        )
    say(f"{out} holds this run already (remove it, or choose another --out, to train anew)", "")
    say(*table({name: figures(metrics) for name, metrics in summary["splits"].items()}))
    return summary


def make_scenes(plan: Plan) -> None:
    """Write the scenes where they are not there yet, and say what they are."""
    counts = SHORT_COUNTS if plan.short else DEFAULTS
    make_missing_scenes(plan.data, counts)
    say(*describe_data(plan.data, counts))


def judge(
    model: BridgedModel, splits: dict[str, Any], *, short: bool = False
) -> dict[str, dict[str, float]]:
    """Evaluate every split, and print the table."""
    from bridger.evaluation.evaluate import evaluate

    results = {
        name: evaluate(model, split, report=Counter(name)).figures()
        for name, split in splits.items()
    }
    say("", *table({name: figures(metrics) for name, metrics in results.items()}))
    say(
        "in percent, over every sentence; val: as in training, testA: several objects of one "
        "kind, testB: kinds never asked for in training",
        *(["a smoke run: these scores say nothing"] if short else []),
        "",
    )
    return results


def show(model: BridgedModel, split: Any, out: Path) -> dict[str, str]:
    """Segment one picture by two of its sentences; write the overlay."""
    first = split.pictures()[0]
    sample = split[first[0]]
    words = [split[ref].sentences[0] for ref in first[:2]]
    overlay = out / "seen.png"
    result: Any = model.predict(sample.image_path, words)
    result.overlay(sample.image_path, words).save(overlay)
    said = " and ".join(f"{text!r}" for text in words)
    say(f"{overlay}: {sample.image_path.name} with the masks of {said}")
    return {"overlay": str(overlay), "image": str(sample.image_path), "words": words[0]}


def conclude(model: BridgedModel, plan: Plan, picture: dict[str, str]) -> dict[str, Any]:
    """Say what was saved, how large it is against the towers, and what to try next."""
    from bridger.adapter_files import WEIGHTS_FILE

    size = (plan.out / WEIGHTS_FILE).stat().st_size
    towers = sum(p.numel() * p.element_size() for p in model.encoder.towers.parameters())
    example = [picture["image"], picture["words"], "--adapter", plan.out]
    alone = ["--no-bridgers", "--data", plan.data, "--out", "head-alone"]
    model.print_trainable_parameters()
    say(
        f"saved {plan.out} ({megabytes(size)}; the frozen towers are {megabytes(towers)} and are "
        f"not saved again)",
        "try next:",
        f"  {command('predict', *example, '--overlay', 'mine.png')}",
        f"  {command('demo', plan.out)}",
        f"  {command('inspect', plan.out)}",
        f"  {command('push', plan.out, 'USER/NAME')}",
        f"  {command('quickstart', *alone)}",
    )
    return {"adapter": str(plan.out), "bytes": size, "tower_bytes": towers, "picture": picture}
