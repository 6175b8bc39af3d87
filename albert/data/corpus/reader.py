"""A source prepared once: token ids in ArrayRecord, and an index that fits in memory.

A prepared corpus is a folder:

    corpus.json           what it was made from, its counts, and the records left out as bad
    passages/             TFDS dataset: runs of whole sentences, PASSAGE_TOKENS or a little more
    sentence_lengths.npy  tokens of every sentence, in order
    document_starts.npy   first sentence of every document, and the number of sentences
    document_hashes.npy   64-bit hash of every document's ids
    passage_starts.npy    first sentence of every passage, and the number of sentences

Passages bound what reading one example costs, however long the book it is cut from. The index
alone decides an epoch's plan, so planning reads no text. `writer.py` makes it.

On a bucket (gs://) it is the same folder. A machine fetches the index, and a file of passages when
the first row that needs it is read, each once, and checks it by the digest in corpus.json. Never
imports jax.
"""

import bisect
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from albert.data.cache import Fetched
from albert.data.sources.base import SourceError
from albert.runtime.digests import text_digest
from albert.runtime.paths import files_below, is_remote, place

PASSAGE_TOKENS = 2048
SPLIT = "documents"
_INDEXED_AT_ONCE = 1024  # passages
# The arrays of an index, each a file.
_COLUMNS = {
    "sentence_lengths": np.uint32,
    "document_starts": np.int64,
    "document_hashes": np.uint64,
    "passage_starts": np.int64,
}


