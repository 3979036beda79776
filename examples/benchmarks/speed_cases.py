"""What speed.py and scaling.py time: ways to run one pair of towers with one head.

    Case(build("bridged", towers, Setting()), Setting()).step()

All ways but full fine-tuning run on the same weights, each in modules of its own. The head is the
referring one with its defaults, drawn from the same seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from adapters import towers as clip_of_size
from full_size import PAIRS, inputs
from torch import Tensor, nn

from bridger import BridgedModel, attach_bridgers
from bridger.expressions import flatten_expressions
from bridger.features import BridgedFeatures
from bridger.heads import ReferringSegmentationHead
from bridger.stages import Pairs
from bridger.summary import count
from bridger.towers import find_text_tower, find_vision_tower
from bridger.towers.base import Tower, state_of, with_state

PRECISIONS = ("f32", "bf16-autocast", "bf16-towers")


@dataclass(frozen=True)
class Setting:
    """What one table is measured in.

    Attributes:
        pair: of full_size.py's.
        small: in its place towers of 4 blocks, 128 wide.
        size: side of the pictures in pixels; None: the pair's own.
        batch, expressions: B and N.
        precision: "f32"; "bf16-autocast", all under autocast; "bf16-towers", frozen towers in
            bfloat16 under whatever is trained in float32.
        memory: what `BridgedModel.save_memory` takes; of the bridged models alone.
        compiled: whether blocks, Bridgers and heads are.
        device: where it runs.
    """

    pair: str = "CLIP ViT-B/16"
    small: bool = False
    size: int | None = None
    batch: int = 4
    expressions: int = 1
    precision: str = "f32"
    memory: str = "fast"
    compiled: bool = False
    device: str = "cpu"


class Towers(NamedTuple):
    """Two frozen encoders, the second of which may hold the first, and the side of pictures."""

    vision: nn.Module
    text: nn.Module
    size: int

    @property
    def roots(self) -> list[nn.Module]:
        inside = self.vision in set(self.text.modules())
        return [self.text] if inside else [self.vision, self.text]

    def another(self, *, weights: bool = False) -> Towers:
        """Return modules of their own; on the same tensors, or with weights of their own too."""
        both = nn.ModuleList(self.roots)
        tensors = [] if weights else [*both.parameters(), *both.buffers()]
        vision, text = copy.deepcopy((self.vision, self.text), {id(t): t for t in tensors})
        return Towers(vision, text, self.size)


def load(setting: Setting) -> Towers:
    """Build the towers with random weights."""
    torch.manual_seed(0)
    if setting.small:
        clip = clip_of_size(small=True)
        vision, text, size = clip.visual, clip, clip.visual.image_size[0]
    else:
        vision, text, size = PAIRS[setting.pair]()
    found = Towers(vision, text, setting.size or size)
    for root in found.roots:
        root.eval().requires_grad_(False).to(setting.device)
        if setting.precision == "bf16-towers":
            root.bfloat16()
    return found


class Unbridged(nn.Module):
    """The two towers' own forwards, one after the other, and a head on what they leave.

    With several expressions an image's state is repeated at the first stage, as Bridgers need it.

    Args:
        towers: the encoders.
        head: false for the towers alone.
        leaves: whether gradients shall run through both towers down to the first stage's output,
            as they do with Bridgers, although nothing is trained there.
    """

    def __init__(self, towers: Towers, *, head: bool = True, leaves: bool = False) -> None:
        super().__init__()
        encoder = attach_bridgers(towers.vision, towers.text, config=None)
        self.stages: Pairs = encoder.stages
        self.head = with_head(encoder).heads["head"] if head else None
        encoder.detach()
        self.towers = nn.ModuleList(towers.roots)
        self.vision, self.text = find_vision_tower(towers.vision), find_text_tower(towers.text)
        self.dense = self.vision.dense_projection()
        self.leaves, self.expressions = leaves, 1
        self.states: dict[nn.Module, Any] = {}
        self._watch(self.vision, [v for v, _ in self.stages], self._start_of_vision)
        self._watch(self.text, [t for _, t in self.stages if t is not None], self._start)

    def _watch(self, tower: Tower, stages: list[int], start: Callable[..., Any]) -> None:
        numbers = dict.fromkeys([*stages, len(tower.blocks) - 1])
        for index, number in enumerate(numbers):
            block = tower.blocks[number].module
            block.register_forward_hook(self._keep if index else start)

    def _start(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self.leaves and torch.is_grad_enabled():
            output = with_state(output, state_of(output).detach().requires_grad_())
        self._keep(block, args, output)
        return output

    def _start_of_vision(self, block: nn.Module, args: Any, output: Any) -> Any:
        if self.expressions > 1:
            rows = state_of(output).repeat_interleave(self.expressions, dim=0)
            output = with_state(output, rows)
        return self._start(block, args, output)

    def _keep(self, block: nn.Module, args: Any, output: Any) -> None:
        self.states[block] = output

    def train(self, mode: bool = True) -> Unbridged:
        """Set the mode of the head: towers stay in eval."""
        self.training = mode
        if self.head is not None:
            self.head.train(mode)
        return self

    def compile(self, **options: Any) -> None:
        """Compile the blocks and the head; hooks run outside, as in bridged towers."""
        for block in (*self.vision.blocks, *self.text.blocks):
            block.module.forward = torch.compile(block.module.forward, **options)
        if self.head is not None:
            self.head.compile(**options)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        """Return the head's output, or without a head what the towers return."""
        ids, flat_mask, self.expressions = flatten_expressions(input_ids, mask, None)
        ids, token_mask = self.text.prepare(ids, flat_mask)
        results = self.vision.call(pixel_values, {}), self.text.call(ids, token_mask, {})
        if self.head is None:
            return results
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        return self.head(self._features(results, ids, token_mask, size), labels)

    def _features(
        self, results: tuple[Any, Any], ids: Tensor, token_mask: Tensor, size: tuple[int, int]
    ) -> BridgedFeatures:
        vision, text, states = self.vision, self.text, self.states
        numbers = [v for v, _ in self.stages[:-1]] + [len(vision.blocks) - 1]
        maps = [vision.read_map(v, states[vision.blocks[v].module], size) for v in numbers]
        last = text.read_tokens(len(text.blocks) - 1, states[text.blocks[-1].module])
        tokens = text.tokens(last, results[1], {})
        states.clear()
        return BridgedFeatures(
            maps=(*maps[:-1], maps[-1] if self.dense is None else self.dense(maps[-1], {})),
            tokens=tokens,
            token_mask=token_mask,
            sentence=text.sentence(tokens, ids, results[1]),
            pooled=vision.pooled(results[0]),
            image_size=size,
            num_expressions=self.expressions,
        )


