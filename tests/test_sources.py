import gzip
import itertools
import json
import lzma
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from backports import zstd
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.data.sources import text_files
from albert.data.sources.base import SourceError, read_documents
from albert.data.sources.parse import parse_source
from albert.data.sources.python_docs import clean, docstrings


def documents(spec, field="text", max_bad_share=0.0):
    return list(read_documents(parse_source(str(spec), field), max_bad_share))


TEXT = "First one.\nSecond \u00e9one.\n\n\n  \nThird.\n"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
)
def test_text_files(tmp_path, suffix, compress):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(TEXT.encode()))
    assert documents(path) == [["First one.", "Second \u00e9one."], ["Third."]]
    assert not parse_source(str(path), "text").paragraphs
    assert parse_source(f"text:{path}", "text").paragraphs


def test_folders_and_globs_in_name_order(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "notes.md").write_text("not a corpus")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress(b"c.txt\n"))
    assert documents(tmp_path) == [["a.txt"], ["b.txt"], ["c.txt"]]
    assert documents(f"{tmp_path}/[ab].txt") == [["a.txt"], ["b.txt"]]


def test_hidden_files_and_loops_of_links_are_left_out_and_told(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "notes.md").write_text("not a corpus")
    for name in (".ipynb_checkpoints", ".git", "sub"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "b.txt").write_text(f"{name}\n")
    (tmp_path / "sub" / "._b.txt").write_text("resource fork\n")
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    (tmp_path / "linked.txt").symlink_to(tmp_path / "sub" / "b.txt")
    (tmp_path / "twice").symlink_to(tmp_path / "sub")
    source = parse_source(str(tmp_path), "text")
    assert documents(tmp_path) == [["a"], ["sub"]]
    hidden, others, links = source.left_out
    assert hidden == "4 hidden (.git, .ipynb_checkpoints, ._b.txt, ...)"
    assert others == "1 of another kind (notes.md)"
    assert "that links lead to again" in links
    assert "linked.txt" in links or "linked.txt" in " ".join(source.left_out)
    # By name they are read.
    assert documents(tmp_path / ".git") == [[".git"]]
    globbed = parse_source(f"{tmp_path}/**/*.txt", "text")
    assert [f.rsplit("/", 1)[-1] for f in globbed.files] == ["a.txt", "b.txt"]


def test_of_a_folder_a_kind_takes_its_own_files(tmp_path):
    (tmp_path / "a.txt").write_text("Text.\n")
    (tmp_path / "meta.json").write_text('{"text": "An object."}')
    with pytest.raises(SourceError, match=r"from the names a\.txt, meta\.json: write"):
        parse_source(str(tmp_path), "text")
    for kind, found, other in (("lines", "a.txt", "meta.json"), ("jsonl", "meta.json", "a.txt")):
        source = parse_source(f"{kind}:{tmp_path}", "text")
        assert [Path(file).name for file in source.files] == [found]
        assert source.left_out == (f"1 of another kind ({other})",)
    with pytest.raises(SourceError, match=r"holds no \.parquet file"):
        parse_source(f"parquet:{tmp_path}", "text")


def test_an_empty_folder_says_what_is_hidden_in_it(tmp_path):
    (tmp_path / ".a.txt").write_text("a\n")
    with pytest.raises(SourceError, match=r"holds no .txt.*Left out: 1 hidden \(\.a\.txt\)"):
        parse_source(str(tmp_path), "text")


def test_square_brackets_that_are_in_names_stand_for_themselves(tmp_path):
    folder = tmp_path / "run [1]" / "b[ab]"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "[c].txt"):
        (folder / name).write_text(f"{name}\n")
    assert documents(folder) == [["[c].txt"], ["a.txt"], ["b.txt"]]
    assert documents(f"{folder}/*.txt") == documents(folder)
    assert documents(f"{folder}/[ab].txt") == [["a.txt"], ["b.txt"]]
    assert documents(f"{folder}/[c].txt") == [["[c].txt"]]
    assert documents(f"{tmp_path}/run [1]/*/a.*") == [["a.txt"]]
    (folder / "[ab].txt").write_text("literal\n")
    assert documents(f"{folder}/[ab].txt") == [["literal"]]


