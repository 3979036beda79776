"""What `bridger ablate` and `bridger compare` share: both conduct studies."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from bridger.cli.adapters import add_device_option, add_import_option, trains_on_cpu
from bridger.cli.base import Counter, ended_like_ctrl_c, say, whole
from bridger.cli.data import make_missing_scenes

if TYPE_CHECKING:
    from bridger.studies.conduct import Conduct
    from bridger.studies.results import StudyResults
    from bridger.studies.study import Study

RUNS, SCENES = "runs", "scenes"


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both verbs."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="referring expressions with splits train, val and test... (default: the embedded "
        "scenes)",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="which data sets of the folder, where it holds several; several are mixed",
    )
    parser.add_argument(
        "--base",
        metavar="RECIPE",
        help="what the settings change, in place of the study's base: a recipe's name or a JSON "
        "file, for towers of your own, say; rows that do not fit them say so",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("studies"),
        metavar="DIR",
        help="of all studies: DIR/runs holds the runs, DIR/STUDY a report (default: studies)",
    )
    parser.add_argument(
        "--seeds",
        type=whole(1),
        metavar="N",
        help="runs of every setting (default: as the study has it)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="these alone, with the reference and those whose learning rates they take",
    )
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N", help="runs at once (default: one a core, or a GPU)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few updates of one seed: does all of it work? (Data of your own are judged whole)",
    )
    add_device_option(parser)
    add_import_option(parser)


def conduct_studies(args: argparse.Namespace, studies: Sequence[Study]) -> dict[str, Any]:
    """Make what runs are missing, write a report of each study, and say where it is.

    Raises:
        RuntimeError: some runs failed; all others were made, and the reports written.
        ValueError: two studies of one name, or what `Study` and the data refuse.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    from bridger.studies.drawing import NO_PLOTS, can_plot
    from bridger.studies.report import write_report

    if not can_plot():  # before hours of runs
        say(NO_PLOTS)
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise ValueError(f"two studies have one name, and so one report: {', '.join(names)}")
    conductors = [conductor(args, study) for study in studies]  # all are checked before any runs
    told, failures = {}, []
    for conducted in conductors:
        study = conducted.study
        say(f"{study.name}: {study.note}")
        started = time.monotonic()
        try:
            with ended_like_ctrl_c():
                results = conducted()
        except KeyboardInterrupt as interruption:
            raise KeyboardInterrupt("the same command goes on") from interruption
        folder = args.out / study.name
        write_report(folder, results)
        told[study.name] = {"report": str(folder), "rows": _figures(results)}
        say(*_lines(results), f"wrote {folder} after {time.monotonic() - started:.0f} s", "")
        failures += conducted.failures
    if failures:
        raise RuntimeError("\n".join(failures))
    return told


def conductor(args: argparse.Namespace, study: Study) -> Conduct:
    """Return what conducts a study as the arguments say."""
    from bridger.studies.conduct import QUICK_SCENES, Conduct
    from bridger.studies.scheduling import Machine
    from bridger.studies.store import Store

    if args.only:
        study = study.only(args.only)
    if args.base is not None:
        study = study.replace(base=args.base)
    if args.dataset is not None:
        study = study.replace(changes={**study.changes, "datasets": args.dataset})
    study.check()
    data = args.data
    if data is None:
        counts = QUICK_SCENES if args.quick else study.scenes
        data = args.out / "-".join([SCENES, *map(str, counts.values())])
        make_missing_scenes(data, counts)
    return Conduct(
        study,
        data,
        Store(args.out / RUNS),
        Machine.here(args.jobs, trains_on_cpu(args.device)),
        seeds=args.seeds or (1 if args.quick else None),
        quick=args.quick,
        report=RunsCounter(study.name),
        imports=args.imports,
    )


class RunsCounter:
    """Says how many runs of a study are finished, and how long the rest will take.

    Args:
        name: of the study.
    """

    def __init__(self, name: str) -> None:
        self.name, self.total = name, 0

    def __call__(self, done: int, total: int, seconds: float | None) -> None:
        if total != self.total:  # another series: the search's, then the settings'
            self.counter, self.total = Counter(f"{self.name}, runs"), total
        from bridger.training.remaining import duration

        self.counter(done, total, note=f"{duration(seconds)} left" if seconds else "")


def _figures(results: StudyResults) -> dict[str, Any]:
    """Return the mean mIoU of every row by split, for `--json`."""
    return {
        row.name: {split: row.mean(split, "mIoU") for split in results.splits}
        for row in results.rows
        if row.runs
    }


def _lines(results: StudyResults) -> list[str]:
    """Return the table of a study for a terminal."""
    from bridger.studies.tables import main_table

    warning = ["a quick run: these figures say nothing", ""] if results.quick else []
    return [*main_table(results).lines(get_terminal_size().columns), "", *warning]
