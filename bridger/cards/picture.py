"""The picture of a model card: what the adapter finds in a scene."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from PIL import Image

    from bridger.model import BridgedModel
    from bridger.saving import SavedModel

GIVEN_CAPTION = "What it finds"
SPLIT, INDEX = "val", 0
SENTENCES = 2  # that are asked of a scene, of one object each
FEWEST = 5  # kinds that a scene takes its objects from


class Shown(NamedTuple):
    """A picture and what it shows."""

    picture: Image.Image
    caption: str


def show(model: SavedModel) -> Shown:
    """Let every head of a model on the embedded towers answer about a scene of its kind."""
    from bridger.predictions.side_by_side import beside

    drawn = beside([_draw(cast("BridgedModel", model), name) for name in model.heads])
    kinds = [head.name.replace("_", " ") for head in model.heads.values()]
    return Shown(
        drawn,
        f"What it finds in a drawn scene from bridger's own set, no photograph: {', '.join(kinds)}",
    )


def _draw(model: BridgedModel, name: str) -> Image.Image:
    """Draw what one head says about a scene: two sentences, or the classes that it knows."""
    from PIL import Image

    from bridger.data.scene_labels import make_labelled_scene, scene_classes
    from bridger.data.scenes import make_scene
    from bridger.data.sprites import kinds
    from bridger.heads.masks import MaskHead

    head: Any = model.heads[name]
    if head.text == "expressions":
        scene = make_scene(SPLIT, INDEX)
        picture = Image.fromarray(scene.image)
        of_each = {said.target: said.sentence for said in reversed(scene.expressions)}
        sentences = list(of_each.values())[:SENTENCES]
        found = model.predict(picture, sentences, head=name)
        drawn: Image.Image = found.overlay(
            picture, *([sentences] if isinstance(head, MaskHead) else [])
        )
        return drawn
    trained = getattr(head.config, "classes", ())
    known = [kind for kind in kinds() if kind.name in trained]
    shown = known if len(known) >= FEWEST else scene_classes()
    picture = Image.fromarray(make_labelled_scene(SPLIT, INDEX, shown).image)
    names = None if trained else [kind.name for kind in shown]
    drawn = model.predict(picture, names, head=name).overlay(picture)
    return drawn


def given(picture: str | os.PathLike[str] | Image.Image) -> Shown:
    """Read a picture, and leave out what cameras write into one: when and where it was taken."""
    from PIL import Image, ImageOps

    if not isinstance(picture, Image.Image):
        with Image.open(picture) as file:
            file.load()
            picture = file
    turned = ImageOps.exif_transpose(picture).convert("RGB")
    bare = Image.frombytes("RGB", turned.size, turned.tobytes())
    return Shown(bare, GIVEN_CAPTION)
