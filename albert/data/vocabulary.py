"""Vocabularies trained with the recipe of the released one.

Source: the spm_train flags in the README of google-research/albert. Never imports jax.
"""

import importlib.metadata
import itertools
import json
import math
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from albert.data.cache import StoreError, fingerprint_of, made_once
from albert.data.corpus.prepared import PreparedText
from albert.data.sentences import split_sentences
from albert.data.sources.base import Source, SourceError, read_documents
from albert.data.tokenizer import PAD, SPECIAL, UNK, VocabularyError, normalise
from albert.runtime.paths import modified

MIN_COVERAGE = 0.98  # that SentencePiece takes
TOLD_UNKNOWN = 0.01  # of the characters of a text: more that are <unk> are told
_MAX_BYTES = 4192  # SentencePiece leaves out longer sentences, and only its log says so
_MAX_MARKS = 32
_RESERVED = "\u2585"  # and those with this character
_MAX_SENTENCES = 10_000_000
_SAMPLE_CHARACTERS = 1 << 22
_OWN_PIECES = ("(", ")", '"', "-", ".", "\u2013", "\u00a3", "\u20ac")


def prepare_vocabulary(
    sources: Sequence[Source | PreparedText],
    vocab_size: int,
    language: str,
    lower_case: bool,
    strip_accents: bool,
    max_documents: int,
    max_bad_share: float,
    character_coverage: float,
    max_unknown_share: float,
    folder: Path,
) -> Path:
    """The file of a vocabulary trained on `sources`, made now or found below `folder`.

    Reads the first `max_documents` of each source, 0 for all.

    Raises:
      SourceError: a source cannot be read, or more than `max_bad_share` of its records are bad.
      VocabularyError: the text is too small or has too many characters for so many pieces, or
        more than `max_unknown_share` of its characters stay unknown.
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
    named = folder / f"vocabulary-{fingerprint_of(made_from)}"
    with made_once(named, last="vocabulary.json") as (final, temporary):
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
                unknown = train_vocabulary(
                    sentences(), vocab_size, model, lower_case, strip_accents, character_coverage
                )
                if unknown > max_unknown_share:
                    raise VocabularyError(
                        f"{unknown:.1%} of the characters that it was trained on are unknown to "
                        f"a vocabulary of {vocab_size} pieces, more than data.max_unknown_share "
                        f"{max_unknown_share:g} allows: raise data.character_coverage "
                        f"{character_coverage:g}, and model.vocab_size with it if there are too "
                        "few pieces for the characters."
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
    for path in sorted(paths, key=lambda path: -modified(path)):
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
) -> float:
    """Trains a vocabulary with the flags of the released one and writes it to `path`.

    Returns the share of the characters that it does not know, measured on a sample of the text.

    Raises:
      VocabularyError: the text is too small, or has too many characters, for so many pieces.
    """
    text = _Given(normalise(s, lower_case, strip_accents) for s in sentences)
    with open(path, "wb") as model:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=model,
                vocab_size=vocab_size,
                model_type="unigram",
                character_coverage=character_coverage,
                max_sentence_length=_MAX_BYTES,
                pad_id=PAD,
                unk_id=UNK,
                bos_id=-1,
                eos_id=-1,
                control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                user_defined_symbols=list(_OWN_PIECES),
                shuffle_input_sentence=True,
                input_sentence_size=_MAX_SENTENCES,
                num_threads=os.cpu_count() or 1,
                minloglevel=2,
            )
        except RuntimeError as error:
            path.unlink()
            raise VocabularyError(
                f"SentencePiece could not train {vocab_size} pieces: "
                + _cause(str(error), vocab_size, character_coverage, text.sample)
            ) from error
    for line in text.told():
        print(line, file=sys.stderr, flush=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    unknown = unknown_share(processor, text.sample)
    if unknown > TOLD_UNKNOWN:
        print(
            f"Warning: {unknown:.1%} of the characters of the text are unknown to the vocabulary "
            "that was trained on it; a higher data.character_coverage knows more.",
            file=sys.stderr,
            flush=True,
        )
    return unknown


class _Given:
    """The sentences that SentencePiece is given, so that it leaves out none of them."""

    def __init__(self, sentences: Iterable[str]):
        self._sentences = sentences
        self.sample: list[str] = []  # evenly over all of it
        self._sampled = 0  # characters
        self._every = 1
        self._count = self._characters = self._cut = self._cut_characters = 0

    def __iter__(self) -> Iterator[str]:
        for sentence in self._sentences:
            # A sentence with the character that it keeps for itself would be left out.
            pieces = list(cut_for_training(sentence.replace(_RESERVED, " ")))
            self._characters += len(sentence)
            if len(pieces) > 1:
                self._cut += 1
                self._cut_characters += len(sentence)
            for piece in pieces:
                if self._count % self._every == 0:
                    self._keep(piece)
                self._count += 1
                yield piece

    def _keep(self, sentence: str) -> None:
        self.sample.append(sentence)
        self._sampled += len(sentence)
        if self._sampled > _SAMPLE_CHARACTERS and len(self.sample) > 1:
            self.sample = self.sample[::2]
            self._sampled = sum(map(len, self.sample))
            self._every *= 2

    def told(self) -> Iterator[str]:
        """What a user should know of the sentences that training was given."""
        if self._cut:
            share = self._cut_characters / self._characters
            yield (
                f"{self._cut:,} sentences of over {_MAX_BYTES} bytes, {share:.1%} of the "
                "characters, are cut for the training of the vocabulary, at spaces where there are "
                "any."
            )
        if self._count > _MAX_SENTENCES:
            yield (
                f"The vocabulary is trained on {_MAX_SENTENCES:,} of {self._count:,} sentences, "
                "drawn at random, as the released one."
            )


def cut_for_training(sentence: str) -> Iterator[str]:
    """The sentence in pieces that SentencePiece does not leave out for their length.

    Cut at spaces, or where there are none in front of a character that is no mark of another.
    """
    while len(sentence) * 4 > _MAX_BYTES and len(data := sentence.encode()) > _MAX_BYTES:
        head = data[:_MAX_BYTES].decode(errors="ignore")
        end = head.rfind(" ")
        if end <= 0:
            # A character has a few marks; a run of more is nobody's text.
            ends = range(len(head), len(head) - _MAX_MARKS, -1)
            bases = (e for e in ends if unicodedata.category(sentence[e])[0] != "M")
            end = next(bases, len(head))
        yield sentence[:end]
        sentence = sentence[end:].lstrip(" ")
    yield sentence


def unknown_share(processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> float:
    """Share of the characters of normalised texts, without spaces, that become <unk>."""
    vocabulary = {processor.id_to_piece(i) for i in range(processor.get_piece_size())}
    unknown = 0
    for text, ids in zip(texts, processor.encode(list(texts), out_type=int), strict=True):
        if UNK in ids:
            # What is not in the vocabulary stands among the pieces as it is written.
            pieces = processor.encode(text, out_type=str)
            unknown += sum(len(piece) for piece in pieces if piece not in vocabulary)
    total = sum(len(text) - text.count(" ") for text in texts)
    return unknown / total if total else 0.0


def _cause(message: str, vocab_size: int, coverage: float, sample: list[str]) -> str:
    """What SentencePiece's message means, and what to set."""
    if too_small := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        needed = int(too_small[1])
        counts = Counter("".join(sample).replace(" ", ""))
        counts[" "] = sum(len(text.split()) for text in sample)
        # Some pieces should be left for more than single characters.
        kept = int(0.9 * vocab_size) - len(SPECIAL) - len(_OWN_PIECES)
        lower = ""
        if kept > 0:
            known = sum(count for _, count in counts.most_common(kept)) / counts.total()
            if known >= MIN_COVERAGE:
                lower = f", or lower data.character_coverage to {math.floor(known * 1e4) / 1e4:g}"
        return (
            f"it needs {needed} for the single characters that data.character_coverage "
            f"{coverage:g} keeps. Raise model.vocab_size to more than {needed}{lower}."
        )
    if too_large := re.search(r"value <= (\d+)", message):
        return (
            f"this text gives {too_large[1]} at most. Lower model.vocab_size to {too_large[1]}, or "
            "use more text."
        )
    if "!sentences_.empty()" in message:
        return "no sentence of the text holds anything to learn from."
    return message
