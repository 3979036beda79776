"""The text of a model card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bridger.cards.facts import Facts, HeadFacts
from bridger.evaluation.table import with_interval
from bridger.summary import saved_stages, saved_widths
from bridger.tower_source import is_path

SHOWN_CLASSES = 20
LEFT_OUT = ("towers", "head", "note", "cost", "aims")
"""Of a recipe: what the card has already, and what was said of the recipe and not of this run."""


def text(facts: Facts, picture: str | None, caption: str) -> str:
    """Return the card's text in Markdown.

    Args:
        facts: what is known.
        picture: name of the picture's file; None: there is none.
        caption: what the picture shows.
    """
    tasks = ", ".join(head.registered.replace("_", " ") for head in facts.heads)
    parts = [
        f"# {facts.name}",
        f"An adapter for {tasks or 'features'}: small parts that were trained with bridger "
        f"{facts.config['bridger_version']} on two frozen towers, one for pictures and one for "
        f"words. The towers are not in it.",
        *([f"![{caption}]({picture})", f"*{caption}*"] if picture else []),
        *_section("Use", _use(facts)),
        *_section("Towers", _towers(facts)),
        *_section("Bridgers", _bridgers(facts)),
        *_section("Heads", _heads(facts)),
        *_section("Size", _size(facts)),
        *_section("Figures", _figures(facts)),
        *_section("Training", _training(facts)),
        *_section("Limits", _limits(facts)),
        *_section("Licence", [_licence(facts)]),
    ]
    return "\n\n".join(parts) + "\n"


def example_words(facts: Facts, head: HeadFacts) -> list[str]:
    """Return words that fit a head: a sentence, or classes that it knows."""
    if head.text == "classes":
        return head.classes[:2] or ["dog", "cat"]
    return ["the owl on the left" if facts.is_embedded else "the dog on the left"]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"## {title}", *parts] if parts else []


def _use(facts: Facts) -> list[str]:
    lacks_processor = facts.heads and not (facts.config["processor"] or facts.is_embedded)
    names = "BridgedModel, Processor" if lacks_processor else "BridgedModel"
    pieces = [f"from bridger import {names}", "", *_loading(facts)]
    if lacks_processor:
        pieces += [
            "if model.processor is None:  # neither the adapter nor the towers brought one",
            "    # As the towers were trained: size of pictures, mean and deviation of channels,",
            "    # tokenizer, and most tokens of a text.",
            "    model.processor = Processor(image_size, mean, std, tokenizer, max_length)",
        ]
    several = len(facts.heads) > 1
    for head in facts.heads:
        words = example_words(facts, head)
        asked = words[0] if head.text == "expressions" else words
        which = f", head={json.dumps(head.name)}" if several else ""
        seen = f"seen-{head.name}.png" if several else "seen.png"
        pieces += [
            "",
            f'result = model.predict("picture.jpg", {json.dumps(asked)}{which})',
            "print(result.found())",
            f'result.overlay("picture.jpg").save("{seen}")',
        ]
    parts = ["```bash\npip install bridger-peft\n```", "```python\n" + "\n".join(pieces) + "\n```"]
    if facts.heads:
        head = facts.heads[0]
        command = ["bridger", "predict", "picture.jpg", *example_words(facts, head)]
        command += ["--adapter", facts.repo_id, *(["--head", head.name] if several else [])]
        command += [] if _loads_alone(facts) else ["--towers", _name_to_give(facts)]
        shell = shlex.join([*command, "--overlay", "seen.png"])
        parts.append(f"```bash\n{shell}\n```")
    return parts


def _loads_alone(facts: Facts) -> bool:
    return bool(facts.origins) and not any(origin.is_local for origin in facts.origins)


def _name_to_give(facts: Facts) -> str:
    return ",".join(origin.name for origin in facts.origins) or "NAME"


def _loading(facts: Facts) -> list[str]:
    if _loads_alone(facts):
        return [f'model = BridgedModel.from_pretrained("{facts.repo_id}")']
    if facts.origins:
        why = "# FILE and FOLDER stand for your own copy of the towers."
    else:
        why = "# NAME stands for the towers below, as bridger.load_towers makes them."
    towers = _name_to_give(facts)
    return [why, f'model = BridgedModel.from_pretrained("{facts.repo_id}", towers="{towers}")']


def _towers(facts: Facts) -> list[str]:
    rows = []
    for side, tower in facts.config["towers"].items():
        name = tower.get("name") or ""
        widths = saved_widths(tower["widths"])
        named = "" if is_path(name) else name
        rows.append((side, tower["library"], tower["class"], named, tower["num_blocks"], widths))
    shown = table(("side", "library", "class", "name", "blocks", "width"), rows)
    if not facts.origins:
        return [shown, "Where they come from was not said: load them yourself, and pass them."]
    said = [
        f"- `{origin.name}`"
        + (f", [{origin.hub_id}](https://huggingface.co/{origin.hub_id})" if origin.hub_id else "")
        + (", a local file of whoever shared this: have your own copy" if origin.is_local else "")
        + (", which comes with bridger" if facts.is_embedded else "")
        for origin in facts.origins
    ]
    return [shown, "They are loaded by these names:", "\n".join(said)]


def _bridgers(facts: Facts) -> list[str]:
    encoder = facts.config["encoder"]
    stages = f"Stages, as (vision block, text block): {saved_stages(encoder['stages'])}."
    if encoder["bridgers"] is None:
        return [f"None: the towers are read and not changed. {stages}"]
    return [stages, _options(encoder["bridgers"])]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in options.items() if value is not None)


def _heads(facts: Facts) -> list[str]:
    parts = []
    for head in facts.heads:
        options = {key: value for key, value in head.options.items() if key != "classes"}
        about = head.about or "Its package must be imported before it is loaded."
        lines = [f"**{head.name}** (`{head.registered}`): {about}"]
        if head.classes:
            shown = ", ".join(head.classes[:SHOWN_CLASSES])
            more = len(head.classes) - SHOWN_CLASSES
            lines.append(
                f"Trained on {len(head.classes)} classes: {shown}"
                + (f", and {more} more." if more > 0 else ".")
            )
        parts += [*lines, f"Options: {_options(options)}"]
    return parts


def _size(facts: Facts) -> list[str]:
    whole = sum(facts.numbers.values())
    rows = [(part, f"{count:,}") for part, count in facts.numbers.items()]
    said = f"{facts.size / 1e6:.2f} MB, {whole:,} numbers"
    if facts.tower_numbers is not None:
        share = 100 * whole / (whole + facts.tower_numbers)
        said += f": {share:.2f} % of it and the towers together"
        rows.append(("the towers, not in here", f"{facts.tower_numbers:,}"))
    return [f"{said}.", table(("part", "numbers"), rows)]


def _figures(facts: Facts) -> list[str]:
    parts = []
    for task in dict.fromkeys(record["task"] for record in facts.results):
        records = [record for record in facts.results if record["task"] == task]
        names = list(dict.fromkeys(name for record in records for name in record["metrics"]))
        rows = [
            (
                record["dataset"],
                record["split"],
                _judged(record),
                *(with_interval(n, record["metrics"], _intervals(record)) for n in names),
            )
            for record in records
        ]
        header = ("data set", "split", "judged", *names)
        parts += [f"{task.replace('_', ' ').capitalize()}, in percent:", table(header, rows)]
    if any(map(_intervals, facts.results)):
        parts.append("In brackets: 95 % bootstrap intervals over pictures.")
    if parts and not facts.is_embedded:
        parts.append("Data sets are called by the layout of their files.")
    return parts


def _judged(record: Mapping[str, Any]) -> str:
    """Return how much was judged, in words."""
    if "expressions" not in record:
        return f"{record['pictures']} pictures"
    first = ", the first of each object" if record.get("sentences") == "first" else ""
    return f"{record['expressions']} sentences{first}"


def _intervals(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return the ends of a record's intervals by metric."""
    found = record.get("intervals", {}).items()
    return {name: (ends[0], ends[1]) for name, ends in found if isinstance(ends, (list, tuple))}


