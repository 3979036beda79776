"""What peft has put into towers, and what of it is trained, counted and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from bridger.tower_peft.names import TOWERS_OWN, own_modules, without_peft
from bridger.tower_peft.narrow import narrow
from bridger.towers.base import Tower, has_prompts, is_a, is_layer, unwrap

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that subtract from the layer itself what the adapter then adds."""


@dataclass(frozen=True)
class PeftPart:
    """One adapter of peft in one module.

    Attributes:
        side: "vision" or "text".
        path: the module that peft was applied to, below the tower's own module.
        module: that module.
        adapter: the adapter's name in peft.
        layers: modules whose tensors under the adapter's name are its own: its layers, without
            those of another config further inside, or what holds peft's virtual tokens.
        settings: peft's config of the adapter, for that module.
    """

    side: str
    path: str
    module: nn.Module
    adapter: str
    layers: frozenset[nn.Module]
    settings: Any

    @property
    def config(self) -> dict[str, Any]:
        """What peft builds the adapter from, in plain values for JSON."""
        values = {k: _plain(v) for k, v in self.settings.to_dict().items()}
        if self.settings.is_prompt_learning and "prompt_tuning_init" in values:
            # What it starts from comes from the file; a text would have to be tokenised again.
            values |= {"prompt_tuning_init": "RANDOM", "tokenizer_kwargs": None}
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's tensors, named by layer and kind; what layers share comes once."""
        tensors: dict[str, Tensor] = {}
        places = set()
        for path, layer in self.module.named_modules():
            for name, tensor in layer.state_dict().items() if layer in self.layers else ():
                parts = name.split(".")
                place = (tensor.data_ptr(), tensor.shape)
                if parts[0] in TOWERS_OWN or self.adapter not in parts or place in places:
                    continue
                places.add(place)
                parts.remove(self.adapter)
                tensors[".".join([path, *parts])] = tensor
        return tensors


def find_peft(towers: Mapping[str, Tower]) -> list[PeftPart]:
    """Return the active adapters of peft in the towers.

    Args:
        towers: the towers by side; one may be part of the other.

    Raises:
        ValueError: layers of peft that do nothing where they are, that cannot be saved, or whose
            config is out of reach.
    """
    parts: list[PeftPart] = []
    covered: set[nn.Module] = set()
    for place in _places(towers):
        layers = frozenset(layer for layer in layers_in(place.module) if layer not in covered)
        covered |= layers
        _refuse_forgotten(place, layers)
        _refuse_outside(place, [tower.module for tower in towers.values()])
        active = sorted({name for layer in layers for name in active_adapters(layer)})
        parts += [
            PeftPart(place.side, place.path, place.module, a, layers, place.settings(a, layers))
            for a in active
        ]
    for side, tower in towers.items():
        for path, model in _prompts(tower.module):
            adapter = model.active_adapter
            held, settings = frozenset([model.prompt_encoder]), model.peft_config[adapter]
            parts.append(PeftPart(side, path, model, adapter, held, settings))
        _refuse_unreachable(side, tower.module, covered)
        _refuse_inert(side, tower.module)
    for part in parts:
        refuse_config(part.side, part.config)
    # Loading finds the same ones, though not in the same places: it has the towers alone.
    parts.sort(key=attrgetter("side", "path", "adapter"))
    return parts


@dataclass(frozen=True)
class _Place:
    """Where peft was applied.

    Attributes:
        side: "vision" or "text".
        path: the module below the tower's own.
        module: what of it belongs to the tower: all of it, or the tower inside it.
        applied: the module that peft was applied to, which holds the configs.
    """

    side: str
    path: str
    module: nn.Module
    applied: Any

    def settings(self, adapter: str, layers: frozenset[nn.Module]) -> Any:
        """Return peft's config of an adapter for `module`."""
        config = self.applied.peft_config[adapter]
        if self.module is self.applied:
            return config
        inside = {
            without_peft(name): layer
            for name, layer in outermost(self.module)
            if layer in layers and adapter in active_adapters(layer)
        }
        own = [name for name, _, _ in own_modules(self.module)]
        return narrow(config, self.above, inside, own)

    @property
    def above(self) -> str:
        """The path of `module` in what peft was applied to."""
        return next(str(n) for n, m in self.applied.named_modules() if m is self.module)


