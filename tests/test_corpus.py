import json
import pickle

import numpy as np
import pytest
from conftest import VOCABULARY, write_text

from albert.data import corpus as corpus_module
from albert.data import vocabulary as vocabulary_module
from albert.data.corpus import Corpus, prepare_corpus
from albert.data.sources import SourceError, parse_source
from albert.data.vocabulary import prepare_vocabulary


def prepare(path, tokenizer, folder, max_documents=0):
    source = parse_source(str(path), "text")
    return prepare_corpus(source, tokenizer, "en", max_documents, folder)


def test_every_sentence_is_read_back(text, tokenizer, prepared):
    corpus = prepare(text, tokenizer, prepared)
    documents = list(parse_source(str(text), "text").documents())
    assert corpus.num_documents == len(documents) == 300
    for number, document in enumerate(documents):
        first, last = corpus.document_starts[number : number + 2]
        expected = [ids for ids in tokenizer.encode_batch(document) if ids]
        assert [s.tolist() for s in corpus.read(first, last)] == expected
    assert corpus.manifest["tokens"] == corpus.sentence_lengths.sum()


def test_reading_across_passages(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus_module, "PASSAGE_TOKENS", 16)
    path = write_text(tmp_path / "a.txt", 20)
    corpus = prepare(path, tokenizer, tmp_path)
    sentences = [
        ids
        for document in parse_source(str(path), "text").documents()
        for ids in tokenizer.encode_batch(document)
    ]
    assert len(corpus._passage_starts) > 50
    for first in range(0, len(sentences), 3):
        for last in (first + 1, first + 2, min(first + 9, len(sentences))):
            if last <= len(sentences):
                read = [s.tolist() for s in corpus.read(first, last)]
                assert read == sentences[first:last]


def test_tokenising_in_processes_changes_nothing(tmp_path, tokenizer, monkeypatch):
    path = write_text(tmp_path / "a.txt", 60)
    alone = prepare(path, tokenizer, tmp_path / "alone")
    monkeypatch.setattr(corpus_module, "_BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(corpus_module.os, "sched_getaffinity", lambda _: {0, 1})
    several = prepare(path, tokenizer, tmp_path / "several")
    for name in ("sentence_lengths", "document_starts", "document_hashes"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(several, name))
    last = len(alone.sentence_lengths)
    for ours, theirs in zip(alone.read(0, last), several.read(0, last), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_paragraphs_are_split_into_sentences(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("A small garden. Mr. Stone writes often!\n")
    corpus = prepare(f"text:{path}", tokenizer, tmp_path)
    assert len(corpus.sentence_lengths) == 2


def test_a_prepared_corpus_is_found_again_and_made_anew_when_anything_changes(
    tmp_path, text, tokenizer, monkeypatch
):
    first = prepare(text, tokenizer, tmp_path)
    made = first.path.stat().st_mtime_ns
    monkeypatch.setattr(corpus_module, "_write_corpus", lambda *_: pytest.fail("made again"))
    again = prepare(text, tokenizer, tmp_path)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == made
    monkeypatch.undo()
    assert prepare(text, tokenizer, tmp_path, max_documents=10).num_documents == 10
    cased = type(tokenizer)(tokenizer.path, lower_case=False)
    assert prepare(text, cased, tmp_path).path != first.path


def test_a_failure_leaves_nothing_behind(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine text here\n\n" * 50 + b"bad \xff\n")
    with pytest.raises(SourceError, match=r"a\.txt, line 101"):
        prepare(path, tokenizer, tmp_path / "out")
    assert [p.suffix for p in (tmp_path / "out").iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_text_without_text_is_named(tmp_path, tokenizer, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"a\.txt holds no text"):
        prepare(path, tokenizer, tmp_path / "out")


def test_a_corpus_travels_as_its_path(text, tokenizer, prepared):
    corpus = prepare(text, tokenizer, prepared)
    data = pickle.dumps(corpus)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).document_starts, corpus.document_starts)


def test_the_manifest_says_what_it_was_made_from(text, tokenizer, prepared):
    corpus = prepare(text, tokenizer, prepared)
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert manifest["source"]["files"][0]["file"] == text.name
    assert Corpus(corpus.path).fingerprint == corpus.fingerprint


def test_vocabularies_are_trained_once(tmp_path, text, monkeypatch):
    sources = [parse_source(str(text), "text")]
    arguments = (sources, VOCABULARY, "en", True, True, 0, tmp_path)
    path = prepare_vocabulary(*arguments)
    monkeypatch.setattr(vocabulary_module, "train_vocabulary", lambda *_: pytest.fail("made again"))
    assert prepare_vocabulary(*arguments) == path


def test_too_little_text_for_a_vocabulary_is_named(tmp_path):
    path = tmp_path / "a.txt"
    for content, words in (("", r"a\.txt holds no text"), ("A b c.\n", r"a\.txt: .* at most")):
        path.write_text(content)
        sources = [parse_source(str(path), "text")]
        with pytest.raises(ValueError, match=words):
            prepare_vocabulary(sources, 5000, "en", True, True, 0, tmp_path / "out")


def test_what_a_killed_process_left_is_cleared(tmp_path, text, tokenizer):
    final = prepare(text, tokenizer, tmp_path).path
    stale = final.with_name(f"{final.name}.tmp-123")
    final.rename(stale)
    assert prepare(text, tokenizer, tmp_path).path == final
    assert not stale.exists()


def test_a_bad_source_is_named_while_training_a_vocabulary(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"bad \xff\n")
    sources = [parse_source(str(path), "text")]
    with pytest.raises(SourceError, match=r"a\.txt, line 1: not UTF-8"):
        prepare_vocabulary(sources, VOCABULARY, "en", True, True, 0, tmp_path / "out")