class Passages(tfds.core.ShardBasedBuilder):
    """TFDS builder over passages; every shard is a function that gives them in order."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, *, dtype=np.uint16, shards: Sequence[Callable[[], Iterable]] = (), **kwargs):
        """`dtype` of the ids; each of `shards` gives (key, features) pairs."""
        self._dtype = dtype
        self._shards = list(shards)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        raw = tfds.features.Encoding.BYTES
        return tfds.core.DatasetInfo(
            builder=self,
            description="Token ids of consecutive sentences of one document.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "ids": tfds.features.Tensor(shape=(None,), dtype=self._dtype, encoding=raw),
                    "sentence_lengths": tfds.features.Tensor(
                        shape=(None,), dtype=np.uint32, encoding=raw
                    ),
                    "starts_document": np.bool_,
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        return {SPLIT: self._shards}


class Corpus:
    """A prepared corpus, opened lazily and cheap to send to another process."""

    def __init__(self, path: str | os.PathLike):
        self.path = place(str(path))
        text = (self.path / "corpus.json").read_text()
        self.manifest = json.loads(text)
        self._fetched = Fetched(self.path, text_digest(text)[:16]) if is_remote(self.path) else None

    def __reduce__(self):
        return (Corpus, (str(self.path),))

    @property
    def folder(self) -> Path:
        """Where its files are on this machine, as far as they are."""
        return self._fetched.folder if self._fetched else self.path

    def _file(self, name: str, digest: str) -> Path:
        """One of its files, on this machine."""
        if self._fetched is None:
            return self.path / name
        return self._fetched.file(name, lambda path: _file_digest(path) == digest)

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sentence_lengths)

    def _array(self, name: str) -> np.ndarray:
        path = self._file(f"{name}.npy", self.manifest["index"][name])
        if _file_digest(path) != self.manifest["index"][name]:
            raise self._damaged(f"{path.name} is not as it was written")
        # A plain view: indexing a numpy.memmap costs a microsecond more every time.
        return np.asarray(np.load(path, mmap_mode="r")).view(np.ndarray)

    def _damaged(self, what: str) -> SourceError:
        again = "fetched again" if self._fetched else "prepared anew, and the rows are the same"
        return SourceError(
            f"The prepared corpus {self.folder} is damaged: {what}. Remove that folder and give "
            f"the same command again: it is {again}."
        )

    @cached_property
    def sentence_lengths(self) -> np.ndarray:
        """uint32 [sentences]."""
        return self._array("sentence_lengths")

    @cached_property
    def document_starts(self) -> np.ndarray:
        """int64 [documents + 1]."""
        return self._array("document_starts")

    @cached_property
    def document_hashes(self) -> np.ndarray:
        """uint64 [documents]."""
        return self._array("document_hashes")

    @cached_property
    def _passage_starts(self) -> np.ndarray:
        return self._array("passage_starts")

    @cached_property
    def _records(self):
        if self._fetched:
            for name in self._passage_files:
                if name.endswith(".json"):
                    self._fetch_passages(name)
        return _open(self.folder, tfds.decode.DeserializeMethod.RAW_BYTES)

    @cached_property
    def _passage_files(self) -> dict[str, str]:
        """Names and digests."""
        if "passages" not in self.manifest:
            raise SourceError(
                f"{self.path} was prepared by an earlier version, without digests of its passages: "
                "copy it to a folder of this machine, or remove it and prepare it anew."
            )
        return self.manifest["passages"]

    def _fetch_passages(self, name: str) -> None:
        inner = passages_folder(self.folder).relative_to(self.folder) / name
        self._file(inner.as_posix(), self._passage_files[name])

    @cached_property
    def _shards(self) -> tuple[list[str], list[int]]:
        """Files of passages in order, and the number of the first passage behind each."""
        split = self._records.dataset_info.splits[SPLIT]
        return sorted(split.filenames), list(itertools.accumulate(split.shard_lengths))

    @cached_property
    def _dtype(self) -> np.dtype:
        return self._records.dataset_info.features["ids"].np_dtype

    def _passage(self, number: int) -> np.ndarray:
        # Decoding every feature, as TFDS does, takes longer than the rest of making a row.
        if self._fetched:
            names, ends = self._shards
            self._fetch_passages(names[bisect.bisect_right(ends, number)])
        try:
            # Every chunk of a file is stored with its hash.
            example = tf_example_pb2.Example.FromString(self._records[number])
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(str(error)) from error
        return np.frombuffer(example.features.feature["ids"].bytes_list.value[0], self._dtype)

    def read(self, first: int, last: int) -> np.ndarray:
        """The ids of sentences first, ..., last - 1, one behind the other: int32 [tokens]."""
        return self.read_tokens(first, 0, int(self.sentence_lengths[first:last].sum()))

    def read_tokens(self, sentence: int, skip: int, count: int) -> np.ndarray:
        """So many ids from a sentence on, but the first `skip` of it: int32 [count]."""
        starts, lengths = self._passage_starts, self.sentence_lengths
        passage = int(starts.searchsorted(sentence, side="right")) - 1
        begin = int(lengths[starts[passage] : sentence].sum()) + skip
        end = begin + count
        ids = self._passage(passage)
        while len(ids) < end:
            passage += 1
            ids = np.concatenate([ids, self._passage(passage)])
        return ids[begin:end].astype(np.int32)


def index_digests(folder: Path) -> dict[str, str]:
    """Digests of the files of an index, for the corpus's manifest."""
    return {name: _file_digest(folder / f"{name}.npy") for name in _COLUMNS}


def passages_digests(folder: Path) -> dict[str, str]:
    """Digests of the files of passages, and of what describes them."""
    return {name: _file_digest(path) for name, path in files_below(passages_folder(folder))}


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def passages_folder(folder: Path) -> Path:
    """Where the passages of a corpus are."""
    return folder / "passages" / str(Passages.VERSION)


def open_passages(folder: Path) -> Any:
    """The passages of a corpus by number: dicts of the features of `Passages`."""
    return _open(folder, tfds.decode.DeserializeMethod.DESERIALIZE_AND_DECODE)


def _open(folder: Path, method: tfds.decode.DeserializeMethod) -> Any:
    builder = tfds.builder_from_directory(passages_folder(folder))
    return builder.as_data_source(SPLIT, deserialize_method=method)


