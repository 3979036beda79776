"""Two frozen towers and the Bridgers between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bridger.attachment import Attachment
from bridger.batch_statistics import BatchStatistics
from bridger.bottlenecks import Bottlenecks
from bridger.bridgers import BridgerConfig
from bridger.bridging import make_bridgers, stride_of
from bridger.disabling import disabled, is_disabled
from bridger.expressions import check_word_length
from bridger.features import BridgedFeatures, EncoderSpec, TextFeatures
from bridger.freezing import Flags, flags_before
from bridger.recomputing import Switched, recomputes_in_train_mode
from bridger.running import Batch, Ready, TowerHooks, prepare_text, run_bridged, run_text
from bridger.stages import Stages, resolve_stages
from bridger.summary import stage_table
from bridger.switched_towers import SwitchedTowers
from bridger.tower_peft import Parameters, find_peft, tuned_modules
from bridger.tower_tensors import TowerTensors
from bridger.towers import TextTower, VisionTower
from bridger.towers.contrastive import read_contrast
from bridger.towers.lean import with_lean_parts

if TYPE_CHECKING:
    from bridger.heads import Head
    from bridger.model import BridgedModel


class BridgedEncoder(SwitchedTowers):
    """A vision and a text tower that exchange information at every stage.

    Made by `attach_bridgers`. The towers' own forwards run in lockstep; at stage i the Bridger
    adds a residual to both hidden states (docs/method.md, section 3: F_v <- F_v + ZL_out(v_i),
    F_t <- F_t + Linear(t_i)). With direction="to_vision" the text tower runs first, plainly, and
    all stages read its tokens as `BridgedFeatures` hold them.

    Args:
        vision: the vision tower, found through the registry.
        text: the text tower.
        stages: as in `attach_bridgers`, as are all that follow.
        config: a config, or None for no Bridgers.
        trainable: glob patterns of the tower tensors that the adapter trains.
        connect: the released code's residual in a ResNet's last map.
        word_length: the released code's way with texts.
    """

    def __init__(
        self,
        vision: VisionTower,
        text: TextTower,
        stages: Stages,
        config: BridgerConfig | None,
        *,
        trainable: Sequence[str] = (),
        connect: bool = False,
        word_length: int | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.text, self.config, self.connect = vision, text, config, connect
        self.stages = resolve_stages(
            stages,
            [block.name for block in vision.blocks],
            [block.name for block in text.blocks],
            None if config is None else config.direction,
        )
        self.trainable = tuple(trainable)
        self.word_length = check_word_length(word_length, text.max_length)
        self._compiled = None
        self._switched: list[Switched] = []
        # Filled where loading, or a recipe, put something into the towers.
        self.before_peft: Parameters = {}
        self.bottlenecks: list[Bottlenecks] = []
        self.dense = vision.dense_projection(connect=connect)
        self.bridgers = None if config is None else make_bridgers(config, vision, text, self.stages)
        self.tower_tensors = TowerTensors(vision, text, self.trainable)
        # The towers come last, and a part of the other tower is registered with it, once.
        inner = vision.module in set(text.module.modules())
        towers = {"text": text.module} if inner else {"vision": vision.module, "text": text.module}
        self.towers = nn.ModuleDict(towers)
        find_peft(self._sides())  # raises early
        self._tried: frozenset[nn.Module] = frozenset()
        tuned = set(tuned_modules(self.towers))
        self._frozen = [module for module in self.towers.modules() if module not in tuned]
        self._attach(before=None)
        try:
            self.peft_parts()
        except BaseException:
            self.detach()
            raise

    def _attach(self, before: list[Flags] | None) -> None:
        self._hooks = TowerHooks.on(self.vision, self.text, self.stages)
        hooks = [hook for hook in self._hooks if hook is not None]
        inserted = (self.before_peft, self.bottlenecks)
        self._attachment = Attachment(hooks, self._frozen, *inserted, self._switched, before)
        self._attached = True

    def detach(self) -> None:
        """Remove hooks from the towers and give them their flags and modes back.

        A second call does nothing. The encoder cannot run afterwards. Where loading the adapter
        brought layers of peft or bottleneck adapters, the towers are what they were before; a
        user's own stay.
        An encoder that nothing refers to any more is detached by itself.
        """
        if self._attached:
            self._attached = False
            self._attachment.leave()

    @property
    def spec(self) -> EncoderSpec:
        """Widths and strides of the features, known before any forward."""
        stages = [self.vision.blocks[v] for v, _ in self.stages[:-1]]
        last = self.vision.blocks[-1]
        joint = self.vision.joint_width
        contrast = read_contrast(self.vision, self.text)
        return EncoderSpec(
            map_widths=(
                *(block.width for block in stages),
                last.width if self.dense is None else self.dense.width,
            ),
            map_strides=(*(stride_of(block.stride) for block in stages), stride_of(last.stride)),
            token_width=self.text.token_width,
            sentence_width=self.text.sentence_width,
            joint=joint is not None and joint == self.text.sentence_width,
            pooled_width=self.vision.pooled_width,
            logit_scale=contrast.scale,
            logit_bias=contrast.bias,
        )

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        expression_mask: Tensor | None = None,
        *,
        text: TextFeatures | None = None,
    ) -> BridgedFeatures:
        """Run both towers, and the Bridgers between them.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (B, L), or (B, N, L) for N expressions per image.
            attention_mask: like input_ids, true at real tokens; by default the text tower's
                own rule.
            expression_mask: (B, N), false at the padding of a ragged N; rows there hold the
                features of the image's first real expression.
            text: in place of all these, what `read_text` made of N texts that every image is
                asked about; the vision tower runs alone.

        Returns:
            The features, B*N rows ordered image by image.

        Raises:
            RuntimeError: the encoder is detached.
            TypeError, ValueError: inputs of the wrong type or shape, a text without a token, both
                ids and text, a text that Bridgers would write to.
        """
        self.check_attached()
        if text is None:
            batch = Batch.prepare(self, pixel_values, input_ids, attention_mask, expression_mask)
            return self._run(batch)
        if any(given is not None for given in (input_ids, attention_mask, expression_mask)):
            raise TypeError("pass either input_ids (and its masks), or text that was read before")
        self._check_text_alone()
        return self._run(Batch.behind(self, pixel_values, text))

    def read_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextFeatures:
        """Run the text tower alone, once for however many images are asked about its texts.

        Args:
            input_ids: (S, L).
            attention_mask: (S, L), true at real tokens, as in `forward`.

        Returns:
            What `forward(pixel_values, text=...)` takes.

        Raises:
            RuntimeError: the encoder is detached.
            ValueError: Bridgers write to the text, which then depends on the image.
        """
        self.check_attached()
        self._check_text_alone()
        ids, token_mask = prepare_text(self, input_ids, attention_mask)
        with self._ready() as ready:
            return run_text(self, ready, ids, token_mask)

    @property
    def text_alone(self) -> bool:
        """Whether texts are the same beside every image: no Bridger writes to them."""
        return self.config is None or not self.enabled or self.config.direction == "to_vision"

    def _check_text_alone(self) -> None:
        if not self.text_alone:
            raise ValueError(
                "Bridgers write to the text, so it depends on the image and cannot be read before: "
                "pass input_ids, or run without Bridgers (encoder.disable())"
            )

    def check_attached(self) -> None:
        """Raise a RuntimeError where the encoder is detached."""
        if not self._attached:
            raise RuntimeError("this encoder is detached; call attach_bridgers again")

    def _run(self, batch: Batch) -> BridgedFeatures:
        with self._ready() as ready:
            if self.prefix_cache is not None:
                ready = self.prefix_cache.take_up(self, ready, batch)
            return run_bridged(self, ready, batch)

    @contextmanager
    def _ready(self) -> Iterator[Ready]:
        """What is to be run, once: hooked towers, and the tensors that stand in for their own."""
        no_tensors: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}}
        tensors = no_tensors if is_disabled(self) else self._owned()
        vision, text = self.vision, self.text
        if self._compiled is not None:
            vision, text = self._compiled[0].of(vision), self._compiled[1].of(text)
        else:
            vision, text = with_lean_parts(vision), with_lean_parts(text)
        if not self.training:
            yield Ready(self._hooks, vision, text, tensors)
            return
        moved = BatchStatistics((vision, text), tensors, self.tower_tensors.stand_in)
        yield Ready(self._hooks, *moved.towers, moved.tensors)
        moved.keep()

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Run without Bridgers and with the towers' own tensors, as if never attached.

        It acts in the thread (or the task of asyncio) that opens it, and in no other.
        """
        with disabled(self):
            yield

    @property
    def enabled(self) -> bool:
        """Whether Bridgers act in this thread's forwards: there are some and none disabled them."""
        return self.bridgers is not None and not is_disabled(self)

    def train(self, mode: bool = True) -> BridgedEncoder:
        """Set the mode of Bridgers and of peft's layers; all else in the towers stays in eval.

        Args:
            mode: true to train.
        """
        super().train(mode)
        if self._attached:
            self.towers.eval()
            for module in self.towers.modules():
                if recomputes_in_train_mode(module):
                    module.training = mode
            for module in tuned_modules(self.towers):
                module.training = mode
        return self

    def frozen_towers(self) -> nn.Module:
        """Return what is never trained."""
        return self.towers

    def summary(self, image_size: tuple[int, int] | None = None) -> str:
        """Return where the towers meet, as a table.

        Args:
            image_size: (H, W) of the pictures in pixels, by which the maps' sizes are told; None:
                the size that the vision tower was built for.
        """
        return stage_table(self, image_size)

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Return what the adapter saves: all but the towers, and peft's layers in them."""
        owned = self.state_dict().items()
        tensors = {name: tensor for name, tensor in owned if not name.startswith("towers.")}
        for index, part in enumerate(self.peft_parts()):
            tensors.update({f"peft.{index}.{k}": v for k, v in part.state_dict().items()})
        return tensors

    def with_head(self, head: type[Head], **config: Any) -> BridgedModel:
        """Put one head on the features; its input widths are read from `spec`.

        Args:
            head: its class.
            **config: its options, "preset" among them, as in `Head.from_spec`.
        """
        return self.with_heads(head=(head, config))

    def with_heads(
        self,
        *,
        loss_weights: Mapping[str, float] | None = None,
        **heads: type[Head] | tuple[type[Head], Mapping[str, Any]],
    ) -> BridgedModel:
        """Put several named heads on the features.

        Each starts from the numbers that it would have alone.

        Args:
            loss_weights: weights of the heads' losses by name, 1 where nothing is said.
            **heads: by name, each a class or a (class, options) pair.
        """
        # The one import against the layers' order: users chain attach_bridgers(...).with_head.
        from bridger.model import BridgedModel

        pairs = {k: v if isinstance(v, tuple) else (v, {}) for k, v in heads.items()}
        return BridgedModel.build(self, pairs, loss_weights)

    def __getstate__(self) -> dict[str, Any]:
        # Hooks belong to this object and its towers; a copy registers its own.
        left_out = ("_hooks", "_attachment", "prefix_cache")
        state = {k: v for k, v in self.__dict__.items() if k not in left_out}
        state["_compiled"], state["_tried"] = None, frozenset()
        if self._attached:
            state["_before"] = flags_before(self._frozen)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = state.pop("_before", None)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._attached:
            self._attach(before)
