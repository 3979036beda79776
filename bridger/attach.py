"""`attach_bridgers`: from two models to one encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bridger.bridgers import BridgerConfig
from bridger.encoder import BridgedEncoder
from bridger.stages import Stages
from bridger.tower_source import source_of
from bridger.towers import TextTower, VisionTower, find_text_tower, find_vision_tower


def attach_bridgers(
    vision_model: nn.Module | VisionTower,
    text_model: nn.Module | TextTower,
    stages: Stages = 3,
    config: BridgerConfig | str | None = "paper",
    *,
    trainable: str | Sequence[str] = (),
    connect: bool = False,
    word_length: int | None = None,
) -> BridgedEncoder:
    """Freeze two towers and bridge them at several depths.

    The towers called on their own go on giving what they gave before; hooks act only inside
    the returned encoder's forward, and `encoder.detach()` removes every trace.

    Args:
        vision_model: an image encoder, or a whole dual encoder that holds one. An encoder of no
            known family is read off a trial forward; `generic_vision` describes it.
        text_model: a text encoder, or a whole dual encoder that holds one; likewise, with
            `generic_text`.
        stages: a number k (blocks ceil(i n / k) of each tower's n), or (vision, text) pairs of
            0-based block indices (negative ones allowed) or of block names. Bridgers with
            direction="to_vision" read the finished text: k then counts vision blocks alone, and
            pairs are (vision, None).
        config: the Bridgers' config, the name of a preset, or None for no Bridgers at all: the
            stages are then only read, which is the baseline of every comparison.
        trainable: tower tensors that the adapter trains: one or more glob patterns on
            "vision.<name>" and "text.<name>"; "positions" stands for all position embeddings,
            "statistics" for BatchNorm's running ones: training forwards then normalise by the
            batch and move them, as the released code of ETRIS does with ResNets. The adapter owns
            copies, the towers keep theirs.
        connect: the released ETRIS code's residual in a ResNet's last map. It is no part of CLIP:
            random, frozen, and saved with the adapter.
        word_length: how the released code of ETRIS takes texts: padded with id 0 to this many
            tokens, every id 0 counting as padding wherever it stands. None: as the tower does.

    Returns:
        The encoder, `encoder(pixel_values, input_ids) -> BridgedFeatures`.

    Raises:
        TypeError: one of the models is no encoder, or is on the wrong side; options of another
            type.
        ValueError: a tower on the meta device, an unknown tower whose blocks are ambiguous,
            stages out of range or out of order, a config that does not fit the towers or the
            stages.
    """
    if isinstance(config, str):
        config = BridgerConfig.preset(config)
    if config is not None and not isinstance(config, BridgerConfig):
        raise TypeError(
            f"config must be a BridgerConfig, the name of a preset, or None, got {config!r}; "
            f"BridgerConfig.from_dict makes one of a dict"
        )
    patterns = (trainable,) if isinstance(trainable, str) else trainable
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"trainable must be a pattern or a list of patterns, got {trainable!r}")
    vision, text = find_vision_tower(vision_model), find_text_tower(text_model)
    encoder = BridgedEncoder(
        vision,
        text,
        stages,
        config,
        trainable=patterns,
        connect=connect,
        word_length=word_length,
    )
    encoder.tower_source = source_of(vision, text)
    return encoder
