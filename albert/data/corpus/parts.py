"""Single parts of a corpus while it is being made: their files of passages and their reports.

Never imports jax.
"""

import contextlib
import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module

from albert.data.sources.base import MAX_EXAMPLES, BadRecord

PARTS = "parts"  # folder of what belongs to single parts, while a corpus is not finished


_ADDED = ("characters", "unknown_characters", "records", "bad")  # over the blocks of a part


class Encoded(NamedTuple):
    """A block, tokenised."""

    documents: list[list[Any]]  # each as its passages: features, or records of ArrayRecord
    characters: int  # of text that was read
    unknown_characters: int  # of these, those that the vocabulary does not know
    records: int
    bad: int
    examples: list[BadRecord]


@contextlib.contextmanager
def _told_as_os_error():
    try:
        yield
    except RuntimeError as error:  # all that ArrayRecord raises when it cannot write
        raise OSError(errno.EIO, str(error).split(";")[0]) from error


class PartWriter:
    """Writes the file of one part; its report comes last and says that the part is finished."""

    def __init__(self, folder: Path, number: int):
        self.path = folder / f"{number:05d}.passages"
        self._report = folder / f"{number:05d}.json"
        self._temporary = folder / f"{number:05d}.tmp"
        self._writer: Any = None
        self._counts = {"documents": 0, "passages": 0, **dict.fromkeys(_ADDED, 0)}
        self._examples: list[BadRecord] = []

    def is_finished(self) -> bool:
        return self._report.exists()

    def report(self) -> dict:
        return json.loads(self._report.read_text())

    def add(self, encoded: Encoded) -> None:
        with _told_as_os_error():
            if self._writer is None:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._temporary), "group_size:1"
                )
            for document in encoded.documents:
                for record in document:
                    self._writer.write(record)
        self._counts["passages"] += sum(map(len, encoded.documents))
        self._counts["documents"] += len(encoded.documents)
        for name in _ADDED:
            self._counts[name] += getattr(encoded, name)
        self._examples = [*self._examples, *encoded.examples][:MAX_EXAMPLES]

    def close(self) -> None:
        if self._writer is not None:
            with _told_as_os_error():
                self._writer.close()
            self._check()
            self._temporary.rename(self.path)
        write_report(self._report, self._counts, self._examples)

    def _check(self) -> None:
        """What could not be written, on a full disk for example, is not always told."""
        reader = array_record_module.ArrayRecordReader(str(self._temporary))
        written = reader.num_records() if reader.ok() else 0
        reader.close()
        if written != self._counts["passages"]:
            raise OSError(
                errno.ENOSPC,
                f"{self._temporary} holds {written} of {self._counts['passages']} records",
            )


def write_report(path: Path, counts: dict[str, int], examples: list[BadRecord]) -> None:
    """What is known of a finished part."""
    write_json(path, {**counts, "examples": examples})


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.rename(path)
