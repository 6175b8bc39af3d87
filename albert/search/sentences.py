"""The sentences of text files and JSON lines, with the line that each stands in."""

from collections.abc import Iterator
from typing import NamedTuple

from albert.data.sentences import split_sentences
from albert.data.sources.base import SourceError, Tally
from albert.data.sources.parse import parse_source
from albert.data.sources.text_files import Block, JsonSource, TextSource


class Sentence(NamedTuple):
    """A sentence and its place."""

    text: str
    file: str
    line: int  # from 1; of a paragraph or a JSON line all sentences have its line


def open_source(spec: str, text_field: str) -> TextSource | JsonSource:
    """The source that a spec names (`parse_source`); raises SourceError where it has no lines."""
    source = parse_source(spec, text_field)
    if not isinstance(source, TextSource | JsonSource):
        raise SourceError(
            f"{spec}: an index says file and line of every sentence, so it is made of text files "
            "and JSON lines alone."
        )
    return source


def sentences_of(
    source: TextSource | JsonSource, language: str, max_bad_share: float
) -> Iterator[Sentence]:
    """Every sentence in order; raises SourceError, where too many records are bad included."""
    tally = Tally(source, max_bad_share)
    lines = _Lines()
    for part in source.parts():
        for block in source.blocks(part):
            parsed = source.parse(block)
            tally.add(parsed.records, parsed.bad, parsed.examples)
            first = lines.first(block)
            for document, numbers in zip(parsed.documents, parsed.lines, strict=True):
                for text, number in zip(document, numbers, strict=True):
                    for sentence in split_sentences([text], source.paragraphs, language):
                        if stripped := sentence.strip():
                            yield Sentence(stripped, block.file, first + number)
    tally.finish()


class _Lines:
    """Which line of its file a range of it begins with; blocks are given in their order."""

    def __init__(self):
        self._file = ""
        self._begin = 0
        self._first = 1
        self._behind = 1  # the line behind the last block

    def first(self, block: Block) -> int:
        if block.file != self._file:
            self._file, self._begin, self._first = block.file, block.begin, 1
        elif block.begin != self._begin:
            self._begin, self._first = block.begin, self._behind
        self._behind = self._first + block.line + block.data.count(b"\n")
        return self._first
