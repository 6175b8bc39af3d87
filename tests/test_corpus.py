"""Prepared corpora: what is read back, what is found again, and what happens when things break."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from albert.data import vocabulary as vocabulary_module
from albert.data.cache import StoreError
from albert.data.corpus import reader as corpus_module
from albert.data.corpus import writer as corpus_writer
from albert.data.corpus.reader import Corpus, open_passages
from albert.data.corpus.writer import prepare_corpus
from albert.data.sources import text_files
from albert.data.sources.base import SourceError, read_documents
from albert.data.sources.parse import parse_source
from albert.data.sources.text_files import TextSource
from albert.data.vocabulary import prepare_vocabulary
from rows import read_corpus, read_sentences
from texts import VOCABULARY, write_text

ROOT = Path(__file__).resolve().parent.parent


def test_every_sentence_is_read_back(text, tokenizer, prepared):
    corpus = read_corpus(text, tokenizer, prepared)
    documents = list(read_documents(parse_source(str(text), "text"), 0.0))
    assert corpus.num_documents == len(documents) == 300
    for number, document in enumerate(documents):
        first, last = corpus.document_starts[number : number + 2]
        expected = [ids for ids in tokenizer.encode_batch(document) if ids]
        assert read_sentences(corpus, first, last) == expected
    assert corpus.manifest["tokens"] == corpus.sentence_lengths.sum()


def test_reading_across_passages(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_module, "PASSAGE_TOKENS", 16)
    path = write_text(tmp_path / "a.txt", 20)
    corpus = read_corpus(path, tokenizer, tmp_path)
    sentences = [
        ids
        for document in read_documents(parse_source(str(path), "text"), 0.0)
        for ids in tokenizer.encode_batch(document)
    ]
    assert len(corpus._passage_starts) > 50
    for first in range(0, len(sentences), 3):
        for last in (first + 1, first + 2, min(first + 9, len(sentences))):
            if last <= len(sentences):
                read = read_sentences(corpus, first, last)
                assert read == sentences[first:last]


def files_of(corpus):
    """Every file of a corpus with its bytes, but the date in TFDS's own description."""
    found = {}
    for path in sorted(corpus.path.rglob("*")):
        if path.is_file() and path.name != "dataset_info.json":
            found[str(path.relative_to(corpus.path))] = path.read_bytes()
    return found


