"""The unpickler that builds plain data only."""

from __future__ import annotations

import pickle

import pytest
from helpers_coco import write_pictures

from bridger.data import RefCOCO
from bridger.data.safe_pickle import load_plain


def test_plain_pickles_of_every_protocol_are_read(tmp_path):
    data = {"a": [1, 2.5, None, True, "é", (1,), 2**70], "b": {"c": {1, 2}, "d": frozenset("x")}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.p").write_bytes(pickle.dumps(data, protocol))
        assert load_plain(tmp_path / "x.p") == data


def test_python_2_strings_are_read(tmp_path):
    # What Python 2 wrote for ["caf\xc3\xa9", u"\xe9"] and for ["caf\xe9"], protocol 2.
    (tmp_path / "u.p").write_bytes(b"\x80\x02]q\x00(U\x05caf\xc3\xa9X\x02\x00\x00\x00\xc3\xa9e.")
    assert load_plain(tmp_path / "u.p") == ["café", "é"]
    (tmp_path / "l.p").write_bytes(b"\x80\x02]q\x00U\x04caf\xe9a.")
    assert load_plain(tmp_path / "l.p") == ["café"]
    # A byte that is not UTF-8 changes nothing but itself, in its own string and in others.
    (tmp_path / "m.p").write_bytes(
        b"\x80\x02](U\x05caf\xc3\xa9U\x04caf\xe9U\x07\xc3\xa9 \xe9 \xe9\xe8U\x01be."
    )
    assert load_plain(tmp_path / "m.p") == ["café", "café", "é é éè", "b"]
    (tmp_path / "text.p").write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\naS'caf\\xe9'\np2\na.")
    assert load_plain(tmp_path / "text.p") == ["café", "café"]


@pytest.mark.parametrize(
    ("end", "message"),
    [(b"", "not a whole pickle"), (b"cposix\nsystem\n.", r"posix\.system"), (b"X", "truncated")],
)
def test_a_failure_after_a_byte_that_is_not_utf_8_is_told_with_the_file(tmp_path, end, message):
    (tmp_path / "x.p").write_bytes(b"\x80\x02]U\x04caf\xe9a" + end)
    with pytest.raises(pickle.UnpicklingError, match=rf"x\.p: .*{message}"):
        load_plain(tmp_path / "x.p")
    # Words of Python 3 that are not UTF-8 are broken.
    (tmp_path / "x.p").write_bytes(b"\x80\x02X\x01\x00\x00\x00\xff.")
    with pytest.raises(pickle.UnpicklingError, match=r"x\.p: .*decode"):
        load_plain(tmp_path / "x.p")


def test_a_pickle_is_not_read_whole_before_it_is_refused(tmp_path):
    import tracemalloc

    # Sparse: 2 GiB of zeros after a few opcodes, of which the second asks for a function.
    with open(tmp_path / "huge.p", "wb") as file:
        file.write(b"\x80\x02cposix\nsystem\n")
        file.truncate(2 * 2**30)
    tracemalloc.start()
    with pytest.raises(pickle.UnpicklingError, match=r"huge\.p: .*posix\.system"):
        load_plain(tmp_path / "huge.p")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path, protocol):
    touched = tmp_path / "touched"
    (tmp_path / "evil.p").write_bytes(pickle.dumps([{"x": Evil(touched)}], protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"evil\.p: .*asks for \w+\.open"):
        load_plain(tmp_path / "evil.p")
    assert not touched.exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02]q", b"hello", b"\x80\x02cos\nsystem\n.", b"\x80\x02U\x01aQ.", b"R."]
)
def test_broken_and_foreign_pickles_are_refused(tmp_path, data):
    (tmp_path / "x.p").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match=r"x\.p"):
        load_plain(tmp_path / "x.p")


def test_a_malicious_refs_file_is_refused(tmp_path):
    (tmp_path / "refcoco").mkdir()
    write_pictures(tmp_path / "images" / "train2014", [1])
    (tmp_path / "refcoco" / "instances.json").write_text("{}")
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(Evil(tmp_path / "t")))
    with pytest.raises(pickle.UnpicklingError, match=r"refs\(unc\)\.p: .*open"):
        RefCOCO(tmp_path, "train")
    assert not (tmp_path / "t").exists()
