"""Builds an index of sentences that are found by their meaning, and asks it.

  python tools/search_index.py --model=runs/vectors --input=books/ --output=books-index
  python tools/search_index.py --model=vectors-onnx --input=text:notes.txt,mail.jsonl --output=notes
  python tools/search_index.py --ask="a river in winter" --output=books-index
  python tools/serve.py --model=runs/vectors --index=books-index

Needs pip install -r requirements-search.txt. The model is anything that albert.load takes, or a
folder of tools/export.py --format=onnx with the head hidden or sentence; its vectors are of use for
search when they were trained for it (configs/finetune/contrastive.py). The input is files, folders
and globs of text and JSON lines, named as in data.train_sources: .txt has a sentence on each line,
text:PATH a paragraph on each line, which is split. The output is there when it is whole.
"""

import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the index.", required=True)
_ASK = flags.DEFINE_string("ask", None, "A query. The index must be there.")
_MODEL = flags.DEFINE_string(
    "model", None, "The model. With --ask the default is where it was when the index was made."
)
_INPUT = flags.DEFINE_list("input", [], "Text files and JSON lines.")
_VECTORS = flags.DEFINE_enum(
    "vectors", "float16", ["float32", "float16", "int8"], "How they are kept in the index."
)
_MAX_SENTENCES = flags.DEFINE_integer(
    "max_sentences", 0, "The first ones of the input; 0: all.", lower_bound=0
)
_LANGUAGE = flags.DEFINE_string("language", "en", "Of paragraphs, for splitting them.")
_TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Of JSON lines.")
_MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share", 0.0, "Of records that may be left out.", lower_bound=0, upper_bound=1
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "SentencePiece .model file. Default: the one beside the model."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    None,
    ["int8", "float32", "int4"],
    "Of an ONNX folder: which file. Default: int8 where it is there.",
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Sentences computed at once.", lower_bound=1)
_TOP = flags.DEFINE_integer("top", 10, "With --ask: how many are found.", lower_bound=1)
_EXACT = flags.DEFINE_bool("exact", False, "With --ask: look at every sentence.")
# Lengths of rows that are computed together; the model's positions are among them as well.
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def main() -> None:
    from albert.data.sources.base import SourceError
    from albert.runtime.fields import ConfigError
    from albert.runtime.signals import StopSignals

    building = ("input", "vectors", "max_sentences", "language", "text_field", "max_bad_share")
    asking = ("top", "exact")
    unread = building if _ASK.value is not None else asking
    given = [name for name in unread if flags.FLAGS[name].present]
    problems = []
    if given:
        when = "when an index is made" if _ASK.value is not None else "with --ask"
        problems.append(f"{', '.join(f'--{name}' for name in given)}: only read {when}")
    if _ASK.value is None:
        problems += [
            f"--{name}: needed to make an index; give --ask to ask one"
            for name, value in (("model", _MODEL.value), ("input", _INPUT.value))
            if not value
        ]
    elif not _ASK.value.strip():
        problems.append("--ask: the query is empty")
    if problems:
        raise ConfigError(problems)
    if _ASK.value is None:
        try:
            with StopSignals() as stop, stop.immediately():
                _build(str(_MODEL.value))
        except SourceError as error:
            # Sources name the flags of training.
            named = str(error).replace("--config.data.", "--")
            raise SourceError(named.replace("data.max_bad_share", "--max_bad_share")) from error
    else:
        _ask(_ASK.value)


def _backend(model: str, batches: list[int], lengths: tuple[int, ...], precision: str | None):
    from albert.serving.loading import open_backend

    return open_backend(
        model,
        batches,
        lengths,
        abilities=["encode"],
        tokenizer=_TOKENIZER.value,
        precision=precision,
    )


def _build(model: str) -> None:
    from itertools import islice

    from tqdm import tqdm

    from albert.data.sentences import language_problem
    from albert.interop.folders import check_new
    from albert.runtime.console import tell
    from albert.runtime.fields import ConfigError
    from albert.search.index import build
    from albert.search.sentences import open_source, sentences_of
    from albert.serving.vectors import encoder, vectors_of

    if problem := language_problem(_LANGUAGE.value):
        raise ConfigError([f"--language: {problem}"])
    output = Path(_OUTPUT.value).expanduser()
    check_new(output)  # before hours of work
    sources = [open_source(spec, _TEXT_FIELD.value) for spec in _INPUT.value]
    for source in sources:
        for what in source.left_out:
            tell(f"{source.spec}: left out {what}.", sys.stderr)
    backend = _backend(model, [_BATCH.value], _LENGTHS, _PRECISION.value)
    place = model if "://" in model else os.path.abspath(os.path.expanduser(model))
    vectors = vectors_of(backend, place)
    wanted = _MAX_SENTENCES.value or None
    sentences = (
        sentence
        for source in sources
        for sentence in sentences_of(source, _LANGUAGE.value, _MAX_BAD_SHARE.value)
    )
    cut: list[int] = []
    with tqdm(total=wanted, unit="sentences", unit_scale=True, desc="Indexing") as bar:
        count = build(
            output,
            islice(sentences, wanted),
            encoder(backend, cut.append),
            vectors,
            _VECTORS.value,
            bar.update,
        )
    if cut:
        tell(
            f"{sum(cut):,} sentences are longer than the model's {backend.card.positions} "
            "positions, and found by their beginning alone.",
            sys.stderr,
        )
    size = sum(file.stat().st_size for file in output.iterdir())
    tell(
        f"{count:,} sentences, {vectors.pooling} vectors of {vectors.width} numbers as "
        f"{_VECTORS.value}, {size / 1e6:.1f} MB: {output}"
    )


def _ask(query: str) -> None:
    from albert.runtime.console import tell
    from albert.search.index import Index
    from albert.serving.vectors import encoder, vectors_of

    index = Index(Path(_OUTPUT.value).expanduser())
    model, precision = _MODEL.value, _PRECISION.value
    if model is None:
        model, precision = index.vectors.model, precision or index.vectors.precision
    backend = _backend(model, [1], (32,), precision)
    index.check(vectors_of(backend, model).digest, model)
    limit = backend.card.positions
    encode = encoder(
        backend,
        lambda count: tell(
            f"The query is longer than the model's {limit} positions; its end is cut.", sys.stderr
        ),
    )
    for found in index.search(encode([query])[0], _TOP.value, _EXACT.value):
        tell(f"{found.score:.3f}  {found.file}:{found.line}  {found.text}")


if __name__ == "__main__":
    cli.run(main)