def test_any_number_of_processes_writes_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    path = write_text(tmp_path / "a.txt", 60)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(text_files, "PART_BYTES", 6000)
    found = []
    for cores in (1, 2, 4):
        monkeypatch.setattr(corpus_writer.os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        corpus = read_corpus(path, tokenizer, tmp_path / str(cores))
        found.append(files_of(corpus))
    assert len(found[0]) > 8
    assert found[0] == found[1] == found[2]
    # And one block for all of it: the same documents, cut elsewhere.
    monkeypatch.undo()
    whole = read_corpus(path, tokenizer, tmp_path / "whole")
    for name in ("sentence_lengths", "document_starts", "document_hashes"):
        np.testing.assert_array_equal(getattr(corpus, name), getattr(whole, name))
    last = whole.num_sentences
    np.testing.assert_array_equal(corpus.read(0, last), whole.read(0, last))


def test_passages_are_a_tfds_dataset(corpus):
    """What is read past TFDS's decoder is what that decoder gives."""
    passages = open_passages(corpus.path)
    ids = np.concatenate([passage["ids"] for passage in passages])
    np.testing.assert_array_equal(ids, corpus.read(0, corpus.num_sentences))
    lengths = np.concatenate([passage["sentence_lengths"] for passage in passages])
    np.testing.assert_array_equal(lengths, corpus.sentence_lengths)
    assert sum(bool(p["starts_document"]) for p in passages) == corpus.num_documents


def test_paragraphs_are_split_into_sentences(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("A small garden. Mr. Stone writes often!\n")
    corpus = read_corpus(f"text:{path}", tokenizer, tmp_path)
    assert len(corpus.sentence_lengths) == 2


def test_a_prepared_corpus_is_found_again_and_made_anew_when_anything_changes(
    tmp_path, text, tokenizer, monkeypatch, capfd
):
    first = read_corpus(text, tokenizer, tmp_path)
    made = first.path.stat().st_mtime_ns
    monkeypatch.setattr(corpus_writer, "_write_on_cores", lambda *_: pytest.fail("made again"))
    again = read_corpus(text, tokenizer, tmp_path)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == made
    monkeypatch.undo()
    assert read_corpus(text, tokenizer, tmp_path, max_documents=10).num_documents == 10
    assert "for other max_documents (0 -> 10)" in capfd.readouterr().err
    cased = type(tokenizer)(tokenizer.path, lower_case=False)
    assert read_corpus(text, cased, tmp_path).path != first.path
    assert "lower_case (True -> False)" in capfd.readouterr().err


def test_changed_files_are_named(tmp_path, tokenizer, capfd):
    folder = tmp_path / "text"
    folder.mkdir()
    for name in "abc":
        write_text(folder / f"{name}.txt", 5)
    read_corpus(folder, tokenizer, tmp_path / "out")
    write_text(folder / "b.txt", 5, seed=7)
    (folder / "c.txt").rename(folder / "d.txt")
    read_corpus(folder, tokenizer, tmp_path / "out")
    told = capfd.readouterr().err
    assert "changed files (b.txt), added files (d.txt), removed files (c.txt)" in told
    for part in ("AA", "AB"):
        (folder / part).mkdir()
        write_text(folder / part / "wiki_00.txt", 5, seed=8)
    read_corpus(folder, tokenizer, tmp_path / "out")
    write_text(folder / "AB" / "wiki_00.txt", 5, seed=9)
    read_corpus(folder, tokenizer, tmp_path / "out")
    assert "for other changed files (AB/wiki_00.txt)." in capfd.readouterr().err


def test_bad_records_are_left_out_up_to_a_bound(tmp_path, tokenizer, capfd):
    path = tmp_path / "a.txt"
    path.write_bytes(
        b"a river moves\n\n" * 50 + b"bad \xff\n\n" + b"\x00 water\n" + b"a mountain\n"
    )
    with pytest.raises(
        SourceError, match=r"a\.txt: 2 of 53 records are bad(.|\n)*line 101: not UTF-8"
    ):
        read_corpus(path, tokenizer, tmp_path / "out", max_bad_share=0.03)
    corpus = read_corpus(path, tokenizer, tmp_path / "out", max_bad_share=0.04)
    assert corpus.num_documents == 51
    assert corpus.manifest["bad_records"] == 2
    told = capfd.readouterr().err
    assert f"left out 2 of 53 records:\n  {path}, line 101: not UTF-8 (byte 0xff" in told
    assert f"{path}, line 103: a NUL byte at position 1" in told


def test_a_disk_that_is_full_is_told_and_a_rerun_goes_on(tmp_path, tokenizer):
    # A file of passages has 131,072 bytes at least: only the last part, of one long document,
    # needs more.
    path = write_text(tmp_path / "a.txt", 300)
    long = write_text(tmp_path / "b.txt", 1500, seed=1).read_text().replace("\n\n", "\n")
    path.write_text(f"{path.read_text()}\n{long}")
    code = f"""
import resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from albert.data.corpus import writer as corpus_writer
from albert.data.sources import text_files
text_files.BLOCK_BYTES, text_files.PART_BYTES = 8000, 24000
corpus_writer.os.sched_getaffinity = lambda _: {{0}}
from pathlib import Path
from rows import read_corpus, read_sentences
from albert.data.tokenizer import Tokenizer
if sys.argv[1] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
tokenizer = Tokenizer({str(tokenizer.path)!r})
corpus = read_corpus({str(path)!r}, tokenizer, Path({str(tmp_path / "out")!r}))
print(corpus.num_documents)
"""

    def run(how):
        return subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, timeout=120
        )

    failed = run("full")
    assert failed.returncode == 1
    assert "StoreError: Preparing" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert not list((tmp_path / "out").glob("corpus-*/corpus.json"))
    done = run("")
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) of (\d+) parts are finished already", done.stderr)
    assert 0 < int(found[1]) <= int(found[2])
    clean = read_corpus(path, tokenizer, tmp_path / "clean")
    again = Corpus(next((tmp_path / "out").glob("corpus-*/")))
    assert done.stdout.strip() == str(clean.num_documents)
    np.testing.assert_array_equal(again.document_hashes, clean.document_hashes)