def _training(facts: Facts) -> list[str]:
    encoder = facts.config["encoder"]
    tuned = ", ".join(f"`{name}`" for name in encoder["trainable"])
    layers = ", ".join(sorted({part["config"]["peft_type"] for part in encoder.get("peft", [])}))
    said = "The towers were frozen" + (
        f", but for copies of {tuned} that are in here" * bool(tuned)
    )
    said += f"; layers of peft ({layers}) stand in them." if layers else "."
    if facts.recipe is None:
        return [f"{said} How it was trained was not said."]
    recipe = {
        key: value
        for key, value in facts.recipe.items()
        if key not in LEFT_OUT and value not in (None, [], {}, "")
    }
    data = recipe.get("datasets")
    trained = f"Trained on {', '.join(data)}." if data else ""
    folded = f"```json\n{json.dumps(recipe, indent=2)}\n```"
    return [
        " ".join(filter(None, (said, trained))),
        f"<details><summary>The recipe</summary>\n\n{folded}\n\n</details>",
    ]


def _limits(facts: Facts) -> list[str]:
    limits = ["It fits the towers above alone; what they know and get wrong, it inherits."]
    if facts.is_embedded:
        limits.append(
            "These towers know small drawn scenes alone: photographs mean nothing to them."
        )
    if any(head.text == "classes" for head in facts.heads):
        limits.append("It can be asked about classes that it was not trained on; expect less.")
    limits.append(
        "The figures are those of the splits named; other pictures and wordings were not judged."
        if facts.results
        else "No figures were given: judge it with `bridger evaluate` before you rely on it."
    )
    return ["\n".join(f"- {limit}" for limit in limits)]


def _licence(facts: Facts) -> str:
    if facts.licence is None:
        return "None is named: ask whoever shared it before you use it. The towers have their own."
    return f"{facts.licence}. The towers have their own."