def with_head(encoder: Any) -> BridgedModel:
    """Put the referring head on, with the same numbers whatever it stands on."""
    torch.manual_seed(0)
    model: BridgedModel = encoder.with_head(ReferringSegmentationHead)
    return model


def bridged(towers: Towers, setting: Setting, **options: Any) -> BridgedModel:
    """Attach Bridgers as the setting wants them."""
    torch.manual_seed(1)
    model = with_head(attach_bridgers(towers.vision, towers.text, **options))
    if setting.precision == "bf16-towers":
        model.bfloat16()
    model.save_memory(setting.memory)
    return model


def with_lora(towers: Towers) -> Unbridged:
    """Put LoRA into all linear layers of the blocks, with about as many numbers as Bridgers."""
    import peft

    encoder = attach_bridgers(towers.vision, towers.text)
    wanted = count(encoder.bridgers)
    blocks = (*encoder.vision.blocks, *encoder.text.blocks)
    encoder.detach()
    linear = {m for b in blocks for m in b.module.modules() if type(m) is nn.Linear}
    if not linear:
        raise SystemExit("no block of these towers has a linear layer that LoRA could change")
    rank = max(1, round(wanted / sum(m.in_features + m.out_features for m in linear)))
    model = Unbridged(towers)
    for root in towers.roots:
        if names := [name for name, module in root.named_modules() if module in linear]:
            config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
            peft.inject_adapter_in_model(config, root)
            for parameter in root.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
    return model


def full(towers: Towers) -> Unbridged:
    """Train every number of the towers too."""
    model = Unbridged(towers)
    model.towers.requires_grad_(True)
    return model


FORWARD = ("towers", "floor", "lockstep", "bridged", "lora")
STEP = ("floor", "lockstep", "bridged", "positions", "lora", "full")
WHAT = {
    "towers": "towers alone",
    "floor": "towers + head (floor)",
    "lockstep": "the same in lockstep, head alone trained",
    "bridged": "bridged",
    "positions": "bridged, positions trained",
    "lora": "LoRA + head",
    "full": "full fine-tuning + head",
}


def build(name: str, towers: Towers, setting: Setting) -> nn.Module:
    """Build one of `WHAT` on the towers' weights."""
    own = towers.another(weights=name == "full")
    makers: dict[str, Callable[[], nn.Module]] = {
        "towers": lambda: Unbridged(own, head=False),
        "floor": lambda: Unbridged(own, leaves=True),
        "lockstep": lambda: bridged(own, setting, config=None),
        "bridged": lambda: bridged(own, setting),
        "positions": lambda: bridged(own, setting, trainable="positions"),
        "lora": lambda: with_lora(own),
        "full": lambda: full(own),
    }
    module = makers[name]().to(setting.device)
    if setting.compiled:
        module.compile()
    return module


class Case:
    """A model with its inputs and its optimiser.

    Args:
        module: called with pixels, ids, mask and labels.
        setting: how large the inputs are, and what they run in.
        size: side of the pictures in pixels.
        length: tokens of the texts; None: 20, or what the tower takes.
    """

    def __init__(
        self, module: nn.Module, setting: Setting, size: int, length: int | None = None
    ) -> None:
        self.module, self.setting = module, setting
        encoder: Any = module.encoder if isinstance(module, BridgedModel) else module
        rows = (setting.batch, setting.expressions)[: 1 + (setting.expressions > 1)]
        torch.manual_seed(2)
        pixels, ids, labels = (x.to(setting.device) for x in inputs(encoder, size, *rows))
        if length is not None:
            ids = torch.cat([ids[..., :1].expand(*rows, length - 1), ids[..., -1:]], dim=-1)
        self.inputs, self.labels = (pixels, ids, torch.ones_like(ids)), labels
        trained = [p for p in module.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.setting.device).type
        return torch.autocast(device, torch.bfloat16, self.setting.precision == "bf16-autocast")

    @torch.no_grad()
    def forward(self) -> Any:
        """Run without gradients; call `module.eval()` before."""
        with self._autocast():
            return self.module(*self.inputs)

    def loss(self) -> Tensor:
        """Run with gradients; call `module.train()` before."""
        with self._autocast():
            loss: Tensor = self.module(*self.inputs, labels=self.labels).loss
        return loss

    def update(self) -> None:
        """Step the optimiser, and forget the gradients."""
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> Tensor:
        """Run one training step; call `module.train()` before."""
        loss = self.loss()
        loss.backward()
        self.update()
        return loss.detach()
