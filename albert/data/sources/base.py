"""What every source of text gives: parts, blocks, documents, and the records that were bad.

A source is cut into parts that need nothing of each other: a part is what becomes one file of a
prepared corpus, what a restart need not do again, and what another machine can do. A part is read
as blocks, which are cheap to make and to send to another process; a block is parsed into
documents there. Parts and blocks depend on the source alone, never on who reads them.

Never imports jax.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

MAX_PARTS = 512  # a corpus has a file per part, and a process cannot keep thousands open
MAX_EXAMPLES = 5  # bad records that are named
# So many bad records more than the share allows stop at once; the share is judged at the end.
_PATIENCE = 1000


class SourceError(ValueError):
    """A source is missing, empty or unreadable; says which file and line or record."""


class BadRecord(NamedTuple):
    """A record that is left out.

    A line is counted from 0 at a byte of its file; `Source.place` says which line of the file that
    is, once somebody is to be told. Without a line, `where` says it all. It counts as the records
    that it stands for.
    """

    where: str
    reason: str
    begin: int = 0
    line: int = -1
    stands_for: int = 1


class Parsed(NamedTuple):
    """The content of a block."""

    documents: list[list[str]]  # each as its sentences or paragraphs, none of them blank
    records: int  # lines of text, JSON lines, rows of tables: what can be bad on its own
    bad: int  # of them, left out
    examples: tuple[BadRecord, ...]  # the first bad ones
    # Of every string of the documents its line, as a bad record's is counted; none of sources that
    # have no lines.
    lines: tuple[list[int], ...] = ()


class Source(Protocol):
    """A readable body of text."""

    @property
    def spec(self) -> str: ...

    @property
    def paragraphs(self) -> bool:
        """Whether the strings of a document are paragraphs; else they are sentences already."""
        ...

    @property
    def left_out(self) -> tuple[str, ...]:
        """Files of a folder or glob that are not read, a phrase for each kind of them."""
        ...

    def identity(self) -> dict:
        """What decides its content; JSON-serialisable, part of a prepared corpus's fingerprint."""
        ...

    def parts(self) -> list[Any]:
        """Independent parts, in order, picklable and small. Raises SourceError."""
        ...

    def blocks(self, part: Any) -> Iterator[Any]:
        """The blocks of a part, in order, picklable, a megabyte or so. Raises SourceError."""
        ...

    def parse(self, block: Any) -> Parsed:
        """The documents of a block. Raises SourceError."""
        ...

    def place(self, record: BadRecord) -> str:
        """File and record, for a reader."""
        ...


class Bad:
    """Collects the bad records of a block: a count, and the first."""

    def __init__(self):
        self.count = 0
        self.examples: list[BadRecord] = []

    def add(self, record: BadRecord) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(record)
        self.count += record.stands_for

    def parsed(
        self, documents: list[list[str]], good: int, lines: Sequence[list[int]] = ()
    ) -> Parsed:
        return Parsed(documents, good + self.count, self.count, tuple(self.examples), tuple(lines))


@dataclasses.dataclass
class Tally:
    """Counts records over a source, and stops when too many are bad."""

    source: Source
    max_bad_share: float
    records: int = 0
    bad: int = 0
    missing: int = 0  # of the bad ones, those of damaged files that nobody has seen
    examples: list[BadRecord] = dataclasses.field(default_factory=list)

    def add(self, records: int, bad: int, examples: Sequence[BadRecord]) -> None:
        """Raises SourceError when there are far too many already."""
        self.records += records
        self.bad += bad
        self.examples += examples[: MAX_EXAMPLES - len(self.examples)]
        # What a damaged file lacks is many at once, of a source that may go on for long.
        self.missing += sum(record.stands_for - 1 for record in examples)
        if self.bad - self.missing > _PATIENCE + self.max_bad_share * self.records:
            raise self._too_many()

    def finish(self) -> list[str]:
        """The bad records that are named; tells of them on stderr.

        Raises SourceError when there were too many.
        """
        if self.bad > self.max_bad_share * self.records:
            raise self._too_many()
        named = self._named()
        if self.bad:
            lines = "\n".join(named)
            print(
                f"{self.source.spec}: left out {self.bad} of {self.records} records:\n{lines}",
                file=sys.stderr,
                flush=True,
            )
        return named

    def _too_many(self) -> SourceError:
        return SourceError(
            f"{self.source.spec}: {self.bad} of {self.records} records are bad, which is more than "
            f"data.max_bad_share {self.max_bad_share:g} allows:\n"
            + "\n".join(self._named())
            + "\nMend the text, or raise --config.data.max_bad_share to leave so many out."
        )

    def _named(self) -> list[str]:
        lines = [f"  {self.source.place(record)}: {record.reason}" for record in self.examples]
        more = self.bad - sum(record.stands_for for record in self.examples)
        return [*lines, f"  and {more} more"] if more else lines


def read_documents(source: Source, max_bad_share: float) -> Iterator[list[str]]:
    """Every document in order, one process reading; raises SourceError, too many bad included."""
    tally = Tally(source, max_bad_share)
    for part in source.parts():
        for block in source.blocks(part):
            parsed = source.parse(block)
            tally.add(parsed.records, parsed.bad, parsed.examples)
            yield from parsed.documents
    tally.finish()
