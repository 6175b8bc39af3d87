"""Which source a spec names.

A source is named by one string, so that a config can list several:

    PATH           file, folder or glob; .txt as `lines:`, .jsonl and .json as JSON lines, .parquet
    lines:PATH     one sentence per line, a blank line between documents
    text:PATH      one paragraph per line, a blank line between documents
    jsonl:PATH     one JSON object per line, its text in the field `data.text_field`
    parquet:PATH   Parquet files, the text in the column `data.text_field`
                   (of a folder these four take the files with their suffixes alone)
    tfds:NAME      a TFDS dataset, `tfds:NAME@SPLIT` for a split other than train
    python-docs    docstrings of the standard library and of the installed packages

Text and JSON files may end in .gz, .xz or .zst. PATH may begin with gs://, s3:// or az://. Never
imports jax.
"""

from pathlib import Path

from albert.data.sources.base import Source, SourceError
from albert.data.sources.files import find_files, text_suffix
from albert.data.sources.python_docs import PythonDocs
from albert.data.sources.tables import ParquetSource, TfdsSource
from albert.data.sources.text_files import JsonSource, TextSource

_KINDS = {".txt": "lines", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def parse_source(spec: str, text_field: str, memory: Path | None = None) -> Source:
    """The source that `spec` names; raises SourceError when there is no such thing.

    `memory`: a folder that remembers digests of files, so that they are read once.
    """
    kind, _, rest = spec.partition(":")
    if spec == "python-docs":
        return PythonDocs()
    if kind == "tfds":
        name, _, split = rest.partition("@")
        return TfdsSource(spec, name, split or "train", text_field)
    if kind not in ("lines", "text", "jsonl", "parquet"):
        kind, rest = "", spec
    # Of a folder: what the kind is for, and else all that there are kinds for.
    plain = "lines" if kind == "text" else kind
    files, left_out = find_files(
        spec, rest, tuple(suffix for suffix, of in _KINDS.items() if plain in ("", of))
    )
    if not kind:
        names = {_KINDS.get(text_suffix(file)): file.rsplit("/", 1)[-1] for file in files}
        kind = next(iter(names)) or "" if len(names) == 1 else ""
        if not kind:
            raise SourceError(
                f"Cannot tell what {spec} holds from the names {', '.join(names.values())}: write "
                "lines:PATH for one sentence per line, text:PATH for one paragraph per line, "
                "jsonl:PATH or parquet:PATH; of a folder these take the files of their kind."
            )
    if kind == "jsonl":
        return JsonSource(spec, files, text_field, left_out=left_out, memory=memory)
    if kind == "parquet":
        return ParquetSource(spec, files, text_field, left_out=left_out, memory=memory)
    return TextSource(spec, files, paragraphs=kind == "text", left_out=left_out, memory=memory)
