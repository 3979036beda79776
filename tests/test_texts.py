"""Class names as text: phrases, the tokens that mention them, and chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_words import word_tokenizer
from test_processing import MEAN, STD
from torch import Tensor

from bridger.class_phrases import check_class_names
from bridger.features import Mentions
from bridger.processing import Processor
from bridger.texts import ClassPhrases, Texts
from bridger.tiny_clip import load_tiny_clip

CLASSES = ["dog", ("small red ball", "ball"), "owl", ("cat", "second cat"), "left"]
MODES = ["separate", "joint"]


@functools.cache
def simple_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def clip_tokenizer() -> Any:
    """A tokenizer of single letters in which unknown letters become the end, as CLIP has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [*"abcdefghijklmnopqrstuvwxyz,"]
    names = [*letters, *(f"{letter}</w>" for letter in letters), start, end]
    vocabulary = {name: id for id, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token=end, end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.BPEDecoder("</w>")
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(name, vocabulary[name]) for name in (start, end)],
    )
    special = dict(bos_token=start, eos_token=end, unk_token=end, pad_token=end)
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def without_start() -> Any:
    """A tokenizer as T5 has it: words [EOS]."""
    from tokenizers import processors

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", 3)]
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "words": word_tokenizer,
    "no start": without_start,
    "open_clip": simple_tokenizer,
    "unknown is the end": clip_tokenizer,
    "tiny": lambda: load_tiny_clip()[2].words,
}


def processor(tokenizer: Any = None, max_length: int = 12) -> Processor:
    return Processor(32, MEAN, STD, tokenizer or word_tokenizer(), max_length)


def decoded(made: Processor, ids: Tensor) -> str:
    """What ids say, without blanks and the marks of word pieces."""
    words: Any = made.words
    return str(words.tokenizer.decode(ids.tolist())).replace("##", "").replace(" ", "")


def named(made: Processor, texts: Texts) -> list[tuple[int, str]]:
    """The class and the words of each mention."""
    assert texts.mentions is not None
    m = texts.mentions
    return [
        (int(k), decoded(made, texts.input_ids[row][tokens]))
        for row, k, tokens in zip(m.rows, m.classes, m.tokens[0], strict=True)
    ]


# Phrases and mentions.


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("mode", MODES)
def test_mentions_are_the_tokens_of_each_phrase(tokenizer: str, mode: str) -> None:
    made = processor(TOKENIZERS[tokenizer](), 60)
    texts = Texts.of_classes(made, CLASSES, mode, ("{}", "the {} on a left"))
    expected = [
        (k, template.format(name).replace(" ", ""))
        for k, entry in enumerate(CLASSES)
        for name in ([entry] if isinstance(entry, str) else entry)
        for template in ("{}", "the {} on a left")
    ]
    assert named(made, texts) == expected
    assert texts.names == ("dog", "small red ball", "owl", "cat", "left")
    assert texts.mentions is not None and texts.mentions.num_classes == 5
    assert len(texts.input_ids) < len(expected) if mode == "joint" else len(expected)
    for ids, mask in zip(texts.input_ids, texts.attention_mask, strict=True):
        # What stands around all phrases stands around every sequence.
        whole = made.words.encode(["dog"])[0]
        start = [id for id in whole[:1] if id in made.words.special_ids]
        row = ids[mask].tolist()
        assert row[: len(start)] == start and row[-1] == whole[-1]
        assert not set(row[len(start) : -1]) & made.words.special_ids


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_one_phrase_is_the_same_in_both_modes(tokenizer: str) -> None:
    made = processor(TOKENIZERS[tokenizer](), 60)
    separate, joint = (Texts.of_classes(made, ["small red ball"], mode) for mode in MODES)
    assert separate.mentions is not None and joint.mentions is not None
    assert torch.equal(separate.input_ids, joint.input_ids)
    assert torch.equal(separate.input_ids, made.text("small red ball")["input_ids"])
    assert torch.equal(separate.attention_mask, joint.attention_mask)
    for name in ("rows", "classes", "tokens"):
        assert torch.equal(getattr(separate.mentions, name), getattr(joint.mentions, name))


