"""`bridger push`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bridger.cli.adapters import ADAPTER, add_import_option, find
from bridger.cli.base import complain, say

HELP = "put an adapter on the Hub, with a model card"
ABOUT = """\
What is pushed is the adapter alone, never the towers, and nothing else that
lies in its folder. The card says what it is, how it is used and how good it
is; a README.md in the folder is pushed as it is, unless options for a new one
are given. Log in first, once, with `hf auth login`. HF_ENDPOINT names another
Hub, HF_TOKEN another token.
"""
EXAMPLES = """\
  bridger push my-adapter anna/owls --licence apache-2.0
  bridger push my-adapter anna/owls --figures figures.json --picture seen.png --private
  bridger push my-adapter anna/owls --revision longer --message "Train twice as long"
  bridger push my-adapter anna/owls --card-only
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    parser.add_argument("repo_id", metavar="USER/NAME", help="on the Hub; made where there is none")
    parser.add_argument(
        "--figures",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="for the card: what `bridger evaluate ADAPTER --json FILE` wrote",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="for the card: what it finds (default: of the embedded towers a scene)",
    )
    parser.add_argument(
        "--licence",
        metavar="NAME",
        help="of the adapter, as the Hub calls it, such as apache-2.0, mit or cc-by-4.0",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write over a README.md that bridger did not write, or that was changed since",
    )
    parser.add_argument(
        "--card-only",
        action="store_true",
        help="write the card into ADAPTER, to be looked at and changed, and push nothing",
    )
    parser.add_argument(
        "--private", action="store_true", help="a new repository can be seen by you alone"
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", help="made where there is none (default: main)"
    )
    parser.add_argument("--message", metavar="TEXT", help="what the repository's history says")
    add_import_option(parser)


LITTLE = 0.01
"""A figure below it says that next to nothing was learnt."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the card, and push.

    Raises:
        ValueError: options for pushing where only the card is wanted.
    """
    from bridger.adapter_files import PICTURE
    from bridger.hub import push_folder
    from bridger.model_card import write_card

    given = {
        "figures": args.figures,
        "picture": args.picture,
        "licence": args.licence,
        "overwrite": args.overwrite,
    }
    card: dict[str, Any] = {name: value for name, value in given.items() if value}
    if args.card_only:
        if args.private or args.revision or args.message:
            raise ValueError(
                "--private, --revision and --message are for pushing, and --card-only does not"
            )
        if not Path(args.adapter).is_dir():
            raise ValueError(f"--card-only writes into a folder, and {args.adapter} is none here")
        path = write_card(args.adapter, args.repo_id, **card)
        picture = path.with_name(PICTURE)
        wrote = [str(each) for each in (path, picture) if each.is_file()]
        say(f"wrote {' and '.join(wrote)}", "next: change it as you like, then push without it")
        return {"card": str(path)}
    adapter = find(args.adapter, args)
    for figure in _low_figures(adapter, args.figures):
        complain(
            f"bridger: warning: {args.adapter} seems to have learnt next to nothing ({figure}): "
            f"look at what `bridger evaluate` and `bridger data check` say before others load it"
        )
    address = push_folder(
        adapter,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        commit_message=args.message,
        **card,
    )
    named = args.repo_id + (f"@{args.revision}" if args.revision else "")
    say(f"pushed {args.adapter} to {address}", f"next: bridger inspect {named}")
    return {"address": address, "adapter": named}


def _low_figures(adapter: Path, figures: Sequence[Path] | None) -> Iterator[str]:
    """Yield the usual figure of each head whose best is below `LITTLE`, where one is known.

    Known are the figures that are given and those of the training that lie in the folder.
    """
    from bridger.adapter_files import read_saved_config
    from bridger.cards.facts import records_of
    from bridger.tasks import get_task, list_tasks

    heads = [head["type"] for head in read_saved_config(adapter)["heads"].values()]
    judged = [(record["task"], record["metrics"]) for record in records_of(figures, heads)]
    if len(heads) == 1:  # else nothing says which one was trained
        judged += [(heads[0], metrics) for metrics in _on_the_way(adapter)]
    for task in dict.fromkeys(task for task, _ in judged if task in list_tasks()):
        of_task = [metrics for other, metrics in judged if other == task]
        for name in get_task(task).metrics:
            if found := [metrics[name] for metrics in of_task if name in metrics]:
                if max(found) < LITTLE:
                    yield f"{name} {100 * max(found):.2f} %"
                break


def _on_the_way(adapter: Path) -> list[dict[str, float]]:
    """Return what was logged during training, figures by their names, if its history is there."""
    from bridger._json import read_json
    from bridger.training.run import HISTORY_FILE

    history = adapter / HISTORY_FILE
    entries = read_json(history) if history.is_file() else []
    return [
        {name.removeprefix("eval_"): value for name, value in entry.items() if value is not None}
        for entry in entries
    ]
