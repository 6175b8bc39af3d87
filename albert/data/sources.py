"""Where text comes from: files, TFDS datasets, the installed Python's own documentation.

A source is named by one string, so that a config can list several:

    PATH           file, folder or glob; .txt as `lines:`, .jsonl and .json as JSON lines
    lines:PATH     one sentence per line, a blank line between documents
    text:PATH      one paragraph per line, a blank line between documents
    jsonl:PATH     one JSON object per line, its text in the field `data.text_field`
    tfds:NAME      a TFDS dataset, `tfds:NAME@SPLIT` for a split other than train
    python-docs    docstrings of the standard library and of the installed packages

Files may end in .gz, .xz or .zst. Never imports jax.
"""

import dataclasses
import glob
import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import sentencex
from backports import zstd  # in the standard library from Python 3.14 on

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
_DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError)
_TEXT, _JSON = (".txt",), (".jsonl", ".json")


class SourceError(ValueError):
    """A source is missing, empty or unreadable; says which file and line or record."""


class Source(Protocol):
    """A readable body of text."""

    @property
    def spec(self) -> str: ...

    @property
    def paragraphs(self) -> bool:
        """Whether the strings of a document are paragraphs; else they are sentences already."""
        ...

    def identity(self) -> dict:
        """What decides its content; JSON-serialisable, part of a prepared corpus's fingerprint."""
        ...

    def documents(self) -> Iterator[list[str]]:
        """Every document as its sentences or paragraphs, none of them blank, in a fixed order.

        Raises SourceError.
        """
        ...


def parse_source(spec: str, text_field: str) -> Source:
    """The source that `spec` names; raises SourceError when there is no such thing."""
    kind, _, rest = spec.partition(":")
    if spec == "python-docs":
        from albert.data.python_docs import PythonDocs

        return PythonDocs()
    if kind == "tfds":
        return TfdsSource(spec, rest, text_field)
    if kind not in ("lines", "text", "jsonl"):
        kind, rest = "", spec
    files = _find_files(spec, rest)
    if not kind:
        suffixes = {_text_suffix(file) for file in files}
        if suffixes <= set(_JSON):
            kind = "jsonl"
        elif suffixes <= set(_TEXT):
            kind = "lines"
        else:
            raise SourceError(
                f"Cannot tell what {spec} holds from the name {files[0].name}: write "
                "lines:PATH for one sentence per line, text:PATH for one paragraph per line, "
                "or jsonl:PATH."
            )
    if kind == "jsonl":
        return JsonSource(spec, files, text_field)
    return TextSource(spec, files, paragraphs=kind == "text")


def _text_suffix(path: Path) -> str:
    """The suffix below the compression's."""
    return Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix


def _find_files(spec: str, path: str) -> list[Path]:
    if not path:
        raise SourceError(f"The source {spec!r} names no path.")
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = [
            p for p in Path(path).rglob("*") if p.is_file() and _text_suffix(p) in _TEXT + _JSON
        ]
        if not found:
            raise SourceError(f"The folder {path} holds no .txt, .jsonl or .json file.")
    else:
        found = [Path(p) for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
        if not found:
            raise SourceError(f"There is no file {path} (source {spec!r}).")
    return sorted(found)


def _file_identity(file: Path) -> dict:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "blake2b").hexdigest()[:32]
    return {"file": file.name, "bytes": file.stat().st_size, "blake2b": digest}


def _read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines; raises SourceError naming file and line."""
    number = 0
    try:
        with _OPENERS.get(file.suffix, open)(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at "
            f"position {error.start + 1}). Convert the file, for example with iconv."
        ) from error
    except _DAMAGED as error:
        raise SourceError(
            f"{file}: the compressed file is damaged or cut off after line {number}: {error}"
        ) from error
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Text files with a blank line between documents."""

    spec: str
    files: list[Path]
    paragraphs: bool

    def identity(self) -> dict:
        return {
            "kind": "text" if self.paragraphs else "lines",
            "files": [_file_identity(file) for file in self.files],
        }

    def documents(self) -> Iterator[list[str]]:
        for file in self.files:
            document: list[str] = []
            for _, line in _read_lines(file):
                if line:
                    document.append(line)
                elif document:
                    yield document
                    document = []
            if document:
                yield document


@dataclasses.dataclass(frozen=True)
class JsonSource:
    """Files of one JSON object per line; line breaks in a text separate paragraphs."""

    spec: str
    files: list[Path]
    text_field: str
    paragraphs: bool = True

    def identity(self) -> dict:
        return {
            "kind": "jsonl",
            "text_field": self.text_field,
            "files": [_file_identity(file) for file in self.files],
        }

    def documents(self) -> Iterator[list[str]]:
        for file in self.files:
            for number, line in _read_lines(file):
                if not line:
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise SourceError(f"{file}, line {number}: not JSON: {error}") from error
                text = record.get(self.text_field) if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise SourceError(
                        f"{file}, line {number}: no text in the field {self.text_field!r}. Name "
                        "the field that holds it with --config.data.text_field."
                    )
                if document := _paragraphs(text):
                    yield document


@dataclasses.dataclass
class TfdsSource:
    """Any dataset of tensorflow_datasets that has a text feature, read without TensorFlow."""

    spec: str
    name: str
    text_field: str
    paragraphs: bool = True

    def __post_init__(self):
        self.name, _, split = self.name.partition("@")
        self.split = split or "train"

    def _open(self):
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
        info = self._open().dataset_info
        return {
            "kind": "tfds",
            "name": info.full_name,
            "split": self.split,
            "examples": info.splits[self.split].num_examples,
            "bytes": info.splits[self.split].num_bytes,
            "text_field": self.text_field,
        }

    def documents(self) -> Iterator[list[str]]:
        for number, record in enumerate(self._open()):
            text = record.get(self.text_field)
            if not isinstance(text, (str, bytes)):
                raise SourceError(
                    f"{self.spec}, record {number}: no text in the feature "
                    f"{self.text_field!r}; it has {', '.join(record)}. Name the feature with "
                    "--config.data.text_field."
                )
            try:
                text = text if isinstance(text, str) else text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(f"{self.spec}, record {number}: not UTF-8: {error}") from error
            if document := _paragraphs(text):
                yield document


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_sentences(document: list[str], paragraphs: bool, language: str) -> list[str]:
    """The sentences of a document of a source; those of paragraphs as sentencex finds them."""
    if not paragraphs:
        return document
    return [s for paragraph in document for s in sentencex.segment(language, paragraph)]
