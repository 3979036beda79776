"""Pictures of what a model says during training, beside what is true."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from bridger._files import replacing
from bridger.model import BridgedModel
from bridger.predictions.side_by_side import beside, stacked
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
        sheet = stacked(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"step-{state.global_step:06}.png") as path:
            sheet.save(path, "PNG")
        if self.writer is not None:
            self.writer.add_image(
                "predictions", np.asarray(sheet), state.global_step, dataformats="HWC"
            )

    def _row(self, model: BridgedModel, index: int) -> Image.Image:
        drawn = self.task.draw(model, self.dataset, self.head, index)
        row = beside(drawn)
        row.thumbnail((len(drawn) * SIDE, SIDE + SIDE // 4))
        return row
