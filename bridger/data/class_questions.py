"""Which classes the pictures of a training batch are asked about, and in which words."""

from __future__ import annotations

import random
from collections.abc import Sequence, Set
from typing import Any

from bridger.processing import Processor
from bridger.texts import ClassName, ClassPhrases


class ClassQuestions:
    """Draws classes and phrases; a draw depends on the seed and the number of an item alone.

    In "separate" mode every picture is asked about the classes that it shows, and about others by
    chance up to `most`; where it shows more than `most`, about a draw of them. In "joint" mode all
    pictures of a batch are asked about the same classes: those that any of them shows, however
    many, and others up to `most`, drawn for the first item. Of each class one phrase is drawn,
    a name or synonym of it in a template.

    Args:
        processor: turns words into tokens.
        classes: K classes.
        mode: "separate" or "joint".
        templates: sentences with a {} where the name stands.
        most: classes to ask about; K or more: all of them, always.
        seed: of the draws.

    Raises:
        TypeError, ValueError: see `ClassPhrases`.
    """

    def __init__(
        self,
        processor: Processor,
        classes: Sequence[ClassName],
        mode: str,
        templates: Sequence[str],
        *,
        most: int,
        seed: int,
    ) -> None:
        self.phrases = ClassPhrases(processor, classes, templates)
        self.mode, self.most, self.seed = mode, most, seed

    def ask(
        self, numbers: Sequence[int], shown: Sequence[Set[int]]
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Draw the questions of a batch.

        Args:
            numbers: of the B items in the run.
            shown: the classes that each picture shows.

        Returns:
            The classes that each picture is asked about, in their order, and the text of the
            batch: what `BridgedModel.forward` takes beside pictures and labels.
        """
        dice = [random.Random(f"{self.seed}/{number}/classes") for number in numbers]
        if self.mode == "joint":
            every = set().union(*shown)
            asked = self._fill(sorted(every), every, dice[0])
            words, mentions = self.phrases.joint([(k, self._phrase(k, dice[0])) for k in asked])
            text = {name: ids.expand(len(shown), -1, -1) for name, ids in words.items()}
            return [asked] * len(shown), {**text, "mentions": mentions}
        each = [self._of_picture(own, die) for own, die in zip(shown, dice, strict=True)]
        picks = [
            [(k, self._phrase(k, die)) for k in asked]
            for asked, die in zip(each, dice, strict=True)
        ]
        return each, self.phrases.batch(picks)

    def _of_picture(self, shown: Set[int], dice: random.Random) -> list[int]:
        own = sorted(shown)
        return self._fill(dice.sample(own, min(self.most, len(own))), shown, dice)

    def _fill(self, chosen: list[int], shown: Set[int], dice: random.Random) -> list[int]:
        """Add classes that are not shown, up to `most` in all."""
        others = [k for k in range(len(self.phrases.names)) if k not in shown]
        more = min(max(self.most - len(chosen), 0), len(others))
        return sorted([*chosen, *dice.sample(others, more)])

    def _phrase(self, class_: int, dice: random.Random) -> int:
        return dice.randrange(self.phrases.count(class_))
