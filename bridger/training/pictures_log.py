"""Pictures of what a model says during training, beside what is true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from bridger._files import replacing
from bridger.model import BridgedModel
from bridger.tasks import Task

if TYPE_CHECKING:
    from PIL import Image

EXAMPLES = 4
SIDE = 384  # pixels of an example's longer side


class PredictionPictures(TrainerCallback):  # type: ignore[misc]
    """At every evaluation, draws what the model says about the same few entries of a split.

    One sheet per evaluation, a row for each: the prediction with its words and score, the truth.

    Args:
        task: what is predicted, and how it is drawn.
        dataset: the validation split, from all over which the examples are taken.
        head: which head answers.
        folder: where sheets are put, as `step-000500.png`.
        writer: TensorBoard's, which gets them too.
    """

    def __init__(
        self, task: Task, dataset: Any, head: str, folder: Path, writer: Any = None
    ) -> None:
        self.task, self.dataset, self.head = task, dataset, head
        self.folder, self.writer = folder, writer
        count = min(EXAMPLES, len(dataset))
        self.examples = [index * len(dataset) // count for index in range(count)]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Draw a sheet; the first process writes it."""
        # Every process predicts, as sharded parameters need them all.
        rows = [self._row(model, index) for index in self.examples]
        if not state.is_world_process_zero:
            return
        sheet = _stacked(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"step-{state.global_step:06}.png") as path:
            sheet.save(path, "PNG")
        if self.writer is not None:
            self.writer.add_image(
                "predictions", np.asarray(sheet), state.global_step, dataformats="HWC"
            )

    def _row(self, model: BridgedModel, index: int) -> Image.Image:
        return _beside(self.task.draw(model, self.dataset, self.head, index))


def _beside(drawn: Sequence[Image.Image]) -> Image.Image:
    from PIL import Image

    size = (sum(image.width for image in drawn), max(image.height for image in drawn))
    row = Image.new("RGB", size)
    left = 0
    for image in drawn:
        row.paste(image, (left, 0))
        left += image.width
    row.thumbnail((len(drawn) * SIDE, SIDE + SIDE // 4))
    return row


def _stacked(rows: list[Image.Image]) -> Image.Image:
    from PIL import Image

    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet
