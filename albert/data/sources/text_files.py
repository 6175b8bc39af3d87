"""Text files and JSON lines. Never imports jax."""

import abc
import dataclasses
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from albert.data.sources.base import MAX_PARTS, Bad, BadRecord, Parsed, SourceError
from albert.data.sources.files import (
    DAMAGED,
    file_identities,
    file_size,
    is_compressed,
    line_number,
    open_file,
    unified_line_breaks,
)
from albert.data.tokenizer import unwritable

PART_BYTES = 1 << 27  # as stored; more where a source would have over MAX_PARTS
BLOCK_BYTES = 1 << 20  # read at a time
# A document of text that is longer is cut at the end of a line; a longer line is a bad record.
MAX_DOCUMENT_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 20
_LINE_BREAK = rb"(?>\r\n|\r|\n)"  # atomic: what Windows writes is one, never two
_FIRST_LINE_BREAK = re.compile(_LINE_BREAK)
_FIRST_BLANK_LINE = re.compile(_LINE_BREAK + rb"[ \t\f\v]*" + _LINE_BREAK)
_BLANK_LINE = re.compile(rb"\n[ \t\f\v]*\n")  # of unified line breaks
_BOM = b"\xef\xbb\xbf"
_DAMAGED = "damaged or cut off from here on"
_COUNTED = "How much is missing is not known: it counts as all lines in front"


class Range(NamedTuple):
    """Bytes of a file; of a compressed one always all of them, and `end` is -1."""

    file: str
    begin: int
    end: int


