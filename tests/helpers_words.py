"""A small tokenizer of transformers, made on the spot."""

from __future__ import annotations

from typing import Any

VOCABULARY = "the a dog cat owl ball on left right red small of second above".split()


def word_tokenizer(**options: Any) -> Any:
    """A fast tokenizer with a word per id: [SOS] words [EOS], unknown words become [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *VOCABULARY]
    core = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, "[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[SOS] $A [EOS]", special_tokens=[("[SOS]", 2), ("[EOS]", 3)]
    )
    special = dict(
        pad_token="[PAD]", unk_token="[UNK]", bos_token="[SOS]", eos_token="[EOS]", **options
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)
