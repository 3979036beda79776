"""One bridged forward: both towers in lockstep, or the vision tower behind a finished text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from bridger.bridging import Bridging
from bridger.expressions import as_released, flatten_expressions
from bridger.features import BridgedFeatures
from bridger.lockstep import Finished, StageHooks, run_lockstep
from bridger.stages import Pairs
from bridger.tap import Tap, taking
from bridger.towers import TextTower, VisionTower

if TYPE_CHECKING:
    from bridger.encoder import BridgedEncoder


class TowerHooks(NamedTuple):
    """An encoder's hooks in its towers; without `text` ones, the text is finished first."""

    vision: StageHooks
    text: StageHooks | None
    vision_tap: Tap
    text_tap: Tap

    @classmethod
    def on(cls, vision: VisionTower, text: TextTower, stages: Pairs) -> TowerHooks:
        """Hook the blocks of all stages, and tap the last block of each tower."""
        seen = [vision.blocks[v] for v, _ in stages]
        read = [text.blocks[t] for _, t in stages if t is not None]
        stage_hooks = [
            StageHooks([b.module for b in blocks], [b.name for b in blocks], tower)
            for blocks, tower in ((seen, "vision"), (read, "text"))
            if blocks
        ]
        # After the stages' hooks, so that the taps see the bridged states.
        taps = (Tap(vision.blocks[-1].module), Tap(text.blocks[-1].module))
        return cls(stage_hooks[0], stage_hooks[1] if read else None, *taps)


class Batch(NamedTuple):
    """What a forward runs on, as the towers take it; B images, N expressions of each.

    Attributes:
        pixel_values: (B, 3, H, W).
        input_ids: (B*N, L).
        token_mask: (B*N, L) bool.
        expressions: N.
    """

    pixel_values: Tensor
    input_ids: Tensor
    token_mask: Tensor
    expressions: int

    @classmethod
    def prepare(
        cls,
        encoder: BridgedEncoder,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        expression_mask: Tensor | None,
    ) -> Batch:
        """Check and flatten the inputs of `BridgedEncoder.forward`, which says what they are."""
        encoder.vision.check_input(pixel_values)
        ids, mask, expressions = flatten_expressions(input_ids, attention_mask, expression_mask)
        if len(ids) != len(pixel_values) * expressions:
            raise ValueError(
                f"{len(pixel_values)} images came with texts for {len(ids) // expressions}: "
                f"input_ids must be (B, L) or (B, N, L) with the same B as pixel_values"
            )
        ids, token_mask = encoder.text.prepare(ids, mask)
        if encoder.word_length is not None:
            ids, token_mask = as_released(
                ids, None if mask is None else token_mask, encoder.word_length
            )
        return cls(pixel_values, ids, token_mask, expressions)


def run_bridged(
    encoder: BridgedEncoder,
    hooks: TowerHooks,
    towers: tuple[VisionTower, TextTower],
    tensors: Mapping[str, Mapping[str, Tensor]],
    batch: Batch,
) -> BridgedFeatures:
    """Run both towers once and return the bridged features.

    Args:
        encoder: the encoder.
        hooks: its hooks.
        towers: what is called: the encoder's own towers, or their compiled twins.
        tensors: the adapter's, by side, which stand in for the towers' own.
        batch: the inputs.
    """
    vision, text = encoder.vision, encoder.text
    pixels, ids, token_mask, expressions = batch
    image_size = (pixels.shape[-2], pixels.shape[-1])
    bridge = Bridging(encoder, token_mask, image_size, expressions)

    def see() -> Any:
        return towers[0].call(pixels, tensors["vision"])

    def read() -> Any:
        return towers[1].call(ids, token_mask, tensors["text"])

    def tokens_of(text_result: Any) -> Tensor:
        state = text.read_tokens(len(text.blocks) - 1, taken.state(hooks.text_tap))
        return text.tokens(state, text_result, tensors["text"])

    with taking(hooks.vision_tap, hooks.text_tap) as taken:
        if hooks.text is None:
            text_result = read()
            tokens = tokens_of(text_result)
            vision_result, _ = run_lockstep((hooks.vision, see), Finished(tokens), bridge)
        else:
            vision_result, text_result = run_lockstep(
                (hooks.vision, see), (hooks.text, read), bridge
            )
            tokens = tokens_of(text_result)
    state = vision.read_map(len(vision.blocks) - 1, taken.state(hooks.vision_tap), image_size)
    last_map = state if encoder.dense is None else encoder.dense(state, tensors["vision"])
    return BridgedFeatures(
        maps=(*bridge.maps[:-1], bridge.grown(last_map)),
        tokens=tokens,
        token_mask=token_mask,
        sentence=text.sentence(tokens, ids, text_result),
        pooled=bridge.grown(vision.pooled(vision_result)),
        image_size=image_size,
        num_expressions=expressions,
    )
