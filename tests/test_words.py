"""Words to ids: what is cut, what is refused, and how tokenizers are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_towers import fill, hf_clip, open_clip_vit
from helpers_words import word_tokenizer
from test_processing import MEAN, STD

from bridger.processing import Processor


def processor(tokenizer: Any = None, max_length: int = 8, **options: Any) -> Processor:
    tokenizer = word_tokenizer(**options) if tokenizer is None else tokenizer
    return Processor(40, MEAN, STD, tokenizer, max_length)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_on_the_right(side: str) -> None:
    words = processor(padding_side=side).text(["the dog", "Owl"])
    assert words["input_ids"].tolist() == [[2, 4, 6, 3], [2, 8, 3, 0]]
    assert words["attention_mask"].tolist() == [[True] * 4, [True, True, True, False]]


def test_one_sentence_is_one_row() -> None:
    assert processor().text("the dog")["input_ids"].shape == (1, 4)


def test_long_sentence_is_cut_with_a_warning_and_still_ends() -> None:
    with pytest.warns(UserWarning, match="has 9 tokens, 4 more than the limit of 5"):
        words = processor(max_length=5).text("the small red ball on the left")
    assert words["input_ids"].tolist() == [[2, 4, 14, 13, 3]]


def test_a_sentence_at_the_limit_is_not_cut(recwarn: pytest.WarningsRecorder) -> None:
    assert processor(max_length=5).text("the small ball")["input_ids"][0, -1] == 3
    assert not [w for w in recwarn if w.category is UserWarning]


def test_unknown_words_are_words() -> None:
    assert processor().text("quixotic")["input_ids"].tolist() == [[2, 1, 3]]


@pytest.mark.parametrize(
    ("sentences", "error", "words"),
    [
        ("", ValueError, r"sentence number 0 is empty \(''\)"),
        (["the dog", "  \n"], ValueError, "sentence number 1 is empty"),
        ("[SOS]", ValueError, "holds no word"),
        ([], ValueError, "at least one sentence"),
        (["the dog", 3], TypeError, "number 1 is 3"),
        ([["the dog"]], TypeError, "number 0 is"),
    ],
)
def test_what_is_no_sentence(sentences: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        processor().text(sentences)


def test_open_clip_rows_are_open_clips_own() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    sentences = ["the dog on the left", "an Owl!"]
    words = processor(tokenizer, 77).text(sentences)
    own = tokenizer(sentences)
    assert torch.equal(words["input_ids"], own[:, : words["input_ids"].shape[1]])
    with pytest.warns(UserWarning, match="limit of 4"):
        cut = processor(tokenizer, 4).text("the dog on the left")["input_ids"]
    assert torch.equal(cut, tokenizer("the dog on the left", context_length=4))


def hf_wrapper(folder: Path, **options: Any) -> Any:
    from open_clip.tokenizer import HFTokenizer

    word_tokenizer(sep_token="[EOS]").save_pretrained(folder)
    return HFTokenizer(str(folder), context_length=8, **options)


@pytest.mark.parametrize("kind", ["transformers", "simple", "clean", "wrapped", "stripped"])
def test_processor_survives_saving(kind: str, tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = {
        "transformers": word_tokenizer,
        "simple": SimpleTokenizer,
        "clean": lambda: SimpleTokenizer(clean="canonicalize", additional_special_tokens=["<m>"]),
        "wrapped": lambda: hf_wrapper(tmp_path / "hf"),
        "stripped": lambda: hf_wrapper(tmp_path / "hf", clean="lower", strip_sep_token=True),
    }[kind]()
    before = Processor((32, 48), MEAN, STD, tokenizer, 7)
    before.save(tmp_path / "saved")
    before.save(tmp_path / "saved")  # again, over what is there
    after = Processor.load(tmp_path / "saved")
    assert after.to_dict() == before.to_dict()
    assert type(after.words) is type(before.words)
    sentences = ["The dog!  ", "owl on the left"]
    for key, value in before.text(sentences).items():
        assert torch.equal(after.text(sentences)[key], value)
    assert not [p.name for p in (tmp_path / "saved").iterdir() if p.name.startswith(".")]


def test_tokenizers_saved_by_transformers_5_load_under_4(tmp_path: Path) -> None:
    processor().save(tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    saved = json.loads(config.read_text())
    assert saved["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")
    config.write_text(json.dumps({**saved, "tokenizer_class": "TokenizersBackend"}))
    ids = Processor.load(tmp_path).text("the dog")["input_ids"]
    assert ids.tolist() == [[2, 4, 6, 3]]


def test_stripped_separator_leaves_no_id(tmp_path: Path) -> None:
    tokenizer = hf_wrapper(tmp_path, strip_sep_token=True)
    words = processor(tokenizer).text("the dog")
    assert words["input_ids"].tolist() == [[2, 4, 6]]


def test_loading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no processor"):
        Processor.load(tmp_path)
    processor().save(tmp_path)
    file = tmp_path / "processor.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not what Processor.save writes"):
        Processor.load(tmp_path)
    file.write_text(whole.replace('"max_length"', '"max_words"'))
    with pytest.raises(ValueError, match="must hold .*max_length.*, found .*max_words"):
        Processor.load(tmp_path)
    file.write_text(whole.replace('"transformers"', '"spacy"'))
    with pytest.raises(ValueError, match="unknown kind of tokenizer 'spacy'"):
        Processor.load(tmp_path)


def test_foreign_tokenizer() -> None:
    with pytest.raises(TypeError, match="expected a tokenizer of transformers, .* found function"):
        processor(lambda text: [1, 2, 3])


def test_vocabulary_of_its_own_is_not_saved_by_name(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    tokenizer.encoder = {**tokenizer.encoder, "the</w>": 7}
    with pytest.raises(ValueError, match="a vocabulary of its own"):
        processor(tokenizer).save(tmp_path)


# What can be known of given towers.


def test_inferred_for_open_clip() -> None:
    from open_clip.model import set_model_preprocess_cfg

    clip = open_clip_vit(text=dict(vocab_size=49408))
    assert Processor.infer(clip.visual, clip) is None  # nobody said how its pictures look
    set_model_preprocess_cfg(clip, {"size": 32, "mean": MEAN, "std": STD})
    for vision, text in ((clip.visual, clip), (clip, clip)):
        found = Processor.infer(vision, text)
        assert found is not None
        assert (found.image_size, found.max_length) == ((32, 32), 12)
        assert found.words.kind == "open_clip" and found.mean == MEAN


def test_not_inferred_for_another_vocabulary() -> None:
    from open_clip.model import set_model_preprocess_cfg

    clip = open_clip_vit()
    set_model_preprocess_cfg(clip, {"size": 32, "mean": MEAN, "std": STD})
    assert Processor.infer(clip.visual, clip) is None


def test_inferred_for_transformers_by_path(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    hf_clip().save_pretrained(tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path)
    assert Processor.infer(clip, clip) is None  # neither preprocessor nor tokenizer there
    CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    found = Processor.infer(clip, clip)
    assert found is not None
    assert (found.image_size, found.max_length) == ((32, 32), 12)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    assert Processor.infer(hf_clip(), hf_clip()) is None  # made from a config: no name


def test_inferred_for_the_embedded_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import json

    import open_clip

    from bridger import known_towers

    vision = dict(image_size=64, layers=[1, 1, 1, 1], width=16, head_width=16)
    text = dict(context_length=12, vocab_size=40, width=32, heads=2, layers=3)
    shapes = dict(embed_dim=24, vision_cfg=vision, text_cfg=text)
    config = {"model_cfg": shapes, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    word_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(known_towers, "EMBEDDED", tmp_path)
    clip = fill(open_clip.CLIP(**shapes))
    found = Processor.infer(clip.visual, clip)
    assert found is not None and found.image_size == (64, 64) and found.mean == MEAN
    assert found.text("the dog")["input_ids"].tolist() == [[2, 4, 6, 3]]
    assert Processor.infer(open_clip_vit().visual, clip) is None


def test_a_failing_guess_is_no_error() -> None:
    class Named(torch.nn.Module):
        name_or_path, config = "nobody/nowhere", object()

        @property
        def preprocess_cfg(self) -> Any:
            raise RuntimeError("not what it looks like")

    assert Processor.infer(Named(), Named()) is None


def test_inferred_for_the_shipped_pair() -> None:
    import bridger

    vision, text, own = bridger.load_tiny_clip()
    found = Processor.infer(vision, text)
    assert found is not None and found.to_dict() == own.to_dict()
    sentences = ["the owl on the left", "umbrella"]
    assert torch.equal(found.text(sentences)["input_ids"], own.text(sentences)["input_ids"])
