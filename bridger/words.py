"""Words to ids: one face for the tokenizers of transformers and open_clip, and how each is saved.

Sentences are padded on the right, whatever a tokenizer would do by itself, and cut in the same
way everywhere: the last token that fits becomes the token that ended the whole sentence.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

TOKENIZER_FOLDER = "tokenizer"
OWN_FILES_ALONE = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads a folder: it neither asks the Hub nor runs code that lies there."""
OPEN_CLIP_VOCABULARY = 49408
"""Size of the vocabulary of OpenAI's CLIP, which open_clip ships."""


class Words(ABC):
    """A tokenizer of any library.

    Attributes:
        kind: the name under which it is saved.
        options: what may stand beside its files.
        pad_id: what stands behind the end of a sentence.
        special_ids: ids that stand for no words: start, end, padding.
        unknown_id: what stands for every word that it does not know; None: it knows all.
    """

    kind: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    pad_id: int
    special_ids: frozenset[int]
    unknown_id: int | None = None

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return each sentence's ids, whole, special tokens included."""

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return how the tokenizer writes each id, with its marks of where words begin or end."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write what is needed into `folder` and return the options for `load`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, options: Mapping[str, Any]) -> Words:
        """Read what `save` wrote."""

    def __call__(self, sentences: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """Turn sentences into ids.

        Args:
            sentences: N sentences.
            max_length: most ids of a sentence; longer ones are cut, with a warning.

        Returns:
            input_ids (N, L) and attention_mask (N, L) bool, L that of the longest sentence.

        Raises:
            TypeError: not a sentence.
            ValueError: a sentence without words.
        """
        return self.pad(self.rows(sentences, max_length))

    def rows(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
        """Return each sentence's ids, cut to the limit; arguments and errors as of a call."""
        check_sentences(sentences)
        return [
            self._fit(ids, sentence, max_length)
            for ids, sentence in zip(self.encode(sentences), sentences, strict=True)
        ]

    def pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` of rows of ids, padded to the longest."""
        length = max(map(len, rows))
        input_ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        return {"input_ids": input_ids, "attention_mask": mask}

    def _fit(self, ids: list[int], sentence: str, max_length: int) -> list[int]:
        if all(id in self.special_ids for id in ids):
            raise ValueError(f"the sentence {sentence!r} holds no word that the tokenizer knows")
        if len(ids) <= max_length:
            return ids
        warnings.warn(
            f"the sentence {sentence!r} has {len(ids)} tokens, {len(ids) - max_length} more than "
            f"the limit of {max_length}: its end is cut off",
            UserWarning,
            stacklevel=6,
        )
        if ids[-1] in self.special_ids:
            return [*ids[: max_length - 1], ids[-1]]
        return ids[:max_length]


def check_sentences(sentences: Sequence[str]) -> None:
    """Refuse what is no sentence: another type, the empty string, no sentence at all."""
    if len(sentences) == 0:
        raise ValueError("expected at least one sentence, found none")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(f"expected sentences as str; number {index} is {sentence!r}")
        if not sentence.strip():
            raise ValueError(
                f"sentence number {index} is empty ({sentence!r}); say what to segment, as in "
                f"'the dog on the left'"
            )


class TransformersWords(Words):
    """A tokenizer of transformers, saved whole."""

    kind = "transformers"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.pad_id = next((id for id in (pad, end) if id is not None), 0)
        # An unknown word is a word. CLIP's tokenizer, which knows all words, calls its end so.
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, end, pad}
        self.special_ids = frozenset(tokenizer.all_special_ids) - unknown
        self.unknown_id = tokenizer.unk_token_id

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return each sentence's ids, whole, special tokens included."""
        encoded = self.tokenizer(list(sentences), padding=False, truncation=False, verbose=False)
        return [list(map(int, ids)) for ids in encoded["input_ids"]]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of the vocabulary that have these ids."""
        return list(map(str, self.tokenizer.convert_ids_to_tokens(list(ids))))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the tokenizer's files into a folder of their own."""
        self.tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
        return {}

    @classmethod
    def load(cls, folder: Path, options: Mapping[str, Any]) -> TransformersWords:
        """Read the tokenizer's files; nothing is downloaded."""
        return cls(_read_transformers(folder))


class OpenClipWords(Words):
    """open_clip's `SimpleTokenizer`, saved by its options: the vocabulary comes with open_clip."""

    kind = "open_clip"
    options = ("clean", "additional_special_tokens", "context_length")

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pad_id = 0
        self.special_ids = frozenset({tokenizer.sot_token_id, tokenizer.eot_token_id})

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return each sentence's ids, whole, start and end included."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        return [[start, *self.tokenizer.encode(sentence), end] for sentence in sentences]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of the vocabulary that have these ids."""
        return [self.tokenizer.decoder[id] for id in ids]

    def save(self, folder: Path) -> dict[str, Any]:
        """Return the tokenizer's options; nothing is written."""
        extra = list(self.tokenizer.encoder)[OPEN_CLIP_VOCABULARY:]
        options = {
            "clean": _cleaning_of(self.tokenizer),
            "additional_special_tokens": extra,
            "context_length": self.tokenizer.context_length,
        }
        if self.load(folder, options).tokenizer.encoder != self.tokenizer.encoder:
            raise ValueError(
                "this SimpleTokenizer has a vocabulary of its own (bpe_path), which cannot be "
                "saved by name; use a tokenizer of transformers, which is saved whole"
            )
        return options

    @classmethod
    def load(cls, folder: Path, options: Mapping[str, Any]) -> OpenClipWords:
        """Build the tokenizer from its options."""
        from open_clip.tokenizer import SimpleTokenizer

        return cls(SimpleTokenizer(**options))


class OpenClipTransformersWords(TransformersWords):
    """open_clip's `HFTokenizer`: a tokenizer of transformers behind open_clip's cleaning."""

    kind = "open_clip_transformers"
    options = ("clean", "strip_sep_token", "context_length")

    def __init__(self, tokenizer: Any) -> None:
        if getattr(tokenizer, "tokenizer_mode", ""):
            raise ValueError(
                f"open_clip's tokenizer mode {tokenizer.tokenizer_mode!r} puts its class token "
                f"behind the padding, which is not supported; pass another tokenizer"
            )
        super().__init__(tokenizer.tokenizer)
        self.wrapper = tokenizer

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return each sentence's ids after open_clip's cleaning."""
        rows = super().encode([self.wrapper.clean_fn(sentence) for sentence in sentences])
        if not self.wrapper.strip_sep_token:
            return rows
        return [[id for id in ids if id != self.tokenizer.sep_token_id] for ids in rows]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the inner tokenizer's files and return the wrapper's options."""
        super().save(folder)
        return {
            "clean": _cleaning_of(self.wrapper),
            "strip_sep_token": self.wrapper.strip_sep_token,
            "context_length": self.wrapper.context_length,
        }

    @classmethod
    def load(cls, folder: Path, options: Mapping[str, Any]) -> OpenClipTransformersWords:
        """Read the inner tokenizer and wrap it."""
        from open_clip.tokenizer import HFTokenizer

        path = str(folder / TOKENIZER_FOLDER)
        return cls(HFTokenizer(path, **OWN_FILES_ALONE, **options))


KINDS: dict[str, type[Words]] = {
    kind.kind: kind for kind in (TransformersWords, OpenClipWords, OpenClipTransformersWords)
}


def find_words(tokenizer: Any) -> Words:
    """Wrap a tokenizer of transformers or open_clip.

    Raises:
        TypeError: it is of neither library.
    """
    if isinstance(tokenizer, Words):
        return tokenizer
    names = {cls.__name__ for cls in type(tokenizer).__mro__}
    if names & {"PreTrainedTokenizerBase"}:
        return TransformersWords(tokenizer)
    if names & {"SimpleTokenizer"}:
        return OpenClipWords(tokenizer)
    if names & {"HFTokenizer"}:
        return OpenClipTransformersWords(tokenizer)
    raise TypeError(
        f"expected a tokenizer of transformers, or of open_clip (open_clip.get_tokenizer(name)); "
        f"found {type(tokenizer).__name__}"
    )


def load_words(folder: Path, kind: str, options: Mapping[str, Any]) -> Words:
    """Read a saved tokenizer.

    Raises:
        ValueError: the kind or an option is unknown, the files do not make a tokenizer, or they
            want code of their own to be run, which is not done.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of tokenizer {kind!r} in {folder}; known: {sorted(KINDS)}")
    if unknown := sorted(set(options) - set(KINDS[kind].options)):
        raise ValueError(
            f"the tokenizer in {folder} has unknown options {unknown}; known: {KINDS[kind].options}"
        )
    return KINDS[kind].load(folder, options)


def _read_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = folder / TOKENIZER_FOLDER
    if not path.is_dir():
        raise ValueError(f"{folder} lacks its tokenizer: expected the folder {path}")
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    # transformers 5 saves tokenizers that are nothing but their file under a name that 4 lacks.
    bare = config.get("tokenizer_class") == "TokenizersBackend"
    kind = PreTrainedTokenizerFast if bare else AutoTokenizer
    return kind.from_pretrained(str(path), **OWN_FILES_ALONE)


def _cleaning_of(tokenizer: Any) -> str:
    """Return the name of an open_clip tokenizer's cleaning; it keeps only the function."""
    from open_clip.tokenizer import get_clean_fn

    for name in ("lower", "whitespace", "canonicalize"):
        if get_clean_fn(name) is tokenizer.clean_fn:
            return name
    raise ValueError("open_clip's tokenizer has a cleaning function without a name to save it by")