def test_addresses(tmp_path):
    (tmp_path / "a b.txt").write_text("a\n")
    for address in (f"file://{tmp_path}/a%20b.txt", f"lines:file://localhost{tmp_path}/a b.txt"):
        assert documents(address) == [["a"]]
    assert documents(f"file://{tmp_path}/*.txt") == [["a"]]
    for address in ("https://x.org/a.txt", "hdfs://node/a.txt", "HTTP://x.org/", "file://far/a"):
        for spec in (address, f"text:{address}"):
            with pytest.raises(SourceError, match="text is read from this machine's file systems"):
                parse_source(spec, "text")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_breaks_of_every_system(tmp_path, newline, monkeypatch):
    lines = ["One.", "Two.", "", " \t", "Three.", "bad \udcff", "Four.", ""] * 3
    path = tmp_path / "a.txt"
    path.write_bytes(newline.join(lines).encode(errors="surrogateescape"))
    expected = [["One.", "Two."], ["Three.", "Four."]] * 3
    for size in (*range(1, 12), 1 << 20):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", size)
        monkeypatch.setattr(text_files, "PART_BYTES", 3 * size)
        assert documents(path, max_bad_share=0.5) == expected, size
        with pytest.raises(SourceError, match=r"line 6: (.|\n)*line 14: (.|\n)*line 22: not UTF-8"):
            documents(path)
    records = [json.dumps({"text": text}) for text in ("One.", "Two.", "Three.")]
    (tmp_path / "a.jsonl").write_bytes(newline.join([*records, ""]).encode())
    for size in (5, 1 << 20):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", size)
        monkeypatch.setattr(text_files, "PART_BYTES", size)
        assert documents(tmp_path / "a.jsonl") == [["One."], ["Two."], ["Three."]]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One.\\nTwo."}\n\n{"text": "Three."}\n')
    assert documents(path) == [["One.", "Two."], ["Three."]]
    path.write_text('{"body": "x"}\n')
    assert documents(path, "body") == [["x"]]
    with pytest.raises(SourceError, match=r"a\.jsonl, line 1: no text in the field 'text'"):
        documents(path)
    path.write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(SourceError, match=r"a\.jsonl, line 2: not JSON"):
        documents(path)


def big_line(size):
    return b"x" * size


BAD_LINES = [
    (b"bad \xff byte", "not UTF-8 (byte 0xff at position 5)"),
    (b"nothing \x00 here", "a NUL byte at position 9"),
    (big_line(10_000_000), "longer than 1048576 bytes"),
    (big_line(40_000_000), "longer than 1048576 bytes"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=["utf-8", "nul", "10MB", "40MB"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_bad_line_is_left_out_and_named(tmp_path, line, reason, compress):
    path = tmp_path / ("a.txt" if compress is bytes else "a.txt.gz")
    path.write_bytes(compress(b"One.\n\nTwo.\n" + line + b"\nThree.\n\nFour.\n"))
    with pytest.raises(SourceError, match=re.escape(f"{path}, line 4: {reason}")):
        documents(path)
    with pytest.raises(SourceError, match="1 of 5 records are bad"):
        documents(path, max_bad_share=0.19)
    found = documents(path, max_bad_share=0.2)
    if len(line) < text_files.MAX_DOCUMENT_BYTES:
        assert found == [["One."], ["Two.", "Three."], ["Four."]]
    else:  # what is far too long for any document ends the one that it is in
        assert found == [["One."], ["Two."], ["Three."], ["Four."]]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"text": ', "not JSON"),
        (b'{"text": "bad \xff"}', "not UTF-8"),
        (b'{"text": "a \\u0000"}', "a NUL character at position 3"),
        (b'{"text": " \\n "}', "the field 'text' is empty"),
        (b'{"body": "x"}', "no text in the field 'text'"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"text": "a \\ud800 b"}', "half a surrogate pair at position 3"),
        (b'["x"]', "no text in the field 'text'"),
        (b'{"text": 3}', "no text in the field 'text'"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "' + big_line(20_000_000) + b'"}', "longer than 16777216 bytes"),
    ],
    ids=[
        "cut",
        "utf-8",
        "nul",
        "empty",
        "field",
        "digits",
        "surrogate",
        "list",
        "number",
        "deep",
        "20MB",
    ],
)
def test_a_bad_record_is_left_out_and_named(tmp_path, record, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "One."}\n' + record + b'\n{"text": "Two."}\n')
    with pytest.raises(SourceError, match=re.escape(f"{path}, line 2: {reason}")):
        documents(path)
    with pytest.raises(SourceError, match="1 of 3 records are bad"):
        documents(path, max_bad_share=0.33)
    assert documents(path, max_bad_share=0.34) == [["One."], ["Two."]]


def test_far_too_many_bad_records_stop_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("not JSON\n" * 200_000 + '{"text": "x"}\n' * 10**6)
    with pytest.raises(SourceError, match=r"a\.jsonl, line 1: not JSON(.|\n)*and \d+ more"):
        next(read_documents(parse_source(str(path), "text"), 0.001))


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
)
def test_a_cut_off_file_is_named(tmp_path, suffix, compress):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(("line of text %d\n" * 3000).encode())[:-20])
    words = r"a\.txt\.\w+, line \d+: damaged or cut off from here on"
    with pytest.raises(SourceError, match=words):
        documents(path)
    kept = [line for document in documents(path, max_bad_share=1.0) for line in document]
    assert kept == ["line of text %d"] * len(kept)


