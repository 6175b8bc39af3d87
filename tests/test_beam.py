"""Apache Beam makes the corpus that one machine makes."""

import numpy as np
import pytest

from albert.data.cache import StoreError
from albert.data.corpus import writer as corpus_writer
from albert.data.corpus.beam import prepare_corpus_with_beam
from albert.data.corpus.writer import differences
from albert.data.sources import text_files
from albert.data.sources.base import SourceError
from albert.data.sources.parse import parse_source
from rows import read_corpus
from texts import write_text

pytestmark = pytest.mark.beam


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    pytest.importorskip("apache_beam", reason="needs requirements-beam.txt")
    monkeypatch.setattr(text_files, "PART_BYTES", 20_000)


def with_beam(path, tokenizer, folder, max_bad_share=0.0, options=()):
    source = parse_source(str(path), "text")
    return prepare_corpus_with_beam(
        source, tokenizer, "en", max_bad_share, folder, "DirectRunner", list(options)
    )


@pytest.mark.parametrize(
    "options", [[], ["--direct_running_mode=multi_threading", "--direct_num_workers=2"]]
)
def test_the_corpus_is_that_of_one_machine(tmp_path, text, tokenizer, options):
    ours = read_corpus(text, tokenizer, tmp_path / "cores")
    theirs = with_beam(text, tokenizer, tmp_path / "beam", options=options)
    assert ours.fingerprint == theirs.fingerprint
    assert not differences(ours.manifest, theirs.manifest)
    for name in ("documents", "sentences", "tokens", "characters", "records", "bad_records"):
        assert ours.manifest[name] == theirs.manifest[name]
    for name in ("sentence_lengths", "document_starts", "document_hashes", "_passage_starts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    last = ours.num_sentences
    np.testing.assert_array_equal(ours.read(0, last), theirs.read(0, last))
    names = [sorted(str(p.relative_to(c.path)) for p in c.path.rglob("*")) for c in (ours, theirs)]
    assert names[0] == names[1]
    assert sum("array_record" in name for name in names[0]) > 3


def test_bad_records_are_counted_and_bounded(tmp_path, tokenizer):
    path = write_text(tmp_path / "a.txt", 300)
    path.write_bytes(path.read_bytes() + b"\nbad \xff\n")
    with pytest.raises(SourceError, match=r"1 of \d+ records are bad"):
        with_beam(path, tokenizer, tmp_path / "strict")
    assert not list((tmp_path / "strict").glob("corpus-*/corpus.json"))
    # What Beam left there is nothing that cores go on from.
    ours = read_corpus(path, tokenizer, tmp_path / "strict", max_bad_share=0.01)
    assert ours.num_documents == 300
    corpus = with_beam(path, tokenizer, tmp_path / "lenient", max_bad_share=0.01)
    assert corpus.manifest["bad_records"] == 1
    assert "not UTF-8" in corpus.manifest["bad_examples"][0]


def test_what_cores_left_unfinished_is_begun_again(tmp_path, text, tokenizer, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus_writer, "write_index", full)
        with pytest.raises(StoreError):
            read_corpus(text, tokenizer, tmp_path)
    assert with_beam(text, tokenizer, tmp_path).num_documents == 300
