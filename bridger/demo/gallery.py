"""Pictures to try the page with: composed on the fly of what comes in the package."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridger.data.composing import Composition
from bridger.data.expressions import Describer
from bridger.data.scene_labels import make_classified_scene, make_labelled_scene, scene_classes

SIZE = 384
"""Side of the pictures: the sprites have 128 pixels, and fill up to 0.42 of a side."""

COUNT = 8
ONE_THING = 4
"""Every so-manieth picture shows one thing among smaller ones, as classes are trained on."""

MOST_SENTENCES = 4
PIXELS_AT_128 = 128**2


@dataclass(frozen=True)
class Scene:
    """A picture to try, and words that fit it.

    Attributes:
        path: of its file.
        words: by the kind of text that heads read, what could be typed: for "expressions"
            sentences, each true of one thing; for "classes" names, separated by commas.
    """

    path: str
    words: Mapping[str, tuple[str, ...]]


def compose_gallery(folder: Path, count: int = COUNT) -> list[Scene]:
    """Compose scenes, never trained on, and write them to a folder that is there."""
    classes = scene_classes()
    scenes = []
    for index in range(count):
        if index % ONE_THING == ONE_THING - 1:
            composed, _ = make_classified_scene("test", index, classes, size=SIZE)
        else:
            composed = make_labelled_scene("test", index, classes, size=SIZE)
        path = folder / f"scene-{index + 1}.png"
        _save(composed, path)
        names = list(dict.fromkeys(thing.kind.name for thing in composed.objects))
        words = {
            "expressions": tuple(_sentences(composed, index)),
            "classes": (", ".join(names), *names),
        }
        scenes.append(Scene(str(path), words))
    return scenes


def _save(composed: Composition, path: Path) -> None:
    from PIL import Image

    Image.fromarray(composed.image).save(path)


def _sentences(composed: Composition, index: int) -> Sequence[str]:
    """Return a sentence for each of a few objects, those that more than a name tells apart first.

    Names alone come last, since the point of a sentence is to mean one of several.
    """
    words = random.Random(index)
    objects = composed.objects
    hidden = composed.hidden * (PIXELS_AT_128 / SIZE**2)
    everything = range(len(objects))
    describer = Describer([o.seen for o in objects], hidden.tolist(), everything, words)
    said = [describer.describe(target) for target in everything]
    best = [sorted(of_one, key=lambda e: e.kind == "name")[0] for of_one in said if of_one]
    best.sort(key=lambda e: len(describer.called(objects[e.target].kind.name)), reverse=True)
    return [expression.sentence for expression in best[:MOST_SENTENCES]]
