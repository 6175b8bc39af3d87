"""Text in columns: Parquet files and TFDS datasets. Never imports jax."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from etils import epath

from albert.data.files import file_identities, rows_of
from albert.data.reading import Bad, Parsed, SourceError
from albert.data.text_files import document_of

_ROWS_PER_BLOCK = 256
_ROWS_PER_PART = 100_000
_MAX_PARTS = 512  # a corpus has a file per part, and a process cannot keep thousands open


class Rows(NamedTuple):
    """Some rows of a Parquet file, or why there are none."""

    file: str
    first: int
    texts: list
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A string column of Parquet files; line breaks in a text separate paragraphs."""

    spec: str
    files: tuple[str, ...]
    text_field: str

    paragraphs = True

    @cached_property
    def _file_identities(self) -> list[dict]:
        return file_identities(self.files)

    def identity(self) -> dict:
        return {"kind": "parquet", "text_field": self.text_field, "files": self._file_identities}

    def parts(self) -> list[tuple[str, ...]]:
        ranges = rows_of(len(self.files), -(-len(self.files) // _MAX_PARTS))
        return [self.files[first:last] for first, last in ranges]

    def blocks(self, part: tuple[str, ...]) -> Iterator[Rows]:
        for file in part:
            yield from self._blocks_of(file)

    def _blocks_of(self, file: str) -> Iterator[Rows]:
        import pyarrow
        import pyarrow.parquet

        first = 0
        try:
            with epath.Path(file).open("rb") as stream:
                table = pyarrow.parquet.ParquetFile(stream)
                if self.text_field not in table.schema_arrow.names:
                    raise SourceError(
                        f"{file}: no column {self.text_field!r}; it has "
                        f"{', '.join(table.schema_arrow.names)}. Name the column that holds the "
                        "text with --config.data.text_field."
                    )
                for batch in table.iter_batches(_ROWS_PER_BLOCK, columns=[self.text_field]):
                    yield Rows(file, first, batch.column(0).to_pylist())
                    first += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            yield Rows(file, first, [], f"{file}, row {first}: not Parquet, or damaged: {error}")

    def parse(self, block: Rows) -> Parsed:
        if block.problem:
            return Parsed([], 1, 1, (block.problem,))
        return _parse(
            ((f"{block.file}, row {block.first + i}", text) for i, text in enumerate(block.texts)),
            self.text_field,
        )


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Any dataset of tensorflow_datasets that has a text feature, read without TensorFlow."""

    spec: str
    name: str
    split: str
    text_field: str

    paragraphs = True

    def __reduce__(self):
        return (TfdsSource, (self.spec, self.name, self.split, self.text_field))

    @cached_property
    def _data(self):
        import tensorflow_datasets as tfds

        try:
            return tfds.data_source(self.name, split=self.split)
        except Exception as error:  # TFDS raises its own, import and I/O errors alike
            raise SourceError(
                f"TFDS cannot give {self.name} (split {self.split}) without TensorFlow: {error}\n"
                "The dataset must exist and be prepared in the array_record format; its folder "
                "is taken from the environment variable TFDS_DATA_DIR."
            ) from error

    def identity(self) -> dict:
        info = self._data.dataset_info
        return {
            "kind": "tfds",
            "name": info.full_name,
            "split": self.split,
            "examples": len(self._data),
            "bytes": info.splits[self.split].num_bytes,
            "text_field": self.text_field,
        }

    def parts(self) -> list[tuple[int, int]]:
        count = len(self._data)
        return list(rows_of(count, max(_ROWS_PER_PART, count // _MAX_PARTS)))

    def blocks(self, part: tuple[int, int]) -> Iterator[tuple[int, int]]:
        first, last = part
        return ((first + a, first + b) for a, b in rows_of(last - first, _ROWS_PER_BLOCK))

    def parse(self, block: tuple[int, int]) -> Parsed:
        first, last = block
        records = self._data.__getitems__(list(range(first, last)))
        if records and self.text_field not in records[0]:
            raise SourceError(
                f"{self.spec}: no feature {self.text_field!r}; it has {', '.join(records[0])}. "
                "Name the feature that holds the text with --config.data.text_field."
            )
        return _parse(
            ((f"{self.spec}, record {first + i}", r[self.text_field])
             for i, r in enumerate(records)), self.text_field,
        )  # fmt: skip


def _parse(records: Iterator[tuple[str, object]], text_field: str) -> Parsed:
    """Documents of (place, text) pairs."""
    bad, documents = Bad(), []
    for place, text in records:
        document, reason = document_of(text, text_field)
        if document:
            documents.append(document)
        else:
            bad.add(f"{place}: {reason}")
    return bad.parsed(documents, len(documents) + bad.count)
