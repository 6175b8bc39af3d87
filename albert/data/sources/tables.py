"""Text in columns: Parquet files and TFDS datasets. Never imports jax."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from albert.data.sources.base import MAX_PARTS, Bad, BadRecord, Parsed, SourceError
from albert.data.sources.files import file_identities, rows_of
from albert.data.sources.text_files import document_of

_ROWS_PER_BLOCK = 256
_ROWS_PER_PART = 100_000


class Rows(NamedTuple):
    """Some rows of a Parquet file, or how many there should be and why there are none."""

    file: str
    first: int
    texts: list
    missing: int = 0
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A string column of Parquet files; line breaks in a text separate paragraphs."""

    spec: str
    files: tuple[str, ...]
    text_field: str
    left_out: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    memory: Path | None = dataclasses.field(default=None, kw_only=True)  # of digests of files

    paragraphs = True

    @cached_property
    def _file_identities(self) -> list[dict]:
        return file_identities(self.files, self.memory)

    def identity(self) -> dict:
        return {"kind": "parquet", "text_field": self.text_field, "files": self._file_identities}

    def parts(self) -> list[tuple[str, ...]]:
        ranges = rows_of(len(self.files), -(-len(self.files) // MAX_PARTS))
        return [self.files[first:last] for first, last in ranges]

    def blocks(self, part: tuple[str, ...]) -> Iterator[Rows]:
        for file in part:
            yield from self._blocks_of(file)

    def _blocks_of(self, file: str) -> Iterator[Rows]:
        import pyarrow
        import pyarrow.parquet

        first = rows = 0
        try:
            with epath.Path(file).open("rb") as stream:
                table = pyarrow.parquet.ParquetFile(stream)
                rows = table.metadata.num_rows
                names = table.schema_arrow.names
                if self.text_field not in names:
                    raise SourceError(
                        f"{file}: no column {self.text_field!r}; it has {', '.join(names)}. Name "
                        "the column that holds the text with --config.data.text_field."
                    )
                for batch in table.iter_batches(_ROWS_PER_BLOCK, columns=[self.text_field]):
                    yield Rows(file, first, _values(batch.column(0)))
                    first += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise SourceError(f"{file}: cannot be read: {error.strerror}") from error
            yield Rows(file, first, [], max(rows - first, 1), f"not Parquet, or damaged: {error}")

    def parse(self, block: Rows) -> Parsed:
        if block.problem:
            record = BadRecord(f"{block.file}, row {block.first}", block.problem)
            return Parsed([], block.missing, block.missing, (record,))
        return _parse(
            ((f"{block.file}, row {block.first + i}", text) for i, text in enumerate(block.texts)),
            self.text_field,
        )

    def place(self, record: BadRecord) -> str:
        return record.where


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Any dataset of tensorflow_datasets that has a text feature, read without TensorFlow."""

    spec: str
    name: str
    split: str
    text_field: str

    paragraphs = True
    left_out = ()

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
        return list(rows_of(count, max(_ROWS_PER_PART, -(-count // MAX_PARTS))))

    def blocks(self, part: tuple[int, int]) -> Iterator[tuple[int, int]]:
        first, last = part
        return ((first + a, first + b) for a, b in rows_of(last - first, _ROWS_PER_BLOCK))

    def parse(self, block: tuple[int, int]) -> Parsed:
        return _parse(
            ((f"{self.spec}, record {number}", self._text(number)) for number in range(*block)),
            self.text_field,
        )

    def _text(self, number: int) -> object:
        try:
            record = self._data[number]
        except RuntimeError as error:  # what ArrayRecord raises where a file is damaged
            return error
        if self.text_field not in record:
            raise SourceError(
                f"{self.spec}: no feature {self.text_field!r}; it has {', '.join(record)}. "
                "Name the feature that holds the text with --config.data.text_field."
            )
        return record[self.text_field]

    def place(self, record: BadRecord) -> str:
        return record.where


def _values(column: Any) -> list:
    """The rows of a column as Python's objects; strings as bytes, since they may be no UTF-8."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    for is_kind, as_bytes in (
        (kinds.is_string, pyarrow.binary()),
        (kinds.is_large_string, pyarrow.large_binary()),
        (kinds.is_string_view, pyarrow.binary_view()),
    ):
        if is_kind(column.type):
            column = column.cast(as_bytes)
    return column.to_pylist()


def _parse(records: Iterator[tuple[str, object]], text_field: str) -> Parsed:
    """Documents of (place, text) pairs; in place of a text, the error of reading it."""
    bad, documents = Bad(), []
    for place, text in records:
        if isinstance(text, Exception):
            bad.add(BadRecord(place, f"damaged: {text}"))
            continue
        document, reason = document_of(text, text_field)
        if document:
            documents.append(document)
        else:
            bad.add(BadRecord(place, reason))
    return bad.parsed(documents, len(documents))
