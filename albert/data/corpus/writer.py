"""From a source to a prepared corpus, on all cores of a machine.

Blocks of the source are parsed, split into sentences and tokenised by a process per core; this
one writes what comes back, in order, a file of passages for every part of the source. A file that
is finished is not made again when a run that failed is repeated. Never imports jax.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from albert.data.cache import StoreError, fingerprint_of, made_once
from albert.data.corpus.parts import PARTS, Encoded, PartWriter, write_json
from albert.data.corpus.prepared import FORMAT, PreparedText
from albert.data.corpus.reader import (
    SPLIT,
    Corpus,
    Passages,
    differences,
    index_digests,
    passages_digests,
    passages_folder,
    passages_of,
    write_index,
)
from albert.data.sentences import split_sentences
from albert.data.sources.base import BadRecord, Source, SourceError, Tally
from albert.data.tokenizer import UNK, WORD_MARK, Tokenizer
from albert.runtime.paths import is_remote, modified


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What decides the contents of a corpus."""

    source: Source
    tokenizer: Tokenizer
    language: str  # ISO code, for splitting paragraphs into sentences
    max_documents: int  # the first of the source; 0 for all
    max_bad_share: float  # of the records: more bad ones stop it

    @property
    def dtype(self):
        return np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32

    def description(self) -> dict:
        """What it was made from; the fingerprint is that of this."""
        return {
            "format": FORMAT,
            "source": self.source.identity(),
            "tokenizer": self.tokenizer.fingerprint,
            "lower_case": self.tokenizer.lower_case,
            "strip_accents": self.tokenizer.strip_accents,
            "max_documents": self.max_documents,
            # The splitter has no part in text that is split already.
            "splitter": [self.language, importlib.metadata.version("sentencex")]
            if self.source.paragraphs
            else None,
        }

    def folder(self, parent: Path) -> Path:
        return corpus_folder(parent, fingerprint_of(self.description()))

    def encode(self, block: Any) -> Encoded:
        """The documents of a block as passages."""
        parsed = self.source.parse(block)
        split = [
            split_sentences(document, self.source.paragraphs, self.language)
            for document in parsed.documents
        ]
        texts = [sentence for document in split for sentence in document]
        ids_of_all = self.tokenizer.encode_batch(texts)
        unknown = sum(
            self._unknown(text) for text, ids in zip(texts, ids_of_all, strict=True) if UNK in ids
        )
        encoded = iter(ids_of_all)
        documents = []
        bad, examples = parsed.bad, list(parsed.examples)
        for document in split:
            sentences = [ids for ids in itertools.islice(encoded, len(document)) if ids]
            if sentences:
                ids = np.fromiter(itertools.chain.from_iterable(sentences), self.dtype)
                lengths = np.array([len(s) for s in sentences], np.int64)
                documents.append(list(passages_of(ids, lengths)))
            else:
                bad += 1
                examples.append(BadRecord("a document", f"{document[:1]} has no piece to learn"))
        characters = sum(len(text) for document in parsed.documents for text in document)
        return Encoded(documents, characters, round(unknown), parsed.records, bad, examples)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        return frozenset(self.tokenizer.pieces(range(self.tokenizer.vocab_size)))

    def _unknown(self, text: str) -> float:
        """How many characters of a text are <unk>.

        As a share of its pieces' characters, since normalising may change how many there are.
        """
        known = unknown = 0
        for piece in self.tokenizer.tokenize(text):
            if piece in self._vocabulary:
                known += len(piece) - piece.count(WORD_MARK)
            else:
                unknown += len(piece)
        return len(text) * unknown / (known + unknown) if unknown else 0.0


def prepare_corpus(
    source: Source | PreparedText,
    tokenizer: Tokenizer,
    language: str,
    max_documents: int,
    max_bad_share: float,
    folder: Path,
) -> Corpus:
    """The corpus of the first `max_documents` of `source` (0: all), made now or found in `folder`.

    Tokenises on all cores. The corpus appears under its final name only when it is complete;
    a second process that asks for the same one waits for it.

    Raises:
      SourceError: the source cannot be read, holds no text, or too many of its records are bad.
      StoreError: the folder cannot be written, most often because the disk is full.
    """
    if isinstance(source, PreparedText):
        return source.corpus(tokenizer, language, max_documents)
    preparation = Preparation(source, tokenizer, language, max_documents, max_bad_share)
    return made(preparation, folder, _write_on_cores)