def _places(towers: Mapping[str, Tower]) -> list[_Place]:
    """Return where peft was applied, innermost first."""
    places: dict[Any, _Place] = {}
    # The smaller tower first: what lies in a vision tower inside a whole CLIP is "vision".
    by_size = sorted(towers.items(), key=lambda item: _size(item[1].module))
    for side, tower in by_size:
        for path, module in unwrap(tower.module).named_modules():
            if _is_configured(module):
                places.setdefault(module, _Place(side, path, module, module))
    for side, tower in by_size:
        for module in unwrap(tower.given or tower.module).modules():
            if _is_configured(module) and module not in places and tower.module in module.modules():
                places[module, side] = _Place(side, "", tower.module, module)
    return sorted(places.values(), key=lambda place: _size(place.applied))


def _is_configured(module: nn.Module) -> bool:
    return "peft_config" in vars(module) and not is_a(module, "peft", "BaseTuner")


def _size(module: nn.Module) -> int:
    return len(list(module.modules()))


def _prompts(tower: nn.Module) -> Iterator[tuple[str, Any]]:
    """Return models with virtual tokens in a tower, with their paths."""
    return ((path, module) for path, module in tower.named_modules() if has_prompts(module))


def tuned_modules(tower: nn.Module, *, copies: bool = True) -> Iterator[nn.Module]:
    """Return peft's layers and what is peft's own inside them or before texts, not the tower's.

    Args:
        tower: the tower's module, or a module of several.
        copies: also where peft trains a copy of a whole layer.
    """
    for layer in layers_in(tower):
        if not copies and is_a(layer, "peft", "AuxiliaryTrainingWrapper"):
            continue
        yield layer
        for name, child in layer.named_children():
            if name not in TOWERS_OWN and not is_layer(child):  # that one comes by itself
                yield from child.modules()
    for _, model in _prompts(tower):
        yield from model.prompt_encoder[model.active_adapter].modules()


