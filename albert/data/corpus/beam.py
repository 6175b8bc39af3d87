"""From a source to a prepared corpus on many machines, by Apache Beam.

Every part of the source is made by a call on some worker; the corpus is that of `corpus_writer`.
Apache Beam is an extra: requirements-beam.txt. Never imports jax.
"""

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from albert.data.corpus.parts import PARTS, write_report
from albert.data.corpus.reader import Corpus, Passages, passages_folder
from albert.data.corpus.writer import Preparation, add_up, made
from albert.data.sources.base import Source, SourceError, Tally
from albert.data.tokenizer import Tokenizer
from albert.runtime.paths import is_remote


def prepare_corpus_with_beam(
    source: Source,
    tokenizer: Tokenizer,
    language: str,
    max_bad_share: float,
    folder: Path,
    runner: str,
    options: list[str],
) -> Corpus:
    """As `prepare_corpus` with every document, by an Apache Beam runner.

    What failed before all parts were there starts again.

    Args:
      folder: must be the same place on this machine and on every worker.
      runner: of Beam, such as DirectRunner, DataflowRunner, FlinkRunner, SparkRunner.
      options: of the pipeline, as on its command line: ["--project=...", ...].

    Raises:
      SourceError, StoreError: as `prepare_corpus`.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise SourceError("Apache Beam is not installed: pip install -r requirements-beam.txt")
    if is_remote(folder) and runner != "DirectRunner":
        raise SourceError(
            f"{folder}: the workers of {runner} write files of their own, which a bucket takes "
            "only where it is mounted. Name the folder as they and this machine see it, such as "
            "/mnt/BUCKET/prepared; training then finds it under gs://."
        )
    preparation = Preparation(source, tokenizer, language, 0, max_bad_share)
    write = partial(_write_with_beam, runner=runner, options=options)
    return made(preparation, folder, write)


@dataclasses.dataclass(frozen=True)
class _BeamShard:
    """The passages of one part, as a shard of `Passages`; runs on a worker of Beam."""

    preparation: Preparation
    part: Any
    report: Path

    def __call__(self) -> Iterator[tuple[int, dict]]:
        source = self.preparation.source
        tally = Tally(source, self.preparation.max_bad_share)
        counts = {"documents": 0, "passages": 0, "characters": 0, "unknown_characters": 0}
        for block in source.blocks(self.part):
            encoded = self.preparation.encode(block)
            tally.add(encoded.records, encoded.bad, encoded.examples)
            for document in encoded.documents:
                for passage in document:
                    yield counts["passages"], passage
                    counts["passages"] += 1
            counts["documents"] += len(encoded.documents)
            counts["characters"] += encoded.characters
            counts["unknown_characters"] += encoded.unknown_characters
        counts |= {"records": tally.records, "bad": tally.bad}
        write_report(self.report, counts, tally.examples)


def _write_with_beam(
    preparation: Preparation, folder: Path, runner: str, options: list[str]
) -> dict:
    """Fills `folder` with passages, a part by each call of a Beam worker."""
    from apache_beam.options.pipeline_options import PipelineOptions

    # Apart from the reports of parts that cores have made, whose files lie beside them.
    reports = folder / PARTS / "beam"
    reports.mkdir(parents=True, exist_ok=True)
    shards = [
        _BeamShard(preparation, part, reports / f"{number:05d}.json")
        for number, part in enumerate(preparation.source.parts())
    ]
    described = (passages_folder(folder) / "dataset_info.json").exists()
    if not (described and all(shard.report.exists() for shard in shards)):
        # The builder takes whatever is there for finished.
        shutil.rmtree(passages_folder(folder), ignore_errors=True)
    builder = Passages(dtype=preparation.dtype, shards=shards, data_dir=folder)
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            beam_runner=runner, beam_options=PipelineOptions(options)
        )
    )
    # What the builder leaves besides.
    shutil.rmtree(folder / "downloads", ignore_errors=True)
    for path in builder.data_path.glob("*.shard_infos.json"):
        path.unlink()
    return add_up(preparation, [json.loads(shard.report.read_text()) for shard in shards])
