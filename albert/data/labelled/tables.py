"""Records with named columns: TSV, CSV, JSON lines, Parquet, TFDS. Never imports jax."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from albert.data.sources.base import SourceError
from albert.data.tokenizer import unwritable
from albert.runtime.paths import place

_LONGEST_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
FORMATS = (".tsv", ".csv", ".jsonl", ".parquet")
Record = dict[str, Any]


def table_problem(source: str) -> str | None:
    """Why a source cannot be one, a phrase; looks for the file and reads nothing."""
    if source.startswith("tfds:"):
        name, colon, split = source.removeprefix("tfds:").rpartition(":")
        return None if colon and name and split else "is not tfds:NAME:SPLIT"
    path = place(source)
    if path.suffix.lower() not in FORMATS:
        return f"must end in {', '.join(FORMATS)}, or be tfds:NAME:SPLIT"
    return None if path.is_file() else "is not a file"


def records(source: str) -> Iterator[tuple[str, Record]]:
    """Every record of a source, with its place for messages: "FILE, line N".

    The first line of TSV and CSV names the columns. In TSV a quote is a plain character and a cell
    holds neither tab nor line break; in CSV quotes enclose cells, as in RFC 4180.

    Raises SourceError for what cannot be read; names file, line and column.
    """
    if source.startswith("tfds:"):
        name, _, split = source.removeprefix("tfds:").rpartition(":")
        for number, record in enumerate(tfds_records(name, split)):
            yield f"{source}, record {number}", record
        return
    path = place(source)
    readers = {".tsv": _tsv, ".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})"
                ) from error
            yield number, text.rstrip("\r\n")


def _tsv(path: Path) -> Iterator[tuple[str, Record]]:
    columns: list[str] = []
    for number, line in _lines(path):
        cells = line.split("\t")
        if number == 1:
            columns = _named(cells, path)
        elif line:
            yield _row(columns, cells, f"{path}, line {number}")


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    text = (f"{line}\n" for _, line in _lines(path))  # checked to be UTF-8, line by line
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(text, strict=True)
    columns: list[str] = []
    first = 1
    try:
        for cells in reader:
            if not columns:
                columns = _named(cells, path)
            elif cells:
                yield _row(columns, cells, f"{path}, line {first}")
            first = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path}, line {first}: not CSV: {error}") from error


def _named(cells: list[str], path: Path) -> list[str]:
    columns = [cell.strip() for cell in cells]
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise SourceError(f"{path}, line 1: two columns are called {twice[0]!r}")
    return columns


def _row(columns: list[str], cells: list[str], where: str) -> tuple[str, Record]:
    if len(cells) != len(columns):
        raise SourceError(
            f"{where}: {len(cells)} cells, and line 1 names {len(columns)} columns "
            f"({', '.join(columns)})"
        )
    return where, dict(zip(columns, cells, strict=True))


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, json_record(line, where)


def json_record(line: str, where: str) -> Record:
    """The object that a line of JSON is; raises SourceError where it is none, or holds a text that
    cannot be written."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise SourceError(f"{where}: a {type(record).__name__}, not an object")
    if "\\u" in line:
        for name, value in record.items():
            if wrong := unwritable(json.dumps({name: value}, ensure_ascii=False)):
                raise SourceError(f"{where}, field {name!r}: {wrong.partition(' at ')[0]}")
    return record


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    yield f"{path}, row {number}", record
                    number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not Parquet, or is damaged: {error}") from error


def tfds_records(name: str, split: str) -> Iterator[Record]:
    """The records of a split of TFDS, texts as str and classes by their names.

    Raises SourceError where TFDS cannot give it.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    try:
        data = tfds.data_source(name, split=split)
        features = data.dataset_info.features
        for number in range(len(data)):
            record = {}
            for column, value in data[number].items():
                feature = features[column]
                if isinstance(value, bytes):
                    value = value.decode("utf-8")
                elif isinstance(feature, tfds.features.ClassLabel):
                    value = None if int(value) < 0 else feature.int2str(int(value))
                elif isinstance(value, np.generic):
                    value = value.item()
                record[column] = value
            yield record
    except Exception as error:  # TFDS raises its own, import and I/O errors alike
        raise SourceError(
            f"TFDS cannot give {name} (split {split}) without TensorFlow: {error}\n"
            "The dataset must exist and be prepared in the array_record format; its folder is "
            "taken from the environment variable TFDS_DATA_DIR."
        ) from error