@pytest.mark.parametrize("where", ["rename", "info", "index", "manifest", "clear"])
def test_a_failure_behind_the_last_part_loses_no_part(
    tmp_path, text, tokenizer, monkeypatch, where
):
    """However far it got, the next try goes on, and the corpus is the same."""
    monkeypatch.setattr(text_files, "PART_BYTES", 20_000)
    clean = read_corpus(text, tokenizer, tmp_path / "clean")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "rename":
            original, calls = Path.rename, []

            def some(self, target):
                if self.suffix == ".passages" and (calls.append(self) or len(calls) > 2):
                    full()
                return original(self, target)

            patch.setattr(Path, "rename", some)
        elif where == "info":
            patch.setattr(tfds.core.DatasetInfo, "write_to_directory", full)
        elif where == "index":
            patch.setattr(corpus_writer, "write_index", full)
        elif where == "manifest":
            patch.setattr(corpus_writer, "write_json", full)
        else:
            patch.setattr(corpus_writer.shutil, "rmtree", full)
        with pytest.raises(StoreError, match="No space left on device"):
            read_corpus(text, tokenizer, tmp_path / "out")
    monkeypatch.setattr(corpus_writer.PartWriter, "add", lambda *_: pytest.fail("made again"))
    again = read_corpus(text, tokenizer, tmp_path / "out")
    assert files_of(again) == files_of(clean)


def test_a_block_without_documents_ends_nothing(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 8)
    path = tmp_path / "a.txt"
    path.write_text("\n" * 40 + "a river\n\nwater\n" + "\n" * 40 + "music\n")
    assert read_corpus(path, tokenizer, tmp_path / "out").num_documents == 3
    first = read_corpus(path, tokenizer, tmp_path / "out", max_documents=2)
    assert first.num_documents == 2


def test_a_half_written_description_is_written_again(tmp_path, text, tokenizer, monkeypatch):
    def half(self, folder):
        (folder / "dataset_info.json").write_text('{"name": ')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.DatasetInfo, "write_to_directory", half)
        with pytest.raises(StoreError, match="No space left on device"):
            read_corpus(text, tokenizer, tmp_path)
    assert read_corpus(text, tokenizer, tmp_path).num_documents == 300


def test_a_document_without_pieces_is_told(tmp_path, tokenizer, capfd):
    path = tmp_path / "a.txt"
    path.write_text("a river\n\n\u200b\n\nwater\n")
    with pytest.raises(SourceError, match=r"1 of 3 records are bad(.|\n)*has no piece to learn"):
        read_corpus(path, tokenizer, tmp_path / "out")
    assert read_corpus(path, tokenizer, tmp_path / "out", max_bad_share=0.5).num_documents == 2


@dataclasses.dataclass(frozen=True)
class Killed(TextSource):
    """A source whose reader is killed on the way."""

    def parse(self, block):
        if b"ends here" in block.data:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().parse(block)