def corpus_folder(folder: Path, fingerprint: str) -> Path:
    """Where the corpus of a fingerprint is kept."""
    return folder / f"corpus-{fingerprint}"


def made(
    preparation: Preparation, folder: Path, write: Callable[[Preparation, Path], dict]
) -> Corpus:
    """The corpus of `preparation`, found in `folder` or made by `write`, which gives its counts."""
    spec = preparation.source.spec
    final = preparation.folder(folder)
    with made_once(final, resumable=True, last="corpus.json") as (_, unfinished):
        if unfinished is not None:
            _tell_what_changed(preparation, folder)
            try:
                if not (unfinished / "corpus.json").exists():
                    counts = write(preparation, unfinished)
                    counts |= write_index(unfinished, spec)
                    manifest = {
                        "fingerprint": fingerprint_of(preparation.description()),
                        "spec": spec,
                        **counts,
                        "index": index_digests(unfinished),
                        "passages": passages_digests(unfinished),
                        **preparation.description(),
                    }
                    write_json(unfinished / "corpus.json", manifest)
                if (unfinished / PARTS).exists():
                    shutil.rmtree(unfinished / PARTS)
            except OSError as error:
                raise StoreError(
                    f"Preparing {spec} in {folder} failed: {error.strerror or error}. The parts "
                    "that are finished are kept: make room, or name another data.folder, and run "
                    "the same command again."
                ) from error
    if not is_remote(final):
        with contextlib.suppress(OSError):  # of a folder that cannot be written none is used last
            os.utime(final / "corpus.json")
    return Corpus(final)


def _tell_what_changed(preparation: Preparation, folder: Path) -> None:
    """Says why a source that was prepared before is prepared again."""
    now = json.loads(json.dumps(preparation.description()))
    for path in sorted(folder.glob("corpus-*/corpus.json"), key=lambda p: -modified(p)):
        before = json.loads(path.read_text())
        if before["spec"] == preparation.source.spec:
            changed = differences(before, now)
            print(
                f"{preparation.source.spec} was prepared before; it is prepared anew, for other "
                f"{', '.join(changed)}.",
                file=sys.stderr,
                flush=True,
            )
            return


_preparation: Preparation


def _start_worker(preparation: Preparation) -> None:
    global _preparation
    _preparation = preparation


def _encode_in_worker(block: Any) -> Encoded:
    return _as_records(_preparation, block)


def _as_records(preparation: Preparation, block: Any) -> Encoded:
    """The block encoded, its passages as the bytes that a file of passages holds."""
    encoded = preparation.encode(block)
    features = _features(np.dtype(preparation.dtype).name)
    return encoded._replace(
        documents=[
            [_in_fixed_order(features.serialize_example(passage)) for passage in document]
            for document in encoded.documents
        ]
    )


def _in_fixed_order(record: bytes) -> bytes:
    """The order of the features in a record is random otherwise."""
    example = tf_example_pb2.Example.FromString(record)
    return example.SerializeToString(deterministic=True)


@lru_cache
def _features(dtype: str) -> Any:
    return Passages(dtype=np.dtype(dtype), data_dir="unused").info.features


