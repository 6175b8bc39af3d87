"""A source prepared once: token ids in ArrayRecord, and an index that fits in memory.

A prepared corpus is a folder:

    corpus.json           what it was made from, and its counts
    passages/             TFDS dataset: runs of whole sentences, PASSAGE_TOKENS or a little more
    sentence_lengths.npy  tokens of every sentence, in order
    document_starts.npy   first sentence of every document, and the number of sentences
    document_hashes.npy   64-bit hash of every document's ids
    passage_starts.npy    first sentence of every passage, and the number of sentences

Passages bound what reading one example costs, however long the book it is cut from. The index
alone decides an epoch's plan, so planning reads no text. Never imports jax.
"""

import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from albert.data.sources import Source, SourceError, split_sentences
from albert.data.store import fingerprint_of, made_once
from albert.data.tokenizer import Tokenizer

FORMAT = 1  # part of every fingerprint: raise it when the folder's contents change meaning
PASSAGE_TOKENS = 2048
_BATCH_CHARACTERS = 1_000_000  # of text sent to a tokenising process at a time
_SPLIT = "documents"


class Passages(tfds.core.GeneratorBasedBuilder):
    """TFDS builder over passages that come from `generate`, an iterator of feature dicts."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, dtype=np.uint16, generate=(), **kwargs):
        self._dtype = dtype
        self._generate = generate
        super().__init__(**kwargs)

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
                    "document": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._generate)


class Corpus:
    """A prepared corpus, opened lazily and cheap to send to another process."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.manifest = json.loads((self.path / "corpus.json").read_text())

    def __reduce__(self):
        return (Corpus, (self.path,))

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    @cached_property
    def sentence_lengths(self) -> np.ndarray:
        """uint32 [sentences]."""
        return np.load(self.path / "sentence_lengths.npy", mmap_mode="r")

    @cached_property
    def document_starts(self) -> np.ndarray:
        """int64 [documents + 1]."""
        return np.load(self.path / "document_starts.npy", mmap_mode="r")

    @cached_property
    def document_hashes(self) -> np.ndarray:
        """uint64 [documents]."""
        return np.load(self.path / "document_hashes.npy", mmap_mode="r")

    @cached_property
    def _passage_starts(self) -> np.ndarray:
        return np.load(self.path / "passage_starts.npy", mmap_mode="r")

    @cached_property
    def _passages(self):
        builder = tfds.builder_from_directory(self.path / "passages" / str(Passages.VERSION))
        return builder.as_data_source(_SPLIT)

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """The ids of sentences first, ..., last - 1, an int32 array each."""
        starts = self._passage_starts
        passage = int(np.searchsorted(starts, first, side="right")) - 1
        sentences: list[np.ndarray] = []
        while len(sentences) < last - first:
            record = self._passages[passage]
            bounds = [0, *np.cumsum(record["sentence_lengths"]).tolist()]
            offset = first + len(sentences) - int(starts[passage])
            bounds = bounds[offset : offset + last - first - len(sentences) + 1]
            # numpy.split would take a quarter of the time of making a row.
            ids = record["ids"]
            sentences += [ids[a:b].astype(np.int32) for a, b in itertools.pairwise(bounds)]
            passage += 1
        return sentences


def prepare_corpus(
    source: Source, tokenizer: Tokenizer, language: str, max_documents: int, folder: Path
) -> Corpus:
    """The corpus of the first `max_documents` of `source` (0: all), made now or found in `folder`.

    Tokenises on all cores. The corpus appears under its final name only when it is complete;
    a second process that asks for the same one waits for it.

    Raises:
      SourceError: the source cannot be read or holds no text.
    """
    made_from = {
        "format": FORMAT,
        "source": source.identity(),
        "tokenizer": tokenizer.fingerprint,
        "lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "max_documents": max_documents,
        # The splitter has no part in text that is split already.
        "splitter": [language, importlib.metadata.version("sentencex")]
        if source.paragraphs
        else None,
    }
    fingerprint = fingerprint_of(made_from)
    with made_once(corpus_folder(folder, fingerprint)) as (final, temporary):
        if temporary is not None:
            counts = _write_corpus(source, tokenizer, language, max_documents, temporary)
            manifest = {"fingerprint": fingerprint, "spec": source.spec, **counts, **made_from}
            (temporary / "corpus.json").write_text(json.dumps(manifest, indent=1))
    return Corpus(final)


def corpus_folder(folder: Path, fingerprint: str) -> Path:
    """Where `prepare_corpus` keeps the corpus of a fingerprint."""
    return folder / f"corpus-{fingerprint}"