class Block(NamedTuple):
    """Whole documents of a file, or why there is none."""

    file: str
    begin: int  # of the range it is in
    line: int  # lines of the range in front of it
    data: bytes
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class _LineFiles(abc.ABC):
    """Files of lines, read in blocks that end where a document ends."""

    spec: str
    files: tuple[str, ...]
    left_out: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    memory: Path | None = dataclasses.field(default=None, kw_only=True)  # of digests of files

    longest_line = 0  # bytes

    @abc.abstractmethod
    def _end_of_first(self, data: bytes) -> int:
        """Where the first document in `data` ends; 0 where none surely does.

        `data` is as it is stored, with line breaks of any system.
        """

    @abc.abstractmethod
    def _end_of_last(self, data: bytes) -> int:
        """Where the last document in `data` that is surely whole ends; 0 if there is none."""

    @cached_property
    def _file_identities(self) -> list[dict]:
        return file_identities(self.files, self.memory)

    def parts(self) -> list[tuple[Range, ...]]:
        """Runs of small files, and pieces of large ones that are not compressed."""
        try:
            sizes = [file_size(file) for file in self.files]
            limit = max(PART_BYTES, -(-sum(sizes) // MAX_PARTS))
            parts: list[tuple[Range, ...]] = []
            part: list[Range] = []
            filled = 0
            for file, size in zip(self.files, sizes, strict=True):
                for piece in self._pieces(file, size, limit):
                    part.append(piece)
                    filled += size if piece.end < 0 else piece.end - piece.begin
                    if filled >= limit:
                        parts.append(tuple(part))
                        part, filled = [], 0
            return [*parts, tuple(part)] if part else parts
        except OSError as error:
            raise SourceError(f"{self.spec}: cannot be read: {error.strerror or error}") from error

    def _pieces(self, file: str, size: int, limit: int) -> Iterator[Range]:
        if is_compressed(file):
            yield Range(file, 0, -1)
            return
        begin = 0
        with open_file(file) as stream:
            while begin < size:
                end = size
                if begin + limit < size:
                    stream.seek(begin + limit)
                    end = begin + limit + self._until_next_document(stream)
                yield Range(file, begin, end)
                begin = end

    def _until_next_document(self, stream: BinaryIO) -> int:
        passed = 0  # bytes that are not looked at any more
        data = b""
        while more := stream.read(BLOCK_BYTES):
            data += more
            end = self._end_of_first(data)
            if not end and passed + len(data) > MAX_DOCUMENT_BYTES:
                end = _end_of_first_line(data)
            if end:
                if data[end - 1 : end + 1] == b"\r" and stream.read(1) == b"\n":
                    end += 1  # the other half of what Windows writes
                return passed + end
            # The end of a document may have begun with the last line break.
            last = max(data.rfind(b"\n"), data.rfind(b"\r"))
            if data[max(last - 1, 0) : last + 1] == b"\r\n":
                last -= 1
            keep = data[last:] if last >= 0 and len(data) - last < BLOCK_BYTES else b""
            passed += len(data) - len(keep)
            data = keep
        return passed + len(data)

    def blocks(self, part: tuple[Range, ...]) -> Iterator[Block]:
        for file, begin, end in part:
            line = 0
            try:
                with open_file(file) as stream:
                    if begin:
                        stream.seek(begin)
                    for data in self._cut(stream, end - begin if end >= 0 else 1 << 62):
                        yield Block(file, begin, line, data)
                        line += data.count(b"\n")
            except DAMAGED as error:
                yield Block(file, begin, line, b"", f"{_DAMAGED} ({error}). {_COUNTED}")
            except OSError as error:
                raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error

    def _cut(self, stream: BinaryIO, size: int) -> Iterator[bytes]:
        """The next `size` bytes in blocks; of a line that is far too long, the beginning."""
        rest = b""
        half = b""  # a carriage return, which may be half of a line break
        damage: Exception | None = None
        while True:
            read, damage = _read(stream, min(BLOCK_BYTES, size))
            size -= len(read)
            data = half + read
            half = data[-1:] if read and data.endswith(b"\r") else b""
            rest += unified_line_breaks(data.removesuffix(half))
            end = self._end_of_last(rest)
            if not end and len(rest) > MAX_DOCUMENT_BYTES:
                end = rest.rfind(b"\n") + 1
                if not end:
                    rest = rest[: self.longest_line + 1]
            if damage:
                end = rest.rfind(b"\n") + 1  # half a line is none
            elif not read:
                end = len(rest)
            if end:
                yield rest[:end]
                rest = rest[end:]
            if damage:
                raise damage
            if not read:
                return

    def _lines(self, block: Block, bad: Bad) -> list[tuple[int, str]]:
        """Number in the block and stripped text of every line, blank ones too, but bad ones."""
        first = not block.begin and not block.line
        data = block.data.removeprefix(_BOM) if first else block.data
        try:
            lines = data.decode().split("\n")
            # No character takes more than four bytes.
            if b"\0" not in data and max(map(len, lines)) * 4 <= self.longest_line:
                return [(number, line.strip()) for number, line in enumerate(lines)]
        except UnicodeDecodeError:
            pass
        good = []
        for number, raw in enumerate(data.split(b"\n")):
            if len(raw) > self.longest_line:
                reason = f"longer than {self.longest_line} bytes"
            elif b"\0" in raw:
                reason = f"a NUL byte at position {raw.index(0) + 1}"
            else:
                try:
                    good.append((number, raw.decode().strip()))
                    continue
                except UnicodeDecodeError as error:
                    reason = (
                        f"not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}); "
                        "convert the file, for example with iconv"
                    )
            bad.add(BadRecord(block.file, reason, block.begin, block.line + number))
        return good

    def place(self, record: BadRecord) -> str:
        if record.line < 0:
            return record.where
        # Counts the lines in front by reading them, so it is for the few that are told.
        return f"{record.where}, line {line_number(record.where, record.begin) + record.line}"


@dataclasses.dataclass(frozen=True)
class TextSource(_LineFiles):
    """Text files with a blank line between documents; a record is a line."""

    paragraphs: bool

    longest_line = MAX_LINE_BYTES

    def identity(self) -> dict:
        return {"kind": "text" if self.paragraphs else "lines", "files": self._file_identities}

    def _end_of_first(self, data: bytes) -> int:
        blank = _FIRST_BLANK_LINE.search(data)
        return blank.end() if blank else 0

    def _end_of_last(self, data: bytes) -> int:
        end = data.rfind(b"\n\n")
        if end >= 0:
            return end + 2
        return max((blank.end() for blank in _BLANK_LINE.finditer(data)), default=0)

    def parse(self, block: Block) -> Parsed:
        bad = Bad()
        if block.problem:
            bad.add(_missing(block))
            return bad.parsed([], 0)
        documents: list[list[str]] = [[]]
        lines: list[list[int]] = [[]]
        for number, line in self._lines(block, bad):
            if line:
                documents[-1].append(line)
                lines[-1].append(block.line + number)
            elif documents[-1]:
                documents.append([])
                lines.append([])
        if not documents[-1]:
            del documents[-1], lines[-1]
        return bad.parsed(documents, sum(map(len, documents)), lines)


@dataclasses.dataclass(frozen=True)
class JsonSource(_LineFiles):
    """Files of one JSON object per line; line breaks in a text separate paragraphs."""

    text_field: str

    paragraphs = True
    longest_line = MAX_DOCUMENT_BYTES

    def identity(self) -> dict:
        return {"kind": "jsonl", "text_field": self.text_field, "files": self._file_identities}

    def _end_of_first(self, data: bytes) -> int:
        return _end_of_first_line(data)

    def _end_of_last(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def parse(self, block: Block) -> Parsed:
        bad = Bad()
        if block.problem:
            bad.add(_missing(block))
            return bad.parsed([], 0)
        documents = []
        lines = []
        for number, line in self._lines(block, bad):
            if not line:
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                document: list[str] = []
                reason = f"not JSON: {error}"
            else:
                text = record.get(self.text_field) if isinstance(record, dict) else None
                document, reason = document_of(text, self.text_field)
            if document:
                documents.append(document)
                lines.append([block.line + number] * len(document))
            else:
                bad.add(BadRecord(block.file, reason, block.begin, block.line + number))
        return bad.parsed(documents, len(documents), lines)


def _missing(block: Block) -> BadRecord:
    """What a file lacks that ends in damage. Nobody knows how much that is."""
    return BadRecord(
        block.file, block.problem, block.begin, block.line, stands_for=max(block.line, 1)
    )


def _end_of_first_line(data: bytes) -> int:
    end = _FIRST_LINE_BREAK.search(data)
    return end.end() if end else 0


def _read(stream: BinaryIO, size: int) -> tuple[bytes, Exception | None]:
    """Up to `size` bytes, and the damage that ended them; what came in front of it is kept."""
    read = getattr(stream, "read1", stream.read)
    data = bytearray()
    while len(data) < size:
        try:
            more = read(size - len(data))
        except DAMAGED as error:
            return bytes(data), error
        if not more:
            break
        data += more
    return bytes(data), None


def document_of(text: object, text_field: str) -> tuple[list[str], str]:
    """The paragraphs of a record's text, or none and what is wrong with it."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            return [], f"not UTF-8: {error}"
    if not isinstance(text, str):
        return [], (
            f"no text in the field {text_field!r}; name the field that holds it with "
            "--config.data.text_field"
        )
    if wrong := unwritable(text):
        return [], wrong
    if "\0" in text:
        return [], f"a NUL character at position {text.index(chr(0)) + 1}"
    paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
    return paragraphs, "" if paragraphs else f"the field {text_field!r} is empty"