def _encoded_blocks(
    preparation: Preparation, blocks: Iterator[tuple[int, Any]]
) -> Generator[tuple[int, Encoded], None, None]:
    """Every block encoded, in order, on all cores once there is enough to do.

    The number beside a block, that of its part, stays with it.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    head = list(itertools.islice(blocks, 3))
    if len(head) < 3 or cores == 1:
        for part, block in itertools.chain(head, blocks):
            yield part, _as_records(preparation, block)
        return
    with concurrent.futures.ProcessPoolExecutor(
        cores,
        # Not fork: the caller may have started jax, whose threads do not survive it.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(preparation,),
    ) as pool:
        pending: deque = deque()

        def first() -> tuple[int, Encoded]:
            part, future = pending.popleft()
            return part, future.result()

        try:
            for part, block in itertools.chain(head, blocks):
                pending.append((part, pool.submit(_encode_in_worker, block)))
                if len(pending) > cores + 2:
                    yield first()
            while pending:
                yield first()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise SourceError(
                f"A process that tokenised {preparation.source.spec} was killed, most often for "
                "memory. The files that are finished are kept: run the same command again, with "
                "more memory or fewer cores (taskset -c)."
            ) from error
        finally:
            for _, future in pending:
                future.cancel()


def _write_on_cores(preparation: Preparation, folder: Path) -> dict:
    """Fills `folder` with passages, going on behind the parts that are finished."""
    for description in passages_folder(folder).glob("*.json"):
        description.unlink()  # of a run that ended here, maybe half of it
    builder = Passages(dtype=preparation.dtype, data_dir=folder)
    parts = preparation.source.parts()
    writers = [PartWriter(folder / PARTS, number) for number in range(len(parts))]
    (folder / PARTS).mkdir(exist_ok=True)
    _write_parts(preparation, parts, writers)
    reports = [writer.report() for writer in writers]
    counts = add_up(preparation, reports)
    passages = [report["passages"] for report in reports]
    _name_shards(builder, list(zip([writer.path for writer in writers], passages, strict=True)))
    return counts


def _write_parts(preparation: Preparation, parts: list, writers: list[PartWriter]) -> None:
    source = preparation.source
    done = next((i for i, writer in enumerate(writers) if not writer.is_finished()), len(parts))
    if done:
        print(f"{source.spec}: {done} of {len(parts)} parts are finished already.", file=sys.stderr)
    reports = [writer.report() for writer in writers[:done]]
    tally = Tally(source, preparation.max_bad_share)
    for report in reports:
        tally.add(report["records"], report["bad"], [BadRecord(*e) for e in report["examples"]])
    documents = sum(report["documents"] for report in reports)
    blocks = (
        (number, block)
        for number in range(done, len(parts))
        for block in source.blocks(parts[number])
    )
    encoded = _encoded_blocks(preparation, blocks)
    with (
        contextlib.closing(encoded),
        tqdm(unit="chars", unit_scale=True, mininterval=1, desc=f"Preparing {source.spec}") as bar,
    ):
        number = done
        for part, block in encoded:
            while number < part:
                writers[number].close()
                number += 1
            if len(parts) > 1:
                bar.set_description(f"Preparing {source.spec}, part {part + 1} of {len(parts)}")
            tally.add(block.records, block.bad, block.examples)
            if preparation.max_documents:
                left = preparation.max_documents - documents
                block = block._replace(documents=block.documents[:left])
            writers[part].add(block)
            documents += len(block.documents)
            bar.update(block.characters)
            if preparation.max_documents and documents == preparation.max_documents:
                break
    for writer in writers[number:]:
        writer.close()


def _name_shards(builder: Passages, files: list[tuple[Path, int]]) -> None:
    """Makes finished files of passages, each with its number of them, a TFDS dataset."""
    files = [(path, count) for path, count in files if count]
    builder.data_path.mkdir(parents=True, exist_ok=True)
    template = builder._get_filename_template(split_name=SPLIT)
    size = 0
    for number, (path, _) in enumerate(files):
        shard = template.sharded_filepath(shard_index=number, num_shards=len(files))
        if path.exists():  # if not, a run that ended here has named it already
            path.rename(shard)
        size += shard.stat().length
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=[n for _, n in files], num_bytes=size, filename_template=template
    )
    builder.info.set_splits(tfds.core.splits.SplitDict([split]))
    builder.info.write_to_directory(builder.data_path)


def add_up(preparation: Preparation, reports: list[dict]) -> dict:
    """The counts of all parts; raises SourceError when too many records were bad."""
    spec = preparation.source.spec
    tally = Tally(preparation.source, preparation.max_bad_share)
    for report in reports:
        tally.add(report["records"], report["bad"], [BadRecord(*e) for e in report["examples"]])
    named = tally.finish()
    if not any(report["documents"] for report in reports):
        raise SourceError(f"{spec} holds no text.")
    counted = {"characters": sum(report["characters"] for report in reports)}
    # Parts that an earlier version has finished do not say it.
    if all("unknown_characters" in report for report in reports):
        counted["unknown_characters"] = sum(report["unknown_characters"] for report in reports)
    return {
        **counted,
        "records": tally.records,
        "bad_records": tally.bad,
        "bad_examples": named,
    }