def encode_documents(
    documents: list[list[str]], tokenizer: Tokenizer, paragraphs: bool, language: str
):
    """Each document as its ids and the lengths of its sentences; what has no ids is left out."""
    split = [split_sentences(document, paragraphs, language) for document in documents]
    encoded = iter(tokenizer.encode_batch([s for document in split for s in document]))
    result = []
    for document in split:
        sentences = [ids for ids in itertools.islice(encoded, len(document)) if ids]
        if sentences:
            ids = np.fromiter(itertools.chain.from_iterable(sentences), np.int32)
            result.append((ids, np.array([len(s) for s in sentences], np.int64)))
    return result


_worker_arguments: tuple = ()


def _start_worker(*arguments):
    global _worker_arguments
    _worker_arguments = arguments


def _encode_in_worker(documents):
    return encode_documents(documents, *_worker_arguments)


def _batches(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += sum(map(len, document))
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded_documents(
    batches: Iterator[list[list[str]]],
    source: Source,
    tokenizer: Tokenizer,
    language: str,
    progress: tqdm,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every document's ids, in order, tokenised on all cores once there is enough to do."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    head = list(itertools.islice(batches, 2))
    if len(head) < 2 or cores == 1:
        for batch in itertools.chain(head, batches):
            progress.update(sum(len(s) for document in batch for s in document))
            yield from encode_documents(batch, tokenizer, source.paragraphs, language)
        return
    with concurrent.futures.ProcessPoolExecutor(
        cores,
        # Not fork: the caller may have started jax, whose threads do not survive it.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer, source.paragraphs, language),
    ) as pool:
        pending: deque = deque()

        def finish_one():
            size, future = pending.popleft()
            encoded = future.result()
            progress.update(size)
            return encoded

        try:
            for batch in itertools.chain(head, batches):
                size = sum(len(s) for document in batch for s in document)
                pending.append((size, pool.submit(_encode_in_worker, batch)))
                if len(pending) > 2 * cores:
                    yield from finish_one()
            while pending:
                yield from finish_one()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise SourceError(
                f"A process that tokenised {source.spec} was killed, most often for memory; "
                "nothing was kept. Run again with more memory or fewer cores (taskset -c)."
            ) from error


def _write_corpus(
    source: Source, tokenizer: Tokenizer, language: str, max_documents: int, folder: Path
) -> dict:
    """Fills `folder` with passages and index; returns the counts."""
    sentence_lengths: list[np.ndarray] = []
    document_hashes: list[int] = []
    document_starts, passage_starts = [0], [0]
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    progress = tqdm(
        desc=f"Preparing {source.spec}", unit="chars", unit_scale=True, mininterval=1, leave=True
    )

    def passages():
        batches = _batches(itertools.islice(source.documents(), max_documents or None))
        for ids, lengths in _encoded_documents(batches, source, tokenizer, language, progress):
            number = len(document_hashes)
            digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
            document_hashes.append(int.from_bytes(digest))
            # A passage ends with the sentence that reaches the next multiple of its size.
            ends = np.cumsum(lengths)
            cuts = np.searchsorted(ends, np.arange(PASSAGE_TOKENS, ends[-1], PASSAGE_TOKENS)) + 1
            bounds = np.unique([0, *cuts, len(lengths)])
            for first, last in itertools.pairwise(bounds):
                yield {
                    "ids": ids[ends[first] - lengths[first] : ends[last - 1]].astype(dtype),
                    "sentence_lengths": lengths[first:last].astype(np.uint32),
                    "document": number,
                }
                passage_starts.append(passage_starts[-1] + int(last - first))
            sentence_lengths.append(lengths.astype(np.uint32))
            document_starts.append(document_starts[-1] + len(lengths))

    failure: list[BaseException] = []
    read_all = False

    def watched():
        # TFDS wraps what its generator raises in an error of its own.
        nonlocal read_all
        try:
            yield from passages()
        except BaseException as error:
            failure.append(error)
            raise
        read_all = True

    builder = Passages(dtype=dtype, generate=watched(), data_dir=folder, file_format="array_record")
    tfds.disable_progress_bar()  # it counts examples of unknown number; ours counts text
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except Exception:
        # Raised again in every case: as the generator's own error, as what TFDS means when it
        # cannot write a dataset of no examples, or as it is (a full disk).
        if failure:
            raise failure[0] from None
        if read_all and not document_hashes:
            raise SourceError(f"{source.spec} holds no text.") from None
        raise
    finally:
        progress.close()
    np.save(folder / "sentence_lengths.npy", np.concatenate(sentence_lengths))
    np.save(folder / "document_starts.npy", np.array(document_starts, np.int64))
    np.save(folder / "document_hashes.npy", np.array(document_hashes, np.uint64))
    np.save(folder / "passage_starts.npy", np.array(passage_starts, np.int64))
    return {
        "documents": len(document_hashes),
        "sentences": document_starts[-1],
        "tokens": int(sum(int(lengths.sum()) for lengths in sentence_lengths)),
        "characters": int(progress.n),
    }
