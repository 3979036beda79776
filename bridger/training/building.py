"""From a recipe and a pair of towers to the model that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bridger.attach import attach_bridgers
from bridger.bottlenecks import BottleneckConfig, Bottlenecks, insert_bottlenecks
from bridger.bridgers import BridgerConfig
from bridger.heads import get_head
from bridger.processing import Processor
from bridger.tower_peft import Parameters, inject_peft, take_out_peft, wrap_prompts
from bridger.towers import find_text_tower, find_vision_tower

if TYPE_CHECKING:
    from bridger.model import BridgedModel
    from bridger.training.recipes import Recipe

ADAPTER = "default"
"""What peft calls the adapters that a recipe asks for."""


def build(
    recipe: Recipe, vision: nn.Module, text: nn.Module, processor: Processor | None
) -> BridgedModel:
    """Attach what a recipe says to a pair of towers; see `Recipe.build`."""
    config = None
    if recipe.bridgers is not None:
        config = BridgerConfig.preset(recipe.bridgers, **recipe.bridger_options)
    with ExitStack() as undo:
        torch.manual_seed(recipe.seed)
        vision, text, before = _with_peft(recipe.peft, vision, text)
        undo.callback(take_out_peft, before)
        bottlenecks, inside = _with_bottlenecks(recipe.bottlenecks, vision, text)
        for inserted in bottlenecks:
            undo.callback(inserted.remove)
        torch.manual_seed(recipe.seed)
        encoder = attach_bridgers(
            vision,
            text,
            recipe.stages,
            config,
            trainable=(*recipe.trainable, *inside),
            connect=recipe.connect,
            word_length=recipe.word_length,
        )
        undo.callback(encoder.detach)
        torch.manual_seed(recipe.seed)
        model = encoder.with_head(get_head(recipe.task), **recipe.head)
        model.processor = _cutting(recipe, processor or model.processor)
        encoder.before_peft.update(before)
        encoder.bottlenecks += bottlenecks
        undo.pop_all()
    return model


def _with_peft(
    wanted: Mapping[str, Mapping[str, Any]], vision: nn.Module, text: nn.Module
) -> tuple[Any, Any, Parameters]:
    """Return the towers with a recipe's layers of peft, and what undoes them."""
    if not wanted:
        return vision, text, {}
    entries: list[Mapping[str, Any]] = [
        {"side": side, "path": "", "adapter": ADAPTER, "config": dict(config)}
        for side, config in wanted.items()
    ]
    try:
        seen, read = find_vision_tower(vision), find_text_tower(wrap_prompts(text, entries))
        return seen, read, inject_peft({"vision": seen.module, "text": read.module}, entries)
    except (TypeError, ValueError) as error:
        # Putting layers in speaks of a saved adapter, and has peft's own words as its cause.
        found = error if isinstance(error, TypeError) else error.__cause__ or error
        raise ValueError(f"peft={dict(wanted)} does not fit the towers: {found}") from error


def _with_bottlenecks(
    wanted: Mapping[str, Any], vision: Any, text: Any
) -> tuple[list[Bottlenecks], tuple[str, ...]]:
    """Return what takes a recipe's bottleneck adapters out of the towers, and what trains them."""
    if not wanted:
        return [], ()
    config = BottleneckConfig.from_dict(wanted)
    return [insert_bottlenecks(vision, text, config)], config.trainable


def _cutting(recipe: Recipe, processor: Processor | None) -> Processor | None:
    """Return the processor as it cuts sentences for this recipe."""
    length = recipe.word_length or recipe.max_length
    if processor is None or length is None:
        return processor
    if length > processor.max_length:
        raise ValueError(
            f"the text tower takes {processor.max_length} tokens, the recipe asks for {length}"
        )
    pictures = (processor.image_size, processor.mean, processor.std)
    return Processor(*pictures, processor.words, length)