def test_what_a_cut_off_file_holds_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(map(str, rng.integers(0, 10**9, 20))) for _ in range(40_000)]
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(lines).encode())[:-2_000_000])
    found = documents(path, max_bad_share=0.7)
    assert 1000 < len(found) < 40_000
    assert [document[0] for document in found] == lines[: len(found)]
    # It counts as the lines that were read, blank ones too: two thirds, whatever is missing.
    with pytest.raises(SourceError, match=r"(?s)line \d+: damaged.*as all lines in front\nMend"):
        documents(path, max_bad_share=0.6)
    (tmp_path / "b.txt").write_text("One line.\n" * 2_000_000)
    assert len(documents(tmp_path, max_bad_share=0.03)) > len(found)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", lambda d: zstd.compress(d, options={zstd.CompressionParameter.checksum_flag: 1})),
    ],
)
def test_damaged_bytes_keep_what_is_in_front_of_them(tmp_path, suffix, compress):
    rng = np.random.default_rng(1)
    lines = [" ".join(map(str, rng.integers(0, 10**9, 20))) for _ in range(8000)]
    whole = compress("\n\n".join(lines).encode())
    path = tmp_path / f"a.txt{suffix}"
    for _ in range(12):
        damaged = bytearray(whole)
        at = int(rng.integers(len(whole) // 2, len(whole)))
        damaged[at : at + 40] = rng.bytes(40)
        path.write_bytes(damaged)
        found = [document[0] for document in documents(path, max_bad_share=1.0)]
        assert found[:1000] == lines[: len(found[:1000])]
        with pytest.raises(SourceError, match=r"line \d+: (damaged|not UTF-8|a NUL)"):
            documents(path)


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path, monkeypatch):
    """Whatever part and block a bad line is in."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(text_files, "PART_BYTES", 5000)
    path = tmp_path / "a.txt"
    lines = [b"line", b"", b"other line"] * 1000
    for number in (1501, 2701):
        lines[number - 1] = b"bad \xff"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(SourceError, match=r"line 1501: not UTF-8(.|\n)*line 2701: not UTF-8"):
        documents(path)


def test_a_file_without_line_breaks_is_cut_in_no_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PART_BYTES", 1 << 20)
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"text": "x"}, ' * 4_000_000 + b"]")
    source = parse_source(str(path), "text")
    read = []
    monkeypatch.setattr(
        text_files.JsonSource, "_end_of_first", lambda self, data: read.append(len(data)) or 0
    )
    assert len(source.parts()) == 1
    assert max(read) <= 2 * text_files.BLOCK_BYTES


@given(
    st.lists(st.lists(st.sampled_from(["a", "bc d", "\u00e9", "x" * 40]), max_size=6), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", " ", "\t"]),
    st.integers(5, 60),
    st.integers(1, 200),
)
@settings(deadline=None)
def test_parts_and_blocks_cut_between_documents(
    tmp_path_factory, texts, newline, blank, block, part
):
    """However small they are, the documents are those of reading line by line."""
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    lines = [line for text in texts for line in [*text, blank]]
    path.write_bytes(newline.join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        patch.setattr(text_files, "PART_BYTES", part)
        source = parse_source(f"lines:{path}", "text") if path.stat().st_size else None
        if source is None:
            return
        pieces = [piece for part in source.parts() for piece in part]
        assert [p.begin for p in pieces[1:]] == [p.end for p in pieces[:-1]]
        assert pieces[-1].end == path.stat().st_size
        assert documents(f"lines:{path}") == [text for text in texts if text]


def test_a_file_without_blank_lines_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(text_files, "PART_BYTES", 20_000)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" for i in range(10_000)))
    source = parse_source(str(path), "text")
    blocks = [block for part in source.parts() for block in source.blocks(part)]
    assert max(len(block.data) for block in blocks) <= 7000
    assert len(source.parts()) > 3
    assert [line for d in documents(path) for line in d] == [f"line {i}" for i in range(10_000)]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    texts = ["One.\nTwo.", "Three.", None, " ", "Four."]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": range(5)}), path)
    assert documents(path, max_bad_share=0.5) == [["One.", "Two."], ["Three."], ["Four."]]
    assert documents(tmp_path, max_bad_share=0.5) == documents(f"parquet:{path}", "text", 0.5)
    with pytest.raises(SourceError, match=r"a\.parquet, row 2: no text in the field 'text'"):
        documents(path)
    with pytest.raises(SourceError, match=r"a\.parquet: no column 'body'; it has text, n"):
        documents(path, "body")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"a\.parquet, row 0: not Parquet, or damaged"):
        documents(path)


def test_every_row_of_a_damaged_parquet_file_counts(tmp_path):
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**9, 20))) for _ in range(20_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=2000)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 5000] = rng.bytes(5000)
    path.write_bytes(data)
    source = parse_source(str(path), "text")
    parsed = [source.parse(b) for part in source.parts() for b in source.blocks(part)]
    assert sum(p.records for p in parsed) == 20_000
    assert 10_000 < sum(p.bad for p in parsed) < 16_000
    good = [text for p in parsed for document in p.documents for text in document]
    assert good == texts[: len(good)]


PARQUET_STRINGS = {
    "string": lambda c: c.view(pyarrow.string()),
    "large_string": lambda c: c.cast(pyarrow.large_binary()).view(pyarrow.large_string()),
    "string_view": lambda c: c.cast(pyarrow.binary_view()).view(pyarrow.string_view()),
    "dictionary": lambda c: pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(range(3), pyarrow.int32()), c.view(pyarrow.string())
    ),
    "binary": lambda c: c,
    "large_binary": lambda c: c.cast(pyarrow.large_binary()),
}


@pytest.mark.parametrize("kind", PARQUET_STRINGS)
def test_strings_of_parquet_that_are_no_text(tmp_path, kind):
    path = tmp_path / "a.parquet"
    column = PARQUET_STRINGS[kind](pyarrow.array([b"One.", b"bad \xff", b"Two."]))
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(SourceError, match=r"row 1: not UTF-8"):
        documents(path)
    assert documents(path, max_bad_share=0.5) == [["One."], ["Two."]]


def test_numbers_of_parquet_are_no_text(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(SourceError, match=r"row 0: no text in the field"):
        documents(path)


class Bucket(MemoryFileSystem):
    """An object store in memory: its names, as gcsfs and s3fs give them, have no scheme."""

    cachable = False
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def glob(self, path, **kwargs):
        return [name.lstrip("/") for name in super().glob(path, **kwargs)]


@pytest.fixture
def store():
    bucket = Bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(epath.backend.fsspec_backend), "fs", lambda self, path: bucket)
        yield bucket
    bucket.store.clear()


def test_object_stores_by_path(store):
    store.pipe("/bucket/wiki/a.txt", TEXT.encode())
    store.pipe("/bucket/wiki/sub/b.txt.gz", gzip.compress(b"Other.\n"))
    expected = [["First one.", "Second \u00e9one."], ["Third."]]
    assert documents("gs://bucket/wiki/a.txt") == expected
    assert documents("gs://bucket/wiki/") == [*expected, ["Other."]]
    assert documents("gs://bucket/wiki/*.txt") == expected
    source = parse_source("gs://bucket/wiki/a.txt", "text")
    assert source.identity()["files"][0]["bytes"] == len(TEXT.encode())
    with pytest.raises(SourceError, match="There is no file gs://bucket/none"):
        documents("gs://bucket/none/*.txt")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}/none.txt", "There is no file"),
        ("{}", "holds no .txt"),
        ("{}/x.bin", "Cannot tell what"),
        ("lines:", "names no path"),
        ("tfds:no_such_dataset_here", "TFDS cannot give no_such_dataset_here"),
    ],
)
def test_missing_sources_are_named(tmp_path, spec, words):
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=re.escape(words)):
        parse_source(spec.format(tmp_path), "text").identity()


def test_identity_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    first = parse_source(str(path), "text").identity()
    path.write_text("two\n")
    assert parse_source(str(path), "text").identity() != first
    json.dumps(first)


class Tiny(tfds.core.GeneratorBasedBuilder):
    """A TFDS dataset, as a user's own would be."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"body": tfds.features.Text()})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"body": f"Text {i}.\nMore of it."}


def test_tfds_by_name(tmp_path, monkeypatch):
    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    found = documents("tfds:tiny", "body")
    assert sorted(found) == [[f"Text {i}.", "More of it."] for i in range(3)]
    assert len(documents("tfds:tiny@test", "body")) == 1
    assert parse_source("tfds:tiny", "body").identity()["examples"] == 3
    with pytest.raises(SourceError, match="no feature 'text'; it has body"):
        documents("tfds:tiny")


def test_damaged_records_of_tfds_count(tmp_path, monkeypatch):
    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    source = parse_source("tfds:tiny", "body")
    reader = source._data.data_source
    original = type(reader).__getitem__

    def broken(self, number):
        if number == 1:
            raise RuntimeError("Corrupted Riegeli/records file")
        return original(self, number)

    monkeypatch.setattr(type(reader), "__getitem__", broken)
    assert len(documents("tfds:tiny", "body", max_bad_share=0.34)) == 2
    with pytest.raises(SourceError, match="tfds:tiny, record 1: damaged: Corrupted Riegeli"):
        documents("tfds:tiny", "body")


def test_python_docs_hold_prose():
    source = parse_source("python-docs", "text")
    read = read_documents(source, 0.0)
    found = [next(read) for _ in range(500)]
    assert np.mean([sum(len(p) for p in d) for d in found]) > 200
    assert len({json.dumps(d) for d in found}) == 500
    assert list(itertools.islice(read_documents(source, 0.0), 3)) == found[:3]
    assert source.identity()["python"]


def test_docstrings_of_a_folder_are_those_of_its_files_but_not_of_its_tests(tmp_path):
    source = '"""Of {0}."""\ndef f():\n    """Of f.\n\n    More of {0}.\n    """\n'
    for name in ("a", "sub/b", "tests/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(source.format(name))
    (tmp_path / "broken.py").write_text("def")
    assert list(docstrings(tmp_path)) == [
        "Of a.",
        "Of f.\n\nMore of a.",
        "Of sub/b.",
        "Of f.\n\nMore of sub/b.",
    ]


def test_docstrings_lose_doctests_and_markup():
    text = (
        "Adds two numbers.\n\nParameters\n----------\na : int\n    See :func:`~x.sub` and ``b``.\n"
        "\n>>> add(1, 2)\n3\n\n.. note::\n\n   Goes on\n   here.\n"
    )
    assert clean(text) == [
        "Adds two numbers.",
        "Parameters",
        "a : int",
        "See x.sub and b.",
        "Goes on here.",
    ]