def tuned_parameters(tower: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of peft's layers that are to be trained, each once."""
    parameters = [p for m in tuned_modules(tower) for p in m.parameters(recurse=False)]
    return [p for p in dict.fromkeys(parameters) if p.requires_grad]


def cast_towers(towers: nn.Module, dtype: torch.dtype) -> None:
    """Cast towers to another dtype, and leave what is peft's own inside its layers as it is.

    Whole layers that peft trains as copies are cast: nothing casts their inputs.
    """
    own = [m for m in tuned_modules(towers, copies=False) if not is_layer(m)]
    numbers = [(p, p.data) for module in own for p in module.parameters(recurse=False)]
    buffers = [(module, dict(module._buffers)) for module in own]
    towers.to(dtype)
    for parameter, data in numbers:
        parameter.data = data
    for module, kept in buffers:
        module._buffers.update(kept)


def describe_peft(parts: list[PeftPart]) -> list[dict[str, Any]]:
    """Return what `inject_peft` needs, in plain values for JSON."""
    return [
        {"side": p.side, "path": p.path, "adapter": p.adapter, "config": p.config} for p in parts
    ]


def layers_in(tower: nn.Module) -> Iterator[Any]:
    """Return peft's layers in a tower."""
    return (module for module in tower.modules() if is_layer(module))


def outermost(tower: nn.Module) -> Iterator[tuple[str, Any]]:
    """Return peft's layers with their names, but those inside others, which go with them."""
    inside: str | None = None
    for name, layer in tower.named_modules():
        if is_layer(layer) and not (inside and name.startswith(inside)):
            inside = f"{name}."
            yield name, layer


def active_adapters(layer: Any) -> list[str]:
    """Return the names of the adapters that a layer of peft runs."""
    names: list[str] = layer.active_adapters
    return [] if layer.disable_adapters else [name for name in names if name in _known(layer)]


def _known(layer: Any) -> set[str]:
    """Return the adapters that have tensors in this layer."""
    # peft names some by a path of attributes.
    return {name for held in layer.adapter_layer_names for name in attrgetter(held)(layer)}


def _refuse_inert(side: str, tower: nn.Module) -> None:
    """Attention of torch reads its output projection's weight, and never calls the projection."""
    wrapped = {layer.base_layer for layer in layers_in(tower) if hasattr(layer, "base_layer")}
    for name, module in tower.named_modules():
        pool = is_a(module, "open_clip", "AttentionPool2d")
        if not (pool or isinstance(module, nn.MultiheadAttention)) or module in wrapped:
            continue
        for child, layer in module.named_children():
            if is_layer(layer):
                instead = "" if pool else f", or target the attention {name!r} itself"
                raise ValueError(
                    f"peft's layer at {name}.{child} of the {side} tower would do nothing: "
                    f"{type(module).__name__} reads the weight without calling that layer. "
                    f"Leave it out with exclude_modules{instead}"
                )


def _refuse_unreachable(side: str, tower: nn.Module, covered: set[nn.Module]) -> None:
    for name, layer in tower.named_modules():
        if is_layer(layer) and layer not in covered:
            raise ValueError(
                f"the {side} tower holds layers of peft ({name}) that were made through a model "
                f"around it, whose config cannot be seen from here: pass that model in its place, "
                f"or apply peft to the encoder itself ({type(unwrap(tower)).__name__} here)"
            )


def _refuse_forgotten(place: _Place, layers: frozenset[nn.Module]) -> None:
    """Wrapping a second time forgets the config that loading needs to make the first's layers."""
    for name, layer in outermost(place.applied):
        for adapter in active_adapters(layer) if layer in layers else ():
            config = place.applied.peft_config.get(adapter)
            if config is None or not _targets(config, name, layer):
                raise ValueError(
                    f"peft's layer {adapter!r} at {name} of the {place.side} tower has no config: "
                    f"{type(place.applied).__name__} was wrapped twice, and peft keeps one. Wrap "
                    "it once, then call add_adapter on what that returned"
                )


def _refuse_outside(place: _Place, towers: Sequence[nn.Module]) -> None:
    """Layers beside the towers, in a classifier or the half of a whole that is not used here."""
    inside = {module for tower in towers for module in tower.modules()}
    for name, layer in outermost(place.applied):
        if layer not in inside and active_adapters(layer):
            raise ValueError(
                f"peft's layer at {name} of the model around the {place.side} tower is in neither "
                "tower, so it would not be trained: leave it out with exclude_modules (whole "
                "layers: modules_to_save, which a task_type may set), or apply peft to the "
                "encoder alone"
            )


def _targets(config: Any, name: str, layer: Any) -> bool:
    """Whether peft would put such a layer there again."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    bare = without_peft(name)
    if is_a(layer, "peft", "ModulesToSaveWrapper"):
        return any(bare.endswith(kept) for kept in config.modules_to_save or ())
    if is_a(layer, "peft", "AuxiliaryTrainingWrapper", "ParamWrapper"):
        return True  # named by indices of tokens, or by a parameter
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    return bool(
        tuner._check_target_module_exists(config, bare)
        or tuner._check_tied_module_exists(config, bare)
    )


def refuse_config(side: str, config: Mapping[str, Any]) -> None:
    """Refuse what changes or trains a tower's own tensors.

    Raises:
        ValueError: such an option of peft.
    """
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ValueError(
            f"init_lora_weights={start!r} changes the {side} tower's own weights, so the "
            "adapter would not fit the tower that others load: use True or 'gaussian'"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"bias={config['bias']!r} trains the {side} tower's own biases, which stay "
            f"frozen here: use bias='none' and attach_bridgers(trainable=['{side}.*.bias'])"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