@dataclasses.dataclass(frozen=True)
class Failing(TextSource):
    def parse(self, block):
        if b"ends here" in block.data:
            raise ZeroDivisionError("in a worker")
        return super().parse(block)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (Killed, SourceError, "was killed, most often for memory"),
        (Failing, ZeroDivisionError, "in a worker"),
    ],
)
def test_a_worker_that_dies_ends_it_and_a_rerun_goes_on(
    tmp_path, tokenizer, monkeypatch, kind, error, words
):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(text_files, "PART_BYTES", 6000)
    monkeypatch.setattr(corpus_writer.os, "sched_getaffinity", lambda _: {0, 1})
    path = write_text(tmp_path / "a.txt", 80)
    path.write_text(path.read_text() + "\n\nends here\n")
    source = kind(str(path), (str(path),), False)
    with pytest.raises(error, match=words):
        prepare_corpus(source, tokenizer, "en", 0, 0.0, tmp_path / "out")
    assert not list((tmp_path / "out").glob("corpus-*/corpus.json"))
    finished = list((tmp_path / "out").glob("corpus-*.unfinished/parts/*.json"))
    assert finished
    before = {part: part.stat().st_mtime_ns for part in finished}
    # The same text without what kills: the parts that are there are kept.
    written = []
    monkeypatch.setattr(
        corpus_writer.PartWriter,
        "add",
        lambda self, block, add=corpus_writer.PartWriter.add: (
            written.append(self.path),
            add(self, block),
        ),
    )
    corpus = read_corpus(path, tokenizer, tmp_path / "out")
    assert len(set(written)) + len(before) == len(list(corpus.path.rglob("*array_record*")))
    assert corpus.num_documents == 81


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_text_without_text_is_named(tmp_path, tokenizer, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"a\.txt holds no text"):
        read_corpus(path, tokenizer, tmp_path / "out")


def test_a_corpus_travels_as_its_path(text, tokenizer, prepared):
    corpus = read_corpus(text, tokenizer, prepared)
    data = pickle.dumps(corpus)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).document_starts, corpus.document_starts)


def test_the_manifest_says_what_it_was_made_from(text, tokenizer, prepared):
    corpus = read_corpus(text, tokenizer, prepared)
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert manifest["source"]["files"][0]["file"] == text.name
    assert Corpus(corpus.path).fingerprint == corpus.fingerprint


def test_vocabularies_are_trained_once(tmp_path, text, monkeypatch):
    sources = [parse_source(str(text), "text")]
    arguments = (sources, VOCABULARY, "en", True, True, 0, 0.0, 1.0, 1.0, tmp_path)
    path = prepare_vocabulary(*arguments)
    monkeypatch.setattr(vocabulary_module, "train_vocabulary", lambda *_: pytest.fail("made again"))
    assert prepare_vocabulary(*arguments) == path


def test_too_little_text_for_a_vocabulary_is_named(tmp_path):
    path = tmp_path / "a.txt"
    for content, words in (("", r"a\.txt holds no text"), ("A b c.\n", r"a\.txt: .* at most")):
        path.write_text(content)
        sources = [parse_source(str(path), "text")]
        with pytest.raises(ValueError, match=words):
            prepare_vocabulary(sources, 5000, "en", True, True, 0, 0.0, 1.0, 1.0, tmp_path / "out")


def test_what_a_killed_process_left_is_made_anew(tmp_path, text, tokenizer):
    final = read_corpus(text, tokenizer, tmp_path).path
    unfinished = final.with_name(f"{final.name}.unfinished")
    final.rename(unfinished)
    (unfinished / "corpus.json").unlink()
    shutil.rmtree(unfinished / "passages")
    (unfinished / "parts").mkdir()
    (unfinished / "parts" / "00000.tmp").write_bytes(b"half a file")
    assert read_corpus(text, tokenizer, tmp_path).num_documents == 300
    assert not unfinished.exists()


def test_a_bad_source_is_named_while_training_a_vocabulary(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"bad \xff\n")
    sources = [parse_source(str(path), "text")]
    with pytest.raises(SourceError, match=r"a\.txt, line 1: not UTF-8"):
        prepare_vocabulary(
            sources, VOCABULARY, "en", True, True, 0, 0.0, 1.0, 1.0, tmp_path / "out"
        )
