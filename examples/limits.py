"""Where masks go wrong: IoU by how many objects of the same kind, and of any kind, a picture holds.

    bridger compare --only "the head alone"
    python examples/limits.py studies/runs/*/seed-* --data studies/scenes --plot limits.png

The paper names two limits of its method: similar objects in number are confused, and pictures full
of objects are unstable. Runs are those of a study (`bridger ablate`, `bridger compare`) on data in
RefCOCO's own format, whose annotations say what else is in a picture. A row is a folder of the run
store, which holds the seeds of one setting; it is called as its first seed is.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from bridger._json import read_json
from bridger.data import RefCOCO
from bridger.data.layouts import locate
from bridger.studies.store import RESULT_FILE, Run, fingerprint

QUESTIONS = {
    "same": "objects of the kind that is meant",
    "all": "objects in the picture",
}
MOST = 6
"""Larger counts are told together."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--data", type=Path, required=True, help="what they were judged on")
    parser.add_argument("--settings", nargs="+", help="of the runs, by name (default: all)")
    parser.add_argument("--splits", nargs="+", default=["testA", "testB"])
    parser.add_argument("--plot", type=Path, help="draw it to this file (matplotlib)")
    args = parser.parse_args()

    rows = by_setting(read_runs(args.runs, args.splits), args.settings)
    data = {split: RefCOCO(args.data, split) for split in args.splits}
    check_data([run for runs in rows.values() for run in runs], data, args.data)
    counts = [count_objects(args.data, each) for each in data.values()]
    found: dict[str, dict[str, Any]] = {}
    for question, about in QUESTIONS.items():
        groups = np.minimum(np.concatenate([each[question] for each in counts]), MOST)
        found[question] = {
            name: by_count(groups, [ious(run, args.splits) for run in runs])
            for name, runs in rows.items()
        }
        print(*table(about, groups, found[question]), "", sep="\n")
    if args.plot:
        draw(found, args.plot)
        print(f"wrote {args.plot}")


def read_runs(folders: Iterable[Path], splits: Sequence[str]) -> list[Run]:
    """Return the finished runs that were judged on all of the splits, each once, by seed."""
    runs = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if (folder / RESULT_FILE).is_file():
            result = read_json(folder / RESULT_FILE)
            if result["splits"].keys() >= set(splits):
                runs.append(Run(folder, result["setting"], result["seed"], result))
    if not runs:
        raise SystemExit(
            f"no folder holds a finished run that was judged on {' and '.join(splits)}"
        )
    return sorted(runs, key=lambda run: run.seed)


def by_setting(runs: Sequence[Run], wanted: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Return the runs of each setting, which lie in one folder of the store.

    Names alone do not tell settings apart: two studies may call others alike.
    """
    seeds: dict[Path, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.folder.parent, []).append(run)
    named: dict[str, list[Path]] = {}
    for folder, of_folder in seeds.items():
        named.setdefault(of_folder[0].setting, []).append(folder)
    for name in wanted or named:
        if name not in named:
            raise SystemExit(f"no run is of the setting {name!r}: there are {sorted(named)}")
        if len(named[name]) > 1:
            raise SystemExit(
                f"several settings, or one on several data, are called {name!r}: the runs in "
                f"{' and '.join(map(str, sorted(named[name])))}. Give the runs of one of these "
                "folders, or name the settings that are meant with --settings"
            )
    return {name: seeds[named[name][0]] for name in wanted or sorted(named)}


def check_data(runs: Sequence[Run], data: Mapping[str, RefCOCO], root: Path) -> None:
    """Refuse runs that were judged on other data than those whose objects are counted."""
    for split, each in data.items():
        expected = fingerprint(each)
        for run in runs:
            if run.result["samples"]["data"].get(split) != expected:
                raise SystemExit(
                    f"the run in {run.folder} was judged on another {split} than that in {root}: "
                    "give the data that it was judged on with --data, or leave it out"
                )


def count_objects(root: Path, data: RefCOCO) -> dict[str, np.ndarray[Any, Any]]:
    """Return for every expression (E,) how many objects of its kind, and of any, there are."""
    files: Any = locate(root, "refcoco", "unc")
    annotations = COCO(files.instances)
    same, everything = [], []
    for index, _ in data.expressions():
        meant = annotations.anns[data[index].ann_ids[0]]
        kinds = Counter(other["category_id"] for other in annotations.imgToAnns[meant["image_id"]])
        same.append(kinds[meant["category_id"]])
        everything.append(kinds.total())
    return {"same": np.array(same), "all": np.array(everything)}


def ious(run: Run, splits: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the IoU of every expression (E,) of the splits."""
    cases = [run.cases(split) for split in splits]
    return np.concatenate([each.intersection / (each.union + 1e-6) for each in cases])


def by_count(groups: Any, of_seeds: Sequence[Any]) -> dict[int, tuple[float, float]]:
    """Return the mean IoU by count: its mean and standard deviation over seeds."""
    spread = {}
    for count in np.unique(groups):
        means = [float(values[groups == count].mean()) for values in of_seeds]
        deviation = statistics.stdev(means) if len(means) > 1 else float("nan")
        spread[int(count)] = (statistics.mean(means), deviation)
    return spread


def table(about: str, groups: Any, rows: dict[str, dict[int, tuple[float, float]]]) -> list[str]:
    """Lay out IoUs in percent, a row for each setting."""
    counts = [int(count) for count in np.unique(groups)]
    lines = [
        f"mIoU in percent by the number of {about}",
        "| | " + " | ".join(label(count) for count in counts) + " |",
        "| --- |" + " --- |" * len(counts),
        "| expressions | " + " | ".join(str((groups == count).sum()) for count in counts) + " |",
    ]
    for name, values in rows.items():
        cells = [
            f"{100 * mean:.1f} +- {100 * deviation:.1f}" for mean, deviation in values.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def label(count: int) -> str:
    """Write a count as the tables do."""
    return f"{count} and more" if count == MOST else str(count)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw both questions side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (question, about) in zip(axes, QUESTIONS.items(), strict=True):
        for name, values in found[question].items():
            means, deviations = np.array(list(values.values())).T * 100
            axis.errorbar(list(values), means, np.nan_to_num(deviations), label=name, capsize=3)
        axis.set_xlabel(about)
        counts = list(next(iter(found[question].values())))
        axis.set_xticks(counts, [f"{c}+" if c == MOST else str(c) for c in counts])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mIoU, percent")
    axes[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
