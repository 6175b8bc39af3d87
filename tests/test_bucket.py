"""Corpora and vocabularies on a bucket: made once, fetched as far as they are needed, checked.

The bucket is a folder here that is taken for one; `test_stores.py` has the store's own emulator.
"""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from albert.data import cache
from albert.data.cache import StoreError
from albert.data.corpus import beam, reader, writer
from albert.data.corpus.beam import prepare_corpus_with_beam
from albert.data.labelled.kept import kept_sequences
from albert.data.pretraining.prepare import prepare
from albert.data.sources import files, text_files
from albert.data.sources.base import SourceError
from albert.data.sources.parse import parse_source
from albert.train.config import check


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is taken for a bucket; this machine's cache is `tmp_path / "cache"`."""
    folder = tmp_path / "bucket"
    for module in (cache, beam, reader, writer, files):
        monkeypatch.setattr(module, "is_remote", lambda path: str(path).startswith(str(folder)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def text_of_parts(text, tmp_path, monkeypatch):
    """The small text, of which every 20,000 bytes are a part."""
    monkeypatch.setattr(text_files, "PART_BYTES", 20_000)
    return Path(shutil.copy(text, tmp_path / "text.txt"))


def data_of(tiny, source, folder):
    tiny.data.train_sources = (str(source),)
    tiny.data.folder = str(folder)
    tiny.data.tokenizer = ""
    return check(tiny, needs_text=False).data


def rows_of(data, numbers=range(6)):
    return [data.train[number] for number in numbers]


def cached(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_what_is_on_a_bucket_is_made_once_and_fetched_as_needed(
    tiny, bucket, text_of_parts, tmp_path, monkeypatch, capsys
):
    here = prepare(data_of(tiny, text_of_parts, tmp_path / "here"), 96, 0)
    config = data_of(tiny, text_of_parts, bucket)
    assert "Sending" not in capsys.readouterr().err
    made = prepare(config, 96, 0)
    assert capsys.readouterr().err.count("Sending") == 2  # vocabulary and corpus
    assert made.identity == here.identity
    names = {path.name.partition("-")[0] for path in bucket.iterdir()}
    assert names == {"vocabulary", "corpus", "digests"}
    assert not list((tmp_path / "cache" / "albert" / "made").rglob("*.json"))

    # Another machine, without the text; one of several.
    text_of_parts.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(cache, "_makes_on_buckets", False)
    again = prepare(config, 96, 0)
    assert again.identity == here.identity
    fetched = tmp_path / "other" / "albert" / "fetched"
    assert not [name for name in cached(fetched) if "array_record" in name]
    corpus = again.train.plans[0].corpus
    np.testing.assert_array_equal(corpus.read(0, 3), here.train.plans[0].corpus.read(0, 3))
    # The file in which these sentences are, and no other.
    shards = [n for n in cached(fetched) if "array_record" in n and not n.endswith(".lock")]
    assert len(shards) == 1
    for ours, theirs in zip(rows_of(again), rows_of(here), strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    sent = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(sent.read(0, 3), corpus.read(0, 3))


def test_a_damaged_file_of_a_bucket_is_never_read(tiny, bucket, text_of_parts, tmp_path):
    config = data_of(tiny, text_of_parts, bucket)
    made = prepare(config, 96, 0)
    corpus = made.train.plans[0].corpus
    shutil.rmtree(tmp_path / "cache")
    (shard, *_) = sorted(bucket.rglob("*.array_record-00000-of-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"array_record-00000-of-\d+ is not as it was written"):
        reader.Corpus(corpus.path).read(0, 3)
    assert not list((tmp_path / "cache").rglob("*.new"))
    shard.unlink()
    with pytest.raises(StoreError, match=r"could not be fetched to .*No such file"):
        reader.Corpus(corpus.path).read(0, 3)
    # A copy that is damaged here is told as such; the bucket is not to blame.
    (index,) = (tmp_path / "cache").rglob("sentence_lengths.npy")
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"fetched.* is damaged.*it is fetched again"):
        reader.Corpus(corpus.path).sentence_lengths  # noqa: B018


def test_several_processes_make_nothing_on_a_bucket(tiny, bucket, text_of_parts, monkeypatch):
    monkeypatch.setattr(cache, "_makes_on_buckets", True)
    cache.is_one_of_several()
    with pytest.raises(StoreError, match="is not there, and a job of several processes does not"):
        prepare(data_of(tiny, text_of_parts, bucket), 96, 0)


def test_what_could_not_be_sent_is_kept_and_sent_later(
    tiny, bucket, text_of_parts, monkeypatch, capsys
):
    config = data_of(tiny, text_of_parts, bucket)
    copy, sent = cache._copy, []

    def fails(source, target):
        sent.append(target.name)
        if target.name.startswith("sentence"):
            raise RuntimeError("403: no permission")
        copy(source, target)

    monkeypatch.setattr(cache, "_copy", fails)
    with pytest.raises(StoreError, match=r"could not be written: 403.*What was made is kept in"):
        prepare(config, 96, 0)
    assert not list(bucket.rglob("corpus.json"))
    monkeypatch.setattr(cache, "_copy", copy)
    capsys.readouterr()
    assert prepare(config, 96, 0).train.rows_per_epoch
    assert "Preparing" not in capsys.readouterr().err  # nothing is tokenised again


def test_what_a_bucket_does_not_hold_is_told(tiny, bucket, text_of_parts, tokenizer, monkeypatch):
    with pytest.raises(StoreError, match="rows of labelled text are made and kept by every host"):
        kept_sequences([("a", None)], tokenizer, 16, bucket, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    source = parse_source(str(text_of_parts), "text")
    with pytest.raises(SourceError, match="the workers of DataflowRunner write files of their own"):
        prepare_corpus_with_beam(source, tokenizer, "en", 0.0, bucket, "DataflowRunner", [])
