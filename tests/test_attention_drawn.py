"""Attention as heat over the picture: at its place, under its word, on a scale of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers_words import word_tokenizer
from PIL import Image
from test_attention_maps import picture

from bridger.predictions import Attention, Prediction, StageAttention
from bridger.warp import Placement
from bridger.words import find_words


def attention_of(weights: npt.NDArray[np.float32], size: tuple[int, int], **more: Any) -> Attention:
    """Attention of three tokens at stages 0 and 2 that looked as given."""
    stages = tuple(StageAttention(stage, weights, None) for stage in (0, 2))
    made = Attention(("<s>", "ow", "l</w>"), stages, Placement.fit(size, (128, 128)), 16)
    return replace(made, **more)


def peaked(row: int, column: int) -> npt.NDArray[np.float32]:
    weights = np.full((3, 8, 8), 1 / 64, dtype=np.float32)
    weights[1:] = 0
    weights[1:, row, column] = 1
    return weights


def test_heat_lies_where_the_cell_lies_in_the_picture() -> None:
    # 200 x 400 lies in the rows 32 to 95 of the input, at 0.32 of its size.
    attention = attention_of(peaked(3, 6), (200, 400))
    heat = attention.heat("owl")
    assert heat.shape == (200, 400)
    rows, columns = np.nonzero(heat == heat.max())
    assert abs(rows.mean() - (3.5 * 16 - 32) / 0.32) < 4
    assert abs(columns.mean() - 6.5 * 16 / 0.32) < 4
    assert 50 < heat.max() <= 64  # of 64 cells one has all
    np.testing.assert_allclose(attention.heat(0)[8:-8, 8:-8], 1, rtol=1e-5)
    # The same reading from the picture's side: there the word has all of 3 tokens' attention.
    to_text = np.moveaxis(peaked(3, 6), 0, -1)
    to_text = np.divide(to_text, to_text.sum(axis=-1, keepdims=True))
    stages = (StageAttention(0, None, to_text),)
    back = replace(attention, stages=stages).heat("owl", direction="picture_to_text")
    assert np.argmax(back) == np.argmax(heat) and 1.3 < back.max() <= 1.5
    assert np.abs(back[:60, :60]).max() < 1e-6
    uneven = replace(attention, cell=24)  # cells that reach over the input's edge
    assert uneven.heat("owl").shape == (200, 400)


def test_words_are_found_among_tokens() -> None:
    def find(tokens: Sequence[str], word: str | int) -> list[int]:
        return attention_of(peaked(0, 0), (9, 9), tokens=tuple(tokens)).find(word)

    assert find(["<s>", "the</w>", "um", "brella</w>", "</s>"], "umbrella") == [2, 3]
    assert find(["[CLS]", "um", "##br", "##ella", "[SEP]"], "Umbrella") == [1, 2, 3]
    assert find(["\u2581the", "\u2581", "owl", "</s>"], "the owl") == [0, 2]
    assert find(["a", "owl", "owl"], "owl") == [1] and find(["a", "b"], -1) == [1]
    assert find(["\u0120left", "\u0120owl"], "left owl") == [0, 1]
    for word in ("cat", "", "umb"):
        with pytest.raises(ValueError, match="no tokens write"):
            find(["um", "brella"], word)
    with pytest.raises(IndexError, match="3 tokens, and none of number 3"):
        find("abc", 3)


def test_tokenizers_write_their_tokens() -> None:
    words = find_words(word_tokenizer())
    assert words.tokens(words.encode(["the owl"])[0]) == ["[SOS]", "the", "owl", "[EOS]"]
    from open_clip.tokenizer import SimpleTokenizer

    clips = find_words(SimpleTokenizer())
    written = clips.tokens(clips.encode(["umbrellas"])[0])
    assert "".join(written[1:-1]) == "umbrellas</w>"
    assert written[0] == "<start_of_text>" and written[-1] == "<end_of_text>"


def result(size: tuple[int, int] = (200, 400)) -> Prediction:
    masks = np.zeros((1, *size), dtype=np.float32)
    return replace(
        Prediction.from_probabilities(masks), attention=(attention_of(peaked(3, 6), size),)
    )


def test_an_overlay_colours_what_is_more_than_even() -> None:
    grey = Image.new("L", (400, 200), 120).convert("RGB")
    drawn = np.asarray(result().attention_overlay(grey, "owl")).astype(int)
    assert drawn.shape[1] == 512 and drawn.shape[0] > 256
    colourful = drawn[:256].max(axis=-1) - drawn[:256].min(axis=-1)
    at = (round((3.5 * 16 - 32) / 0.32 * 1.28), round(6.5 * 16 / 0.32 * 1.28))
    assert colourful[at] > 60 and colourful[200, 60] == 0
    even = np.asarray(result().attention_overlay(grey, 0, stage=0)).astype(int)[:256]
    assert (even.max(axis=-1) == even.min(axis=-1)).all()


def test_a_sheet_has_a_row_for_each_stage_and_a_column_for_each_token() -> None:
    grey = Image.new("RGB", (400, 200))
    one_way = result().attention_sheet(grey, least_side=100)
    assert one_way.width > 3 * 100 and 2 * 50 < one_way.height < 4 * 50
    both = attention_of(peaked(3, 6), (200, 400))
    to_text = np.moveaxis(peaked(3, 6), 0, -1)
    stages = tuple(replace(stage, picture_to_text=to_text) for stage in both.stages)
    sheet = replace(result(), attention=(replace(both, stages=stages),)).attention_sheet(
        grey, least_side=100
    )
    assert sheet.width == one_way.width and sheet.height > one_way.height + 2 * 50


def test_what_cannot_be_drawn_is_refused() -> None:
    plain = Prediction.from_probabilities(np.zeros((1, 4, 4), dtype=np.float32))
    grey = Image.new("RGB", (400, 200))
    with pytest.raises(ValueError, match=r"predict\(..., return_attention=True\)"):
        plain.attention_overlay(grey, "owl")
    with pytest.raises(ValueError, match="no sentence of number 1"):
        result().attention_overlay(grey, "owl", expression=1)
    with pytest.raises(ValueError, match=r"at stage 1: these Bridgers have it at stages \[0, 2\]"):
        result().attention_overlay(grey, "owl", stage=1)
    with pytest.raises(ValueError, match="from picture to text: these Bridgers have it at none"):
        result().attention_overlay(grey, "owl", direction="picture_to_text")
    with pytest.raises(ValueError, match="direction='to_text' is unknown"):
        result().attention_overlay(grey, "owl", direction="to_text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="400 x 200 pixels, this one has 4 x 4"):
        result().attention_sheet(Image.new("RGB", (4, 4)))


def test_the_command_line_draws_a_sheet(run: Callable[..., Any], tmp_path: Path) -> None:
    image = tmp_path / "picture.png"
    Image.fromarray(picture()).save(image)
    looks = tmp_path / "looks.png"
    code, out, err = run("predict", image, "the owl", "the dog", "--attention", looks)
    assert code == 0 and f"wrote {looks}" in out, err
    with Image.open(looks) as sheet:
        assert sheet.width > 4 * 160
    code, _, err = run("predict", tmp_path, "the owl", "--batch", "--attention", looks)
    assert code == 1 and "--attention draws one picture" in err
