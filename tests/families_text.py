"""One row for every class of text towers beyond open_clip's own and CLIP's: tiny, random, offline.

Every tower takes `CONTEXT` tokens: tables whose positions count from the padding id are longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers_families import TextRow
from helpers_towers import CONTEXT, EOS, JOINT, SOS, VOCAB, fill, open_clip_vit
from torch import nn

TINY = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=CONTEXT,
    bos_token_id=SOS,
    eos_token_id=EOS,
    pad_token_id=0,
)
FROM_PAD = dict(pad_token_id=1, max_position_embeddings=CONTEXT + 2)
T5 = dict(vocab_size=VOCAB, d_model=32, d_kv=16, d_ff=48, num_layers=3, num_heads=2)
BART = dict(
    d_model=32,
    encoder_layers=3,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    scale_embedding=True,
    pad_token_id=1,
    max_position_embeddings=CONTEXT,
)
MODERN = dict(cls_token_id=SOS, sep_token_id=EOS, global_attn_every_n_layers=2, local_attention=4)
RELATIVE = dict(
    relative_attention=True,
    position_buckets=4,
    pos_att_type=["c2p", "p2c"],
    position_biased_input=False,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
)
VISION = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)
NO_TABLE = {"positions": "rotary, or of sines: there is no table to train"}


def build(name: str, config: str = "", *, at: str = "", **options: Any) -> Callable[[], Any]:
    """Return a factory of transformers' class `name` from its config and `options` over `TINY`.

    Options of the class itself stand in `model`; `at` names the part of it that is given.
    """
    own = options.pop("model", {})

    def factory() -> Any:
        import transformers

        made = getattr(transformers, config or name.replace("Model", "Config"))
        given = fill(getattr(transformers, name)(made(**{**TINY, **options}), **own))
        return given.get_submodule(at)

    return factory


def whole(name: str, *, at: str = "", projection: int = JOINT, **text: Any) -> Callable[[], Any]:
    """Return a factory of a whole dual encoder `<name>Model`, or of its part at `at`."""

    def factory() -> Any:
        import transformers

        config = getattr(transformers, f"{name}Config")(
            text_config={**TINY, **text}, vision_config=VISION, projection_dim=projection
        )
        return fill(getattr(transformers, f"{name}Model")(config)).get_submodule(at)

    return factory


def dual_encoder(text_model: Callable[[], Any]) -> Callable[[], Any]:
    """Return a factory of a `VisionTextDualEncoderModel` around that text model."""

    def factory() -> Any:
        from transformers import CLIPVisionConfig, CLIPVisionModel, VisionTextDualEncoderModel

        vision = CLIPVisionModel(CLIPVisionConfig(**VISION))
        pair = VisionTextDualEncoderModel(vision_model=vision, text_model=text_model())
        return fill(pair)

    return factory


def hf_text_encoder(
    text_model: str = "Roberta", pooler: str = "mean_pooler", **options: Any
) -> Any:
    """Return open_clip's `HFTextEncoder` around a transformers text model."""
    import transformers
    from open_clip.hf_model import HFTextEncoder

    own = {**TINY, **{"Roberta": FROM_PAD, "M2M100": BART}.get(text_model, {})}
    config = getattr(transformers, f"{text_model}Config")(**own)
    encoder = HFTextEncoder("", JOINT, config, pooler_type=pooler, proj_type="mlp", **options)
    if config.is_encoder_decoder:  # as open_clip does where it reads the config by itself
        encoder.transformer = encoder.transformer.encoder
    return fill(encoder)


def whole_around_hf_text() -> nn.Module:
    """Return a `CustomTextCLIP` with an `HFTextEncoder` as its text tower."""
    clip = open_clip_vit(custom=True)
    clip.text = hf_text_encoder()
    return clip  # type: ignore[no-any-return]


def coca() -> Any:
    """Return open_clip's whole CoCa."""
    from open_clip.coca_model import CoCa

    text = dict(context_length=CONTEXT, vocab_size=VOCAB, width=32, heads=2, layers=3)
    return fill(
        CoCa(
            JOINT,
            multimodal_cfg=dict(**text, attn_pooler_heads=2),
            text_cfg=dict(**text, embed_cls=True, output_tokens=True),
            vision_cfg=dict(
                image_size=32,
                patch_size=8,
                width=48,
                head_width=16,
                layers=3,
                attentional_pool=True,
                attn_pooler_heads=2,
                output_tokens=True,
            ),
        )
    )


def prompted(model: Callable[[], Any], config: str, **options: Any) -> Callable[[], Any]:
    """Return a factory of that text model behind three virtual tokens of peft."""

    def factory() -> Any:
        import peft
        import torch

        torch.manual_seed(0)
        made = getattr(peft, config)(
            task_type="FEATURE_EXTRACTION", num_virtual_tokens=3, **options
        )
        return peft.get_peft_model(model(), made).eval()

    return factory


LONGER = dict(max_position_embeddings=CONTEXT + 3)
TRAINED = {"untouched": "virtual tokens are trained: they get gradients and the adapter's mode"}

