import gzip
import json
import lzma
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from backports import zstd

from albert.data.python_docs import clean
from albert.data.sources import SourceError, parse_source


def documents(spec, field="text"):
    return list(parse_source(str(spec), field).documents())


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


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One.\\nTwo."}\n\n{"text": " "}\n{"text": "Three."}\n')
    assert documents(path) == [["One.", "Two."], ["Three."]]
    path.write_text('{"body": "x"}\n')
    assert documents(path, "body") == [["x"]]
    with pytest.raises(SourceError, match=r"a\.jsonl, line 1: no text in the field 'text'"):
        documents(path)
    path.write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(SourceError, match=r"a\.jsonl, line 2: not JSON"):
        documents(path)


def test_undecodable_text_names_file_and_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nbad \xff byte\n")
    with pytest.raises(SourceError, match=r"a\.txt, line 2: not UTF-8 \(byte 0xff at position 5\)"):
        documents(path)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd.compress)],
)
def test_a_cut_off_file_is_named(tmp_path, suffix, compress):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(("line of text %d\n" * 3000).encode())[:-20])
    with pytest.raises(SourceError, match=r"a\.txt.*damaged or cut off after line"):
        documents(path)


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
    with pytest.raises(SourceError, match="record 0: no text in the feature 'text'; it has body"):
        documents("tfds:tiny")


def test_python_docs_hold_prose():
    source = parse_source("python-docs", "text")
    read = source.documents()
    found = [next(read) for _ in range(500)]
    assert np.mean([sum(len(p) for p in d) for d in found]) > 200
    assert len({json.dumps(d) for d in found}) == 500
    assert [d for d, _ in zip(source.documents(), range(3), strict=False)] == found[:3]
    assert source.identity()["python"]


def test_docstrings_lose_doctests_and_markup():
    text = (
        "Adds two numbers.\n\nParameters\n----------\na : int\n    See :func:`~x.sub` and ``b``.\n"
        "\n>>> add(1, 2)\n3\n\n.. note::\n\n   Goes on\n   here.\n"
    )
    assert clean(text) == [
        "Adds two numbers.", "Parameters", "a : int", "See x.sub and b.", "Goes on here.",
    ]  # fmt: skip
