"""What stands between the towers: the Bridgers, and what happens while both are paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from bridger.bridgers import BridgerConfig, BridgerStack
from bridger.stages import Pairs
from bridger.towers import TextTower, VisionTower

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder


def make_bridgers(
    config: BridgerConfig, vision: VisionTower, text: TextTower, stages: Pairs
) -> BridgerStack:
    """Return Bridgers that fit the towers' blocks, on the vision tower's device."""
    blocks = [vision.blocks[v] for v, _ in stages]
    bridgers = BridgerStack(
        config,
        vision_widths=[block.width for block in blocks],
        vision_strides=[stride_of(block.stride) for block in blocks],
        text_widths=[text.token_width if t is None else text.blocks[t].width for _, t in stages],
    )
    return bridgers.to(next(vision.module.parameters()).device)


def stride_of(stride: int | None) -> int:
    """Return a vision block's stride; TypeError where a family has not declared it."""
    if stride is None:
        raise TypeError("a vision tower's blocks must declare their stride in pixels")
    return stride


class Bridging:
    """One forward's visits to the Bridgers: the carried state, and the maps on the way."""

    def __init__(
        self,
        encoder: BridgedEncoder,
        token_mask: Tensor,
        image_size: tuple[int, int],
        expressions: int,
    ) -> None:
        self.encoder, self.token_mask = encoder, token_mask
        self.image_size, self.expressions = image_size, expressions
        self.bridgers = encoder.bridgers if encoder.enabled else None
        self.carry: Any = None
        self.maps: list[Tensor] = []
        self._written = False  # whether the vision tower has a state for each expression by now

    def __call__(self, stage: int, vision_output: Any, text_output: Any) -> tuple[Any, Any]:
        vision, text = self.encoder.vision, self.encoder.text
        vision_block, text_block = self.encoder.stages[stage]
        state = self.grown(vision.read_map(vision_block, vision_output, self.image_size))
        if self.bridgers is None:
            self.maps.append(state)
            return vision_output, text_output
        tokens = text_output if text_block is None else text.read_tokens(text_block, text_output)
        to_state, to_tokens, self.carry = self.bridgers(
            stage, state, tokens, self.token_mask, self.carry, self.image_size
        )
        if to_state is not None:
            state = state + to_state
            vision_output = vision.write_map(vision_block, vision_output, state)
            self._written = True
        self.maps.append(state)
        if to_tokens is not None and text_block is not None:
            text_output = text.write_tokens(text_block, text_output, tokens + to_tokens)
        return vision_output, text_output

    def grown(self, rows: Any) -> Any:
        """Repeat per-image rows for as long as no Bridger made them one per expression."""
        if rows is None or self._written:
            return rows
        return rows.repeat_interleave(self.expressions, dim=0)