ROWS: list[TextRow] = [
    TextRow("transformers/BertModel", build("BertModel"), fast=True),
    TextRow("transformers/BertModel no pooler", build("BertModel", model={"add_pooling_layer": 0})),
    TextRow(
        "transformers/BertForSequenceClassification",
        build("BertForSequenceClassification", "BertConfig"),
    ),
    TextRow("transformers/ElectraModel", build("ElectraModel", embedding_size=16)),
    TextRow("transformers/RobertaModel", build("RobertaModel", **FROM_PAD), pad=1),
    TextRow("transformers/XLMRobertaModel", build("XLMRobertaModel", **FROM_PAD), pad=1),
    TextRow("transformers/CamembertModel", build("CamembertModel", **FROM_PAD), pad=1),
    TextRow(
        "transformers/DistilBertModel", build("DistilBertModel", n_layers=3, dim=32, n_heads=2)
    ),
    TextRow("transformers/MPNetModel", build("MPNetModel", **FROM_PAD), pad=1),
    TextRow(
        "transformers/DebertaModel",
        build("DebertaModel", **RELATIVE),
        exceptions={"autocast": "its own forward overflows: it masks with float32's least number"},
    ),
    TextRow("transformers/DebertaV2Model", build("DebertaV2Model", **RELATIVE)),
    TextRow(
        "transformers/DebertaV2Model conv", build("DebertaV2Model", **RELATIVE, conv_kernel_size=3)
    ),
    TextRow(
        "transformers/ModernBertModel",
        build("ModernBertModel", **MODERN),
        exceptions=NO_TABLE,
    ),
    TextRow(
        "transformers/ModernBertModel mean",
        build("ModernBertModel", **MODERN, classifier_pooling="mean"),
        exceptions=NO_TABLE,
    ),
    TextRow("transformers/T5EncoderModel", build("T5EncoderModel", "T5Config", **T5), fast=True),
    TextRow("transformers/MT5EncoderModel", build("MT5EncoderModel", "MT5Config", **T5)),
    TextRow("transformers/UMT5EncoderModel", build("UMT5EncoderModel", "UMT5Config", **T5)),
    TextRow("transformers/T5Stack", build("T5Model", at="encoder", **T5)),
    TextRow("transformers/BartEncoder", build("BartModel", at="encoder", **BART), pad=1, fast=True),
    TextRow("transformers/MBartEncoder", build("MBartModel", at="encoder", **BART), pad=1),
    TextRow(
        "transformers/M2M100Encoder",
        build("M2M100Model", at="encoder", **BART),
        pad=1,
        exceptions=NO_TABLE,
    ),
    TextRow(
        "transformers/SiglipTextModel",
        build("SiglipTextModel", projection_size=JOINT, pad_token_id=1),
        pad=1,
        fast=True,
    ),
    TextRow("transformers/Siglip2TextModel", build("Siglip2TextModel", pad_token_id=1), pad=1),
    TextRow("transformers/SiglipModel (text)", whole("Siglip", pad_token_id=1), pad=1),
    TextRow("transformers/MetaClip2TextModel", build("MetaClip2TextModel")),
    TextRow(
        "transformers/MetaClip2TextModelWithProjection",
        build("MetaClip2TextModelWithProjection", "MetaClip2TextConfig", projection_dim=JOINT),
    ),
    TextRow("transformers/MetaClip2Model (text)", whole("MetaClip2"), fast=True),
    TextRow(
        "transformers/AltCLIPTextModel",
        build("AltCLIPTextModel", project_dim=40, **FROM_PAD),
        pad=1,
    ),
    TextRow(
        "transformers/AltCLIPModel (text)", whole("AltCLIP", project_dim=40, **FROM_PAD), pad=1
    ),
    TextRow("transformers/ChineseCLIPTextModel", build("ChineseCLIPTextModel")),
    TextRow("transformers/ChineseCLIPModel (text)", whole("ChineseCLIP")),
    TextRow("transformers/VisionTextDualEncoderModel (text)", dual_encoder(build("BertModel"))),
    TextRow(
        "peft/PromptTuning BertModel",
        prompted(build("BertModel", **LONGER), "PromptTuningConfig"),
        exceptions=TRAINED,
        fast=True,
    ),
    TextRow(
        "peft/PromptEncoder ModernBertModel",
        prompted(
            build("ModernBertModel", **MODERN, **LONGER),
            "PromptEncoderConfig",
            encoder_hidden_size=8,
        ),
        exceptions=NO_TABLE | TRAINED,
    ),
    TextRow(
        "peft/PrefixTuning BertModel",
        prompted(build("BertModel", **LONGER), "PrefixTuningConfig"),
        exceptions=TRAINED,
    ),
    TextRow("open_clip/HFTextEncoder", hf_text_encoder, pad=1, fast=True),
    TextRow("open_clip/HFTextEncoder cls", lambda: hf_text_encoder("Bert", "cls_pooler")),
    TextRow(
        "open_clip/HFTextEncoder M2M100",
        lambda: hf_text_encoder("M2M100"),
        pad=1,
        exceptions=NO_TABLE,
    ),
    TextRow("open_clip/CustomTextCLIP HFTextEncoder", whole_around_hf_text, pad=1),
    TextRow("open_clip/CoCa", coca, fast=True),
    TextRow("open_clip/CoCa text", lambda: coca().text),
]
try:  # the library's own NomicBert came with 5.x
    from transformers import NomicBertModel as _  # noqa: F401
except ImportError:
    pass
else:
    ROWS.append(
        TextRow("transformers/NomicBertModel", build("NomicBertModel"), exceptions=NO_TABLE)
    )
