"""Vocabularies trained with the recipe of the released one.

Source: the spm_train flags in the README of google-research/albert. Never imports jax.
"""

import importlib.metadata
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from albert.data.cache import StoreError, fingerprint_of, made_once
from albert.data.corpus.prepared import PreparedText
from albert.data.sentences import split_sentences
from albert.data.sources.base import Source, SourceError, read_documents
from albert.data.tokenizer import PAD, UNK, VocabularyError, normalise


def prepare_vocabulary(
    sources: Sequence[Source | PreparedText],
    vocab_size: int,
    language: str,
    lower_case: bool,
    strip_accents: bool,
    max_documents: int,
    max_bad_share: float,
    character_coverage: float,
    folder: Path,
) -> Path:
    """The file of a vocabulary trained on `sources`, made now or found below `folder`.

    Reads the first `max_documents` of each source, 0 for all.

    Raises:
      SourceError: a source cannot be read, or more than `max_bad_share` of its records are bad.
      VocabularyError: the text is too small for so many pieces.
    """
    made_from = {
        "vocab_size": vocab_size,
        "lower_case": lower_case,
        "strip_accents": strip_accents,
        "character_coverage": character_coverage,
        "language": language,
        "max_documents": max_documents,
        "sentencepiece": importlib.metadata.version("sentencepiece"),
        "sentencex": importlib.metadata.version("sentencex"),
    }
    there = [source for source in sources if not isinstance(source, PreparedText)]
    if len(there) < len(sources):
        return _trained_before(sources, made_from, folder)
    made_from["sources"] = [source.identity() for source in there]
    with made_once(folder / f"vocabulary-{fingerprint_of(made_from)}") as (final, temporary):
        if temporary is not None:
            print(f"Training a vocabulary of {vocab_size} pieces ...", file=sys.stderr, flush=True)
            names = ", ".join(source.spec for source in there)
            failure: list[SourceError] = []
            any_text = False

            def sentences():
                # SentencePiece reports an exception of its iterator as one of its own.
                nonlocal any_text
                try:
                    for source in there:
                        documents = read_documents(source, max_bad_share)
                        for document in itertools.islice(documents, max_documents or None):
                            any_text = True
                            yield from split_sentences(document, source.paragraphs, language)
                except SourceError as error:
                    failure.append(error)

            model = temporary / "tokenizer.model"
            try:
                train_vocabulary(
                    sentences(), vocab_size, model, lower_case, strip_accents, character_coverage
                )
            except VocabularyError as error:
                if failure:
                    raise failure[0] from None
                if not any_text:
                    raise SourceError(f"{names} holds no text.") from None
                raise VocabularyError(f"{names}: {error}") from error
            except OSError as error:
                raise StoreError(
                    f"The vocabulary of {names} cannot be written in {folder}: "
                    f"{error.strerror or error}. Make room, or name another data.folder."
                ) from error
            if failure:
                raise failure[0]
            (temporary / "vocabulary.json").write_text(json.dumps(made_from, indent=1))
    return final / "tokenizer.model"


def _trained_before(
    sources: Sequence[Source | PreparedText], made_from: dict, folder: Path
) -> Path:
    """The vocabulary in `folder` that was trained on these sources, some of which are gone.

    Raises SourceError when there is none.
    """
    # Of any versions of the libraries: it cannot be trained again.
    fields = made_from.keys() - {"sentencepiece", "sentencex"}
    texts = [
        source.identities() if isinstance(source, PreparedText) else [source.identity()]
        for source in sources
    ]
    paths = folder.glob("vocabulary-*/vocabulary.json")
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime):
        before = json.loads(path.read_text())
        if (
            all(before[name] == made_from[name] for name in fields)
            and len(before["sources"]) == len(texts)
            and all(text in known for text, known in zip(before["sources"], texts, strict=True))
        ):
            return path.with_name("tokenizer.model")
    gone = next(source for source in sources if isinstance(source, PreparedText))
    raise SourceError(
        f"{gone.problem} No vocabulary that was trained on it with these values is in {folder}: "
        "name one with --config.data.tokenizer, or bring the text back."
    )


def train_vocabulary(
    sentences: Iterable[str],
    vocab_size: int,
    path: Path,
    lower_case: bool,
    strip_accents: bool,
    character_coverage: float = 0.99995,
) -> None:
    """Trains a vocabulary with the flags of the released one and writes it to `path`.

    Raises:
      VocabularyError: the text is too small for so many pieces.
    """
    with open(path, "wb") as model:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(normalise(s, lower_case, strip_accents) for s in sentences),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="unigram",
                character_coverage=character_coverage,
                pad_id=PAD,
                unk_id=UNK,
                bos_id=-1,
                eos_id=-1,
                control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                user_defined_symbols=["(", ")", '"', "-", ".", "\u2013", "\u00a3", "\u20ac"],
                shuffle_input_sentence=True,
                input_sentence_size=10_000_000,
                num_threads=os.cpu_count() or 1,
                minloglevel=2,
            )
        except RuntimeError as error:
            path.unlink()
            most = re.search(r"value <= (\d+)", str(error))
            raise VocabularyError(
                f"SentencePiece could not train {vocab_size} pieces: "
                + (f"this text gives {most[1]} at most" if most else str(error))
                + ". Use more text or a smaller model.vocab_size."
            ) from error