def passages_of(ids: np.ndarray, lengths: np.ndarray) -> Iterator[dict]:
    """A document as features of `Passages`: ids, and the lengths of its sentences.

    A passage ends with the sentence that reaches the next multiple of its size.
    """
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(ends, np.arange(PASSAGE_TOKENS, ends[-1], PASSAGE_TOKENS)) + 1
    for first, last in itertools.pairwise(np.unique([0, *cuts, len(lengths)]).tolist()):
        yield {
            "ids": ids[ends[first] - lengths[first] : ends[last - 1]],
            "sentence_lengths": lengths[first:last].astype(np.uint32),
            "starts_document": first == 0,
        }


def write_index(folder: Path, spec: str) -> dict[str, int]:
    """Writes the index of the passages in `folder`; returns the counts."""
    passages = open_passages(folder)
    columns = {name: _Column(folder / f"{name}.npy", dtype) for name, dtype in _COLUMNS.items()}
    digest = hashlib.blake2b(digest_size=8)
    tokens = 0
    progress = tqdm(
        desc=f"Indexing {spec}",
        total=len(passages),
        unit="passages",
        mininterval=1,
        leave=False,
        delay=2,
    )
    for begin in range(0, len(passages), _INDEXED_AT_ONCE):
        chosen = list(range(begin, min(begin + _INDEXED_AT_ONCE, len(passages))))
        for passage in passages.__getitems__(chosen):
            sentences = columns["sentence_lengths"].length
            if passage["starts_document"]:
                if sentences:
                    columns["document_hashes"].append([_as_number(digest)])
                digest = hashlib.blake2b(digest_size=8)
                columns["document_starts"].append([sentences])
            digest.update(passage["ids"].tobytes())
            columns["passage_starts"].append([sentences])
            columns["sentence_lengths"].append(passage["sentence_lengths"])
            tokens += len(passage["ids"])
        progress.update(len(chosen))
    progress.close()
    sentences = columns["sentence_lengths"].length
    if sentences:
        columns["document_hashes"].append([_as_number(digest)])
    columns["document_starts"].append([sentences])
    columns["passage_starts"].append([sentences])
    for column in columns.values():
        column.close()
    documents = columns["document_hashes"].length
    return {"documents": documents, "sentences": sentences, "tokens": tokens}


def unknown_characters(corpus: Corpus) -> float | None:
    """Share of the characters of the whole source that are <unk>; None where it was not counted."""
    manifest = corpus.manifest
    if "unknown_characters" not in manifest:
        return None
    return manifest["unknown_characters"] / manifest["characters"]


def differences(before: dict, now: dict) -> list[str]:
    """What differs between two descriptions of corpora, in words."""
    changed = [
        f"{name} ({before.get(name)} -> {now[name]})"
        for name in ("format", "lower_case", "strip_accents", "max_documents", "splitter")
        if before.get(name) != now[name]
    ]
    if before["tokenizer"] != now["tokenizer"]:
        changed.append("tokenizer")
    ours, theirs = now["source"], before["source"]
    files, old_files = ({f["file"]: f for f in s.get("files", ())} for s in (ours, theirs))
    touched = [name for name, f in files.items() if old_files.get(name, f) != f]
    for words, names in (
        ("changed files", touched),
        ("added files", sorted(files.keys() - old_files.keys())),
        ("removed files", sorted(old_files.keys() - files.keys())),
    ):
        if names:
            changed.append(f"{words} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    others = {k: v for k, v in ours.items() if k != "files"}
    if others != {k: v for k, v in theirs.items() if k != "files"}:
        changed.append(f"source ({others})")
    elif not changed and ours != theirs:
        changed.append("order of its files")
    return changed


def _as_number(digest) -> int:
    return int.from_bytes(digest.digest())


class _Column:
    """A one-dimensional .npy file that is written piece by piece."""

    def __init__(self, path: Path, dtype):
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._file = open(path, "wb")  # noqa: SIM115, closed by close()
        self._write_header()

    def append(self, values) -> None:
        array = np.asarray(values, self._dtype)
        self._file.write(array.tobytes())
        self.length += len(array)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # numpy leaves room for the first axis to grow
        self._file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)},
        )
