"""JSON files that bridger writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bridger._json import read_json, save_json


def test_what_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    values = {
        "loss": float("nan"),
        "best": [float("inf"), 0.5, np.float64("nan")],
        "of": (1, "nan"),
    }
    save_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == {
        "loss": None,
        "best": [None, 0.5, None],
        "of": [1, "nan"],
    }


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    save_json(file, {"a": 1})
    with pytest.raises(TypeError):
        save_json(file, {"a": 2, "b": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
