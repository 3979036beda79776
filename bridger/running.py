"""One bridged forward: both towers in lockstep, or the vision tower behind a finished text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor

from bridger.bridging import Bridging
from bridger.expressions import as_released, flatten_expressions
from bridger.features import BridgedFeatures, TextFeatures
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


class Ready(NamedTuple):
    """Towers that are ready for one run.

    Attributes:
        hooks: the encoder's.
        vision, text: what is called: the encoder's own towers, or their compiled twins.
        tensors: the adapter's, by side, which stand in for the towers' own.
    """

    hooks: TowerHooks
    vision: VisionTower
    text: TextTower
    tensors: Mapping[str, Mapping[str, Tensor]]


class Batch(NamedTuple):
    """What a forward runs on, as the towers take it; B images, N expressions of each.

    Attributes:
        pixel_values: (B, 3, H, W).
        text: ids (B*N, L), or what the text tower has made of them before.
        token_mask: (B*N, L) bool.
        expressions: N.
    """

    pixel_values: Tensor
    text: Tensor | TextFeatures
    token_mask: Tensor
    expressions: int

    @classmethod
    def prepare(
        cls,
        encoder: BridgedEncoder,
        pixel_values: Tensor,
        input_ids: Tensor | None,
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
        return cls(pixel_values, *prepare_text(encoder, ids, mask), expressions)

    @classmethod
    def behind(cls, encoder: BridgedEncoder, pixel_values: Tensor, text: TextFeatures) -> Batch:
        """Ask every image about all of the texts that have been read before."""
        encoder.vision.check_input(pixel_values)
        rows = text.of_every(len(pixel_values))
        return cls(pixel_values, rows, rows.token_mask, len(text.tokens))


def prepare_text(
    encoder: BridgedEncoder, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, L'), as the text tower takes them; see `TextTower.prepare`."""
    ids, token_mask = encoder.text.prepare(input_ids, attention_mask)
    if encoder.word_length is None:
        return ids, token_mask
    return as_released(ids, None if attention_mask is None else token_mask, encoder.word_length)


def run_text(
    encoder: BridgedEncoder, ready: Ready, input_ids: Tensor, token_mask: Tensor
) -> TextFeatures:
    """Run the text tower alone on what `prepare_text` returned."""
    tap, tensors = ready.hooks.text_tap, ready.tensors["text"]
    with taking(tap) as taken:
        result = ready.text.call(input_ids, token_mask, tensors)
    return _read_text(encoder.text, taken.state(tap), result, tensors, input_ids, token_mask)


def _read_text(
    text: TextTower,
    last: Any,
    result: Any,
    tensors: Mapping[str, Tensor],
    input_ids: Tensor,
    token_mask: Tensor,
) -> TextFeatures:
    tokens = text.tokens(text.read_tokens(len(text.blocks) - 1, last), result, tensors)
    return TextFeatures(tokens, token_mask, text.sentence(tokens, input_ids, result))


def run_bridged(encoder: BridgedEncoder, ready: Ready, batch: Batch) -> BridgedFeatures:
    """Run both towers once, or the vision tower behind the text, and return bridged features."""
    (hooks, _, _, tensors), vision = ready, encoder.vision
    pixels, text, token_mask, expressions = batch
    image_size = (pixels.shape[-2], pixels.shape[-1])
    bridge = Bridging(encoder, token_mask, image_size, expressions)
    if hooks.text is None and isinstance(text, Tensor):
        text = run_text(encoder, ready, text, token_mask)

    def see() -> Any:
        return ready.vision.call(pixels, tensors["vision"])

    with taking(hooks.vision_tap, hooks.text_tap) as taken:
        if isinstance(text, TextFeatures):
            vision_result, _ = run_lockstep((hooks.vision, see), Finished(text.tokens), bridge)
        else:
            ids, stages = text, cast(StageHooks, hooks.text)
            vision_result, text_result = run_lockstep(
                (hooks.vision, see),
                (stages, lambda: ready.text.call(ids, token_mask, tensors["text"])),
                bridge,
            )
            last = taken.state(hooks.text_tap)
            text = _read_text(encoder.text, last, text_result, tensors["text"], ids, token_mask)
    state = vision.read_map(len(vision.blocks) - 1, taken.state(hooks.vision_tap), image_size)
    last_map = state if encoder.dense is None else encoder.dense(state, tensors["vision"])
    return BridgedFeatures(
        maps=(*bridge.maps[:-1], bridge.grown(last_map)),
        tokens=text.tokens,
        token_mask=token_mask,
        sentence=text.sentence,
        pooled=bridge.grown(vision.pooled(vision_result)),
        image_size=image_size,
        num_expressions=expressions,
    )
