"""Builds Tiny CLIP's tokenizer: the words of its world, and pieces of words for all others."""

from __future__ import annotations

import re
import string

from bridger.data import phrases
from bridger.data.sprites import TINTS, kinds

CONTEXT_LENGTH = 24

# Pieces for words that the list does not hold: "owls" becomes "owl" and "##s".
SUFFIXES = ("s", "es", "ed", "ing", "er", "est", "ish", "y", "ly", "like", "ies", "ness", "less")


def words() -> list[str]:
    """Every word that a caption, an expression or a person may use, sorted."""
    texts = [phrases.OTHER_WORDS, *TINTS, *phrases.ORDINALS, *phrases.COLOURS, *phrases.BETWEEN]
    for table in (phrases.PLACES, phrases.SIZES, phrases.RELATIONS, phrases.ROWS):
        texts.extend(phrase for group in table.values() for phrase in group)
    texts.extend(noun for kind in kinds() for noun in kind.nouns)
    texts.extend(kind.colour for kind in kinds() if kind.colour)
    plain = re.sub(r"\{\w*\}", " ", " ".join(texts)).lower()
    return sorted(set(re.findall(r"[a-z0-9]+", plain)))


def vocabulary() -> dict[str, int]:
    """Words and pieces to ids.

    `<pad>` is 0 and `<end>` the largest id, since open_clip's CLIP reads a sentence off at the
    largest id in it.
    """
    characters = string.ascii_lowercase + string.digits
    entries = ["<pad>", "<unk>", "<start>", *characters, *("##" + c for c in characters)]
    entries += ["##" + suffix for suffix in SUFFIXES] + words()
    unique = list(dict.fromkeys(entries))
    # A round number of rows leaves room and keeps matrix kernels happy.
    unused = -(len(unique) + 1) % 64
    ordered = [*unique, *(f"<unused{i}>" for i in range(unused)), "<end>"]
    return {entry: i for i, entry in enumerate(ordered)}


def build_tokenizer():  # type: ignore[no-untyped-def]  # a PreTrainedTokenizerFast
    """The tokenizer as transformers saves and loads it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = vocabulary()
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=64))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("['\u2019]"), ""),
            normalizers.Replace(Regex("[^a-z0-9<>]"), " "),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", vocab["<start>"]), ("<end>", vocab["<end>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        truncation_side="right",
    )