def comma_tokenizer() -> Any:
    """The tokenizer of words with a comma, 18."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([","])
    return tokenizer


def test_names_are_packed_with_commas_into_few_sequences() -> None:
    made = processor(comma_tokenizer(), 9)  # seven tokens beside start and end
    texts = Texts.of_classes(made, ["dog", ("red ball", "ball"), "owl", "cat", "left"], "joint")
    assert texts.input_ids.tolist() == [
        [2, 6, 18, 13, 9, 18, 9, 3],  # "owl" would need two tokens more, and there is one
        [2, 8, 18, 7, 18, 11, 3, 0],
    ]
    assert texts.mentions is not None
    assert texts.mentions.rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert texts.mentions.classes.tolist() == [0, 1, 1, 2, 3, 4]
    full = Texts.of_classes(processor(comma_tokenizer(), 5), ["dog", "cat", "owl"], "joint")
    assert full.input_ids.tolist() == [[2, 6, 18, 7, 3], [2, 8, 3, 0, 0]]


def test_what_separates_names_where_a_tokenizer_has_no_comma() -> None:
    made = load_tiny_clip()[2]  # drops all marks
    texts = Texts.of_classes(made, ["dog", "cat"], "joint")
    assert torch.equal(texts.input_ids, made.text("dog and cat")["input_ids"])
    assert [name for _, name in named(made, texts)] == ["dog", "cat"]
    semicolon = word_tokenizer()
    semicolon.add_tokens([";"])
    for tokenizer, between in ((semicolon, [18]), (word_tokenizer(), [])):
        texts = Texts.of_classes(processor(tokenizer), ["dog", "cat"], "joint")
        assert texts.input_ids.tolist() == [[2, 6, *between, 7, 3]]


@pytest.mark.parametrize("mode", MODES)
def test_long_phrases_are_cut_with_a_warning(mode: str) -> None:
    with pytest.warns(UserWarning, match="1 more than the limit of 5"):
        texts = Texts.of_classes(processor(max_length=5), ["the small red ball"], mode)
    assert texts.input_ids.tolist() == [[2, 4, 14, 13, 3]]
    assert texts.mentions is not None
    assert texts.mentions.tokens.tolist() == [[[False, True, True, True, False]]]


def test_an_end_that_also_stands_for_the_unknown_is_kept_when_cut() -> None:
    made = processor(clip_tokenizer(), 6)
    with pytest.warns(UserWarning, match="cut off"):
        assert made.text("a long sentence")["input_ids"][0, -1] == made.words.encode(["a"])[0][-1]


BAD_NAMES: dict[str, tuple[Any, type[Exception], str]] = {
    "no list": ("dog", TypeError, "a list of class names, found 'dog'"),
    "nothing": ([], ValueError, "at least one class name"),
    "empty": (["dog", ""], ValueError, "class number 1 has an empty name: ''"),
    "blank": (["dog", " \n"], ValueError, "class number 1 has an empty name"),
    "no names": (["dog", ()], ValueError, r"class number 1 has an empty name: \(\)"),
    "blank synonym": ([("dog", " ")], ValueError, "class number 0 has an empty name"),
    "number": (["dog", 3], TypeError, "class number 1 is 3"),
    "number as synonym": ([("dog", 3)], TypeError, "class number 0 is"),
    "twice": (["dog", "cat", "dog"], ValueError, "'dog' stands twice.*number 0.*number 2"),
    "twice but for the case": (["dog", " Dog"], ValueError, "' Dog' stands twice"),
    "another's name": (["dog", ("cat", "dog")], ValueError, "'dog', a synonym of the class 'cat'"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names(case: str) -> None:
    classes, error, message = BAD_NAMES[case]
    with pytest.raises(error, match=message):
        check_class_names(classes)
    with pytest.raises(error, match=message):
        Texts.of_classes(processor(), classes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("classes", "length"),
    [(["ball", "drum", "horse"], 12), (["the red ball", "the red dog"], 4)],
    ids=["unknown words", "cut"],
)
@pytest.mark.filterwarnings("ignore:.*cut off")
def test_classes_of_the_same_tokens_are_refused(classes: list[str], length: int, mode: str) -> None:
    names = f"{classes[-2]!r} and {classes[-1]!r} are the same tokens"
    with pytest.raises(ValueError, match=names):
        Texts.of_classes(processor(max_length=length), classes, mode)


def test_marks_that_a_tokenizer_drops_name_no_class() -> None:
    with pytest.raises(ValueError, match="'dog' and 'dog!' are the same tokens"):
        ClassPhrases(load_tiny_clip()[2], ["cat", "dog", "dog!"])


def test_what_is_said_twice_counts_once() -> None:
    made = processor()
    once = ClassPhrases(made, [("dog", "red dog")], ("{}", "the {}"))
    twice = ClassPhrases(made, [("dog", "red dog", "dog", "Red  dog")], ("{}", "the {}", "{}"))
    assert twice.phrases == once.phrases and twice.count(0) == 4


def test_two_classes_may_share_a_synonym() -> None:
    check_class_names([("cat", "pet"), ("dog", "pet", "dog")])


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ("a {}", TypeError, "a list of templates"),
        ([], ValueError, "at least one template"),
        (["a dog"], ValueError, "'a dog' must hold {} once"),
        (["{} and {}"], ValueError, "must hold {} once"),
        ([3], TypeError, "strings all"),
    ],
)
def test_bad_templates(templates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Texts.of_classes(processor(), ["dog"], templates=templates)


def test_names_and_templates_may_hold_braces() -> None:
    made = processor(simple_tokenizer(), 20)
    texts = Texts.of_classes(made, ["{dog}"], templates=["{a} {}"])
    assert named(made, texts) == [(0, "{a}{dog}")]


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"mode of text 'joined' is unknown.*joint"):
        Texts.of_classes(processor(), ["dog"], "joined")
    with pytest.raises(ValueError, match=r"3 phrases of the class 'dog' take 5 tokens.*separate"):
        Texts.of_classes(processor(comma_tokenizer(), 6), ["cat", ("dog", "owl", "left")], "joint")
    with pytest.raises(ValueError, match="holds no word"):
        Texts.of_classes(processor(), ["[SOS]"])


def test_a_batch_of_lists() -> None:
    made = processor()
    phrases = ClassPhrases(made, CLASSES, ("{}", "the {}"))
    assert [phrases.count(k) for k in range(5)] == [2, 4, 2, 4, 2]
    batch = phrases.batch([[(1, 3), (0, 0)], [(4, 1)]])
    rows = made.text(["the ball", "dog", "the left"])
    assert torch.equal(batch["input_ids"].flatten(0, 1)[:3], rows["input_ids"])
    assert torch.equal(batch["attention_mask"].flatten(0, 1)[:3], rows["attention_mask"])
    assert batch["expression_mask"].tolist() == [[True, True], [True, False]]
    assert torch.equal(batch["input_ids"][1, 1], batch["input_ids"][1, 0])
    mentions = batch["mentions"]
    assert mentions.rows.tolist() == mentions.classes.tolist() == [0, 1]
    found = [
        [decoded(made, r[t]) for r, t in zip(*b, strict=True)]
        for b in zip(batch["input_ids"], mentions.tokens, strict=True)
    ]
    assert found == [["theball", "dog"], ["theleft", "theleft"]]
    assert "expression_mask" not in phrases.batch([[(0, 0)], [(1, 0)]])
    for nothing in ([], [[(0, 0)], []]):
        with pytest.raises(ValueError, match="at least one class"):
            phrases.batch(nothing)


def test_joint_phrases_of_some_classes() -> None:
    made = processor(comma_tokenizer())
    phrases = ClassPhrases(made, CLASSES, ("{}", "the {}"))
    words, mentions = phrases.joint([(2, 1), (0, 0)])
    texts = Texts(("owl", "dog"), words["input_ids"], words["attention_mask"], mentions)
    assert texts.input_ids.tolist() == [[2, 4, 8, 18, 6, 3]] and mentions.num_classes == 2
    assert named(made, texts) == [(0, "theowl"), (1, "dog")]


# Chunks.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 100])
def test_chunks_hold_all_mentions_in_order(mode: str, rows: int) -> None:
    made = processor(max_length=16)
    texts = Texts.of_classes(made, CLASSES, mode, ("{}", "the {}"))
    chunks = texts.chunks(rows)
    assert sum((chunk.names for chunk in chunks), ()) == texts.names
    found, first = [], 0
    for chunk in chunks:
        assert chunk.mentions is not None
        assert len(chunk.names) == chunk.mentions.num_classes
        assert sorted(set(chunk.mentions.rows.tolist())) == list(range(len(chunk.input_ids)))
        assert sorted(set(chunk.mentions.classes.tolist())) == list(range(len(chunk.names)))
        whole = mode == "separate" and len(chunk.names) == 1
        assert len(chunk.input_ids) <= rows or whole or len(chunk.input_ids) == 1
        found += [(first + k, words) for k, words in named(made, chunk)]
        first += len(chunk.names)
    assert found == named(made, texts)
    assert sum(len(chunk.input_ids) for chunk in chunks) == len(texts.input_ids)


def test_classes_that_share_a_sequence_stay_together() -> None:
    tokens = torch.ones(1, 5, 3, dtype=torch.bool)
    rows, classes = torch.tensor([2, 0, 1, 0, 3]), torch.tensor([0, 1, 2, 3, 4])
    ids = torch.arange(4)[:, None].expand(4, 3)
    texts = Texts(tuple("abcde"), ids, ids >= 0, Mentions(rows, classes, tokens, 5))
    chunks = texts.chunks(1)
    assert [chunk.names for chunk in chunks] == [("a",), ("b", "c", "d"), ("e",)]
    assert [chunk.input_ids[:, 0].tolist() for chunk in chunks] == [[2], [0, 1], [3]]
    middle = chunks[1].mentions
    assert middle is not None
    assert middle.rows.tolist() == [0, 1, 0] and middle.classes.tolist() == [0, 1, 2]


def test_sentences_are_chunked_too() -> None:
    texts = Texts.of_sentences(processor(), ["dog", "the cat", "owl"])
    assert [chunk.names for chunk in texts.chunks(2)] == [("dog", "the cat"), ("owl",)]
    with pytest.raises(ValueError, match="at least one sequence, got 0"):
        texts.chunks(0)


@pytest.mark.parametrize(
    ("rows", "classes", "shape", "message"),
    [
        ([0, 1, 2], [0, 1], (1, 2, 4), r"rows \(M,\).* got \(3,\), \(2,\), \(1, 2, 4\)"),
        ([0, 1], [0, 1], (2, 4), r"tokens \(1 or B, M, L\), got .*\(2, 4\)"),
        ([0, 1], [0, 1], (1, 3, 4), "rows"),
        ([0, 1], [0, 2], (1, 2, 4), r"from 0 to 1 must be mentioned.*got mentions of \[0, 2\]"),
        ([0, 1], [-1, 0], (1, 2, 4), r"got mentions of \[-1, 0\]"),
        ([0, 1], [1, 1], (1, 2, 4), r"got mentions of \[1\]"),
        ([0, -1], [0, 1], (1, 2, 4), r"begin with 0, got \[0, -1\]"),
    ],
)
def test_bad_mentions(
    rows: list[int], classes: list[int], shape: tuple[int, ...], message: str
) -> None:
    tokens = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        Mentions(torch.tensor(rows), torch.tensor(classes), tokens, 2)


def test_mentions_of_texts_that_are_not_there() -> None:
    tokens = torch.ones(1, 2, 4, dtype=torch.bool)
    mentions = Mentions(torch.tensor([0, 3]), torch.tensor([0, 1]), tokens, 2)
    assert mentions.fitted(2, 4, 6).tokens.shape == (1, 2, 6)
    for given in ((2, 3, 4), (2, 4, 3)):
        with pytest.raises(ValueError, match="do not fit 2 images"):
            mentions.fitted(*given)
