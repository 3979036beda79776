"""PEFT layers that the user put into a tower with peft: LoRA, IA3, VeRA, LN-tuning and their kin.

They are part of the tower, so a plain call of the tower runs them too. To an encoder they are
what is trained there: they keep their gradients and their dropout while all else is frozen, and
they are counted, saved, loaded and merged with the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

from bridger.towers.base import is_a, unwrap

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of LoRA that subtract from the layer itself what the adapter then adds."""

TOWERS_OWN = ("base_layer", "original_module")
"""Children of a layer of peft that are the tower's."""

Parameters = dict[nn.Module, dict[str, nn.Parameter | None]]


@dataclass(frozen=True)
class PeftPart:
    """One adapter of peft in one module.

    Attributes:
        side: "vision" or "text".
        path: the module that peft was applied to, below the tower's own module.
        module: that module.
        adapter: the adapter's name in peft.
    """

    side: str
    path: str
    module: nn.Module
    adapter: str

    @property
    def config(self) -> dict[str, Any]:
        """What peft builds the adapter from, in plain values for JSON."""
        config: Any = self.module.peft_config
        return {k: _plain(v) for k, v in config[self.adapter].to_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adapter's tensors, named by layer and kind; what layers share comes once."""
        tensors: dict[str, Tensor] = {}
        places = set()
        for path, layer in self.module.named_modules():
            for name, tensor in layer.state_dict().items() if _is_layer(layer) else ():
                parts = name.split(".")
                place = (tensor.data_ptr(), tensor.shape)
                if parts[0] in TOWERS_OWN or self.adapter not in parts or place in places:
                    continue
                places.add(place)
                parts.remove(self.adapter)
                tensors[".".join([path, *parts])] = tensor
        return tensors


def find_peft(towers: Mapping[str, nn.Module] | nn.ModuleDict) -> list[PeftPart]:
    """Return the active adapters of peft in the towers.

    Args:
        towers: the towers' modules by side; one may be part of the other.

    Raises:
        ValueError: layers of peft that do nothing where they are, that cannot be saved, or whose
            config is out of reach.
    """
    parts, covered = [], set()
    for side, tower in towers.items():
        for path, module in unwrap(tower).named_modules():
            if "peft_config" not in vars(module) or is_a(module, "peft", "BaseTuner"):
                continue
            layers = [layer for layer in _layers(module) if layer not in covered]
            covered.update(layers)
            active = sorted({name for layer in layers for name in _active(layer)})
            parts += [PeftPart(side, path, module, adapter) for adapter in active]
    for side, tower in towers.items():
        for name, layer in tower.named_modules():
            if _is_layer(layer) and layer not in covered:
                raise ValueError(
                    f"the {side} tower holds layers of peft ({name}) that were made through a "
                    f"model around it, whose config cannot be seen from here: apply peft to the "
                    f"tower itself, as in get_peft_model(clip.visual, config)"
                )
        _refuse_inert(side, tower)
    for part in parts:
        _refuse_changed_base(part)
    return parts


def tuned_modules(tower: nn.Module) -> Iterator[nn.Module]:
    """Return the modules inside peft's layers that are peft's own, not the tower's."""
    for layer in _layers(tower):
        for name, child in layer.named_children():
            if name not in TOWERS_OWN:
                yield from child.modules()


def tuned_parameters(tower: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of peft's layers that are to be trained, each once."""
    parameters = [p for m in tuned_modules(tower) for p in m.parameters(recurse=False)]
    return [p for p in dict.fromkeys(parameters) if p.requires_grad]


def inject_peft(towers: Mapping[str, nn.Module], saved: list[Mapping[str, Any]]) -> Parameters:
    """Put saved adapters of peft back into the towers, with fresh numbers.

    Args:
        towers: the towers' modules by side.
        saved: side, path, adapter and config of each, as `describe_peft` returned.

    Returns:
        The towers' parameters by the module that owns them, for `take_out_peft`.

    Raises:
        ValueError: a tower holds layers of peft already, which a second set would mix with.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    sides = {entry["side"] for entry in saved}
    for side in sides:
        if any(True for _ in _layers(towers[side])):
            raise ValueError(
                f"the {side} tower holds layers of peft, and the adapter brings its own: "
                "pass the tower without them"
            )
    modules = {module for side in sides for module in towers[side].modules()}
    before = {module: dict(module._parameters) for module in modules}
    wrapped: dict[tuple[str, str], PeftModel] = {}
    adapters: dict[tuple[str, str], list[str]] = {}
    for entry in saved:
        place, adapter = (entry["side"], entry["path"]), entry["adapter"]
        module = unwrap(towers[entry["side"]]).get_submodule(entry["path"])
        flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
        config = PeftConfig.from_peft_type(**entry["config"])
        if place in wrapped:
            wrapped[place].add_adapter(adapter, config)
        else:
            wrapped[place] = get_peft_model(module, config, adapter)
        for parameter, flag in flags.items():  # peft has frozen them; detaching shall not see it
            parameter.requires_grad_(flag)
        adapters.setdefault(place, []).append(adapter)
    for place, names in adapters.items():
        wrapped[place].base_model.set_adapter(names)
    return before


def describe_peft(parts: list[PeftPart]) -> list[dict[str, Any]]:
    """Return what `inject_peft` needs, in plain values for JSON."""
    return [
        {"side": p.side, "path": p.path, "adapter": p.adapter, "config": p.config} for p in parts
    ]


def take_out_peft(parts: list[PeftPart], before: Parameters) -> None:
    """Undo `inject_peft`, to the same parameters in the same order.

    For torch's attention, peft writes new parameters at every forward, rounded anew; the
    towers' own come back.
    """
    _remove(parts, merge=False)
    for module, parameters in before.items():
        for name, parameter in parameters.items():
            now = module._parameters[name]
            if parameter is not None and now is not None:
                parameter.data = parameter.data.to(now)  # the towers may have moved since
        module._parameters.clear()
        module._parameters.update(parameters)


def merge_peft(parts: list[PeftPart]) -> None:
    """Take peft's layers out of the towers, and leave in these what the layers did.

    Raises:
        ValueError: peft cannot merge such layers.
    """
    for part in parts:
        for layer in _layers(part.module):
            if is_a(layer, "peft", "BaseTunerLayer") and not hasattr(layer, "merge"):
                raise ValueError(f"peft cannot merge {type(layer).__name__} into the tower")
    _remove(parts, merge=True)


def _remove(parts: list[PeftPart], *, merge: bool) -> None:
    for module in dict.fromkeys(part.module for part in parts):
        inside: str | None = None
        for name, layer in list(module.named_modules()):
            if _is_layer(layer) and not (inside and name.startswith(inside)):
                inside = f"{name}."  # a layer takes out those inside it
                _put(module, name, _without(layer, merge))
        del module.peft_config


def _without(layer: Any, merge: bool) -> nn.Module:
    """Return what stands in the place of a layer of peft when that is gone."""
    if not merge and is_a(layer, "peft", "AuxiliaryTrainingWrapper"):
        original: nn.Module = layer.original_module  # where peft would leave the trained copy
        return original
    if hasattr(layer, "unload_and_optionally_merge_module"):
        alone: nn.Module = layer.unload_and_optionally_merge_module(
            merge=merge, safe_merge=merge, adapter_names=None
        )
        return alone
    if merge and hasattr(layer, "merge"):
        layer.merge(safe_merge=True)
    inner: nn.Module = layer.get_base_layer()
    return inner


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = root.get_submodule(parent)
    owner._modules[leaf] = module


def _is_layer(module: nn.Module) -> bool:
    return is_a(module, "peft", "BaseTunerLayer", "AuxiliaryTrainingWrapper")


def _layers(tower: nn.Module) -> Iterator[Any]:
    return (module for module in tower.modules() if _is_layer(module))


def _active(layer: Any) -> list[str]:
    names: list[str] = layer.active_adapters
    return [] if layer.disable_adapters else [name for name in names if name in _known(layer)]


def _known(layer: Any) -> set[str]:
    """Return the adapters that have tensors in this layer."""
    return {name for held in layer.adapter_layer_names for name in getattr(layer, held)}


def _refuse_inert(side: str, tower: nn.Module) -> None:
    """Attention of torch reads its output projection's weight, and never calls the projection."""
    wrapped = {layer.base_layer for layer in _layers(tower) if hasattr(layer, "base_layer")}
    for name, module in tower.named_modules():
        if not isinstance(module, nn.MultiheadAttention) or module in wrapped:
            continue
        if _is_layer(module.out_proj):
            raise ValueError(
                f"peft's layer at {name}.out_proj of the {side} tower would do nothing: "
                "torch.nn.MultiheadAttention reads the weight without calling that layer. "
                f"Target the attention itself: target_modules=[{name.rpartition('.')[2]!r}]"
            )


def _refuse_changed_base(part: PeftPart) -> None:
    start = part.config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ValueError(
            f"init_lora_weights={start!r} changes the {part.side} tower's own weights, so the "
            "adapter would not fit the tower that others load: use True or 'gaussian'"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
