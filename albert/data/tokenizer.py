"""SentencePiece with the released program's normalisation, and the recipe of its vocabulary.

Source: `tokenization.py` and the README of google-research/albert. Never imports jax.
"""

import hashlib
import itertools
import operator
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from albert.runtime.paths import place

SPECIAL = {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
PAD, UNK, CLS, SEP, MASK = SPECIAL.values()
WORD_MARK = "\u2581"
_SPECIAL_IN_TEXT = re.compile(f"({'|'.join(map(re.escape, SPECIAL))})")
# Scripts written without spaces between words: every piece of them is a word of its own.
_NO_SPACES = re.compile(
    "(HALFWIDTH )?(CJK|IDEOGRAPHIC|BOPOMOFO|HIRAGANA|KATAKANA|THAI|LAO|KHMER|MYANMAR|TIBETAN|"
    "TAI|NEW TAI|JAVANESE|BALINESE)[ -]"
)
# Punctuation inside words: apostrophe, Catalan dot, Armenian tone marks, Hebrew abbreviations.
_INSIDE_WORDS = frozenset("\u2019\u00b7\u055a\u055b\u055c\u055e\u055f\u05f3\u05f4")
_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))


class VocabularyError(ValueError):
    """The vocabulary file is missing, damaged or not one that ALBERT can use."""


class OtherVocabularyError(VocabularyError):
    """The vocabulary is sound, and of another kind of model than ALBERT.

    Made of two sentences: the reason, and what to do when it was to be learned from.
    """

    @property
    def reason(self) -> str:
        return self.args[0]

    def __str__(self):
        return " ".join(self.args)


def normalise(text: str, lower_case: bool, strip_accents: bool) -> str:
    """Collapses white space; then NFKD without combining marks; then lower case."""
    text = " ".join(text.split())
    if not text.isascii() and strip_accents:
        text = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in text if not unicodedata.combining(c))
    return text.lower() if lower_case else text


def is_padding(pieces: int, rows: int) -> bool:
    """Whether a model of so many word embeddings may be that of so many pieces: equal, or padded to
    a round number (8, 64, 128 or a power of two are common)."""
    return pieces <= rows <= max(-(-pieces // 128) * 128, pieces + pieces // 10)


def starts_word(piece: str) -> bool:
    """Whether a piece begins a new word.

    The released program lets every piece start a word that begins with the word mark or "<" or
    holds a character outside a-z. For lower-case English this is the same rule. Elsewhere a
    letter or mark of any script continues its word, as does what only joins or formats, except
    in scripts that do not use spaces; a piece is never parted from the character that its first
    mark stands on.
    """
    if piece.startswith((WORD_MARK, "<")) or piece in SPECIAL:
        return True
    if _joins(piece[0]):
        return False
    return any(
        not (unicodedata.category(c)[0] == "L" or c in _INSIDE_WORDS or _joins(c))
        or _NO_SPACES.match(unicodedata.name(c, ""))
        for c in piece
    )


def _joins(character: str) -> bool:
    """Combining marks, variation selectors, (non-)joiners, soft hyphens, skin tones."""
    category = unicodedata.category(character)
    return category[0] == "M" or category == "Cf" or character in _SKIN_TONES


def ends_in_digit_comma(piece: str) -> bool:
    """Whether the released program cuts this piece again, so that the comma stands alone."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


class Tokenizer:
    """Text to ids and back.

    Raises VocabularyError when the file cannot be read or its special ids are not those that
    ALBERT's vocabularies have.
    """

    def __init__(
        self,
        model_path: str | os.PathLike,
        lower_case: bool = True,
        strip_accents: bool = True,
        serialized: bytes | None = None,
    ):
        """`serialized`: the SentencePiece model, where `model_path` only says what it came from."""
        self.path = place(str(model_path))
        self.lower_case = lower_case
        self.strip_accents = strip_accents
        if serialized is None:
            if not self.path.is_file():
                raise VocabularyError(
                    f"There is no vocabulary file {self.path}. Give the .model file of a "
                    "SentencePiece model, or leave data.tokenizer empty to train one on the corpus."
                )
            serialized = self.path.read_bytes()
        self._serialized = serialized
        self.fingerprint = hashlib.sha256(serialized).hexdigest()
        self._sp = sentencepiece.SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(serialized)
        except RuntimeError as error:
            raise VocabularyError(
                f"{self.path} is not a SentencePiece model, or is damaged: {error}"
            ) from error
        self.vocab_size = self._sp.get_piece_size()
        self._pieces = [self._sp.id_to_piece(i) for i in range(self.vocab_size)]
        if wrong := self._misplaced():
            raise OtherVocabularyError(
                f"{self.path} is not an ALBERT vocabulary: {'; '.join(wrong)}.",
                "Train one with data.tokenizer left empty, or with the spm_train flags of the "
                "released one.",
            )
        self.starts_word = np.array([starts_word(piece) for piece in self._pieces])
        self._digit_comma = {i for i, p in enumerate(self._pieces) if ends_in_digit_comma(p)}

    def __repr__(self):
        return f"Tokenizer({str(self.path)!r}, {self.vocab_size} pieces)"

    def __reduce__(self):
        # The file may be gone where it is unpickled, or be another one.
        return (Tokenizer, (self.path, self.lower_case, self.strip_accents, self._serialized))

    def _misplaced(self) -> list[str]:
        """What is wrong with the special pieces, one phrase each."""
        wrong = []
        for name, expected in SPECIAL.items():
            there = self._pieces[expected] if expected < self.vocab_size else None
            if there == name:
                continue
            if name in self._pieces:
                wrong.append(f"{name} has id {self._pieces.index(name)} and not {expected}")
            elif there is None:
                wrong.append(f"there is no {name}, and no id {expected}")
            else:
                wrong.append(f"there is no {name}; id {expected} is {there!r}")
        unknown = self._sp.unk_id()
        if not wrong and unknown != UNK:
            wrong.append(
                f"<unk> is an ordinary piece; what is unknown becomes {self._pieces[unknown]!r}, "
                f"id {unknown}"
            )
        return wrong

    def save(self, path: Path) -> None:
        """Writes the SentencePiece model; an equal file is left alone, others may be reading it."""
        if not path.is_file() or path.read_bytes() != self._serialized:
            path.write_bytes(self._serialized)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; raises ValueError where something is no text."""
        if isinstance(texts, str):
            raise ValueError("encode_batch takes several texts; for one there is encode.")
        batch = self._sp.encode(
            [normalise(_text(text), self.lower_case, self.strip_accents) for text in texts],
            out_type=int,
            num_threads=1,  # preparation runs a process per core already
        )
        if self._digit_comma:
            for i, ids in enumerate(batch):
                if not self._digit_comma.isdisjoint(ids):
                    batch[i] = list(itertools.chain.from_iterable(map(self._split_id, ids)))
        return batch

    def _split_id(self, piece_id: int) -> list[int]:
        if piece_id not in self._digit_comma:
            return [piece_id]
        return [self._sp.piece_to_id(p) for p in self._split_piece(self._pieces[piece_id])]

    def _split_piece(self, piece: str) -> list[str]:
        """A piece that ends in a digit and a comma, as pieces in which the comma is alone."""
        if not ends_in_digit_comma(piece):
            return [piece]
        split = self._sp.encode(piece[:-1].replace(WORD_MARK, ""), out_type=str)
        if piece[0] != WORD_MARK and split[0][0] == WORD_MARK:
            split = split[1:] if len(split[0]) == 1 else [split[0][1:], *split[1:]]
        return [*split, ","]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of `text` as they are written there, those outside the vocabulary too."""
        text = normalise(_text(text), self.lower_case, self.strip_accents)
        pieces = self._sp.encode(text, out_type=str)
        return list(itertools.chain.from_iterable(map(self._split_piece, pieces)))

    def ids_of(self, pieces: Iterable[str]) -> list[int]:
        """The id of each piece; <unk> for what is none."""
        return [self._sp.piece_to_id(piece) for piece in pieces]

    def spans(self, normalised: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text that is normalised already, and the characters of it, from and to, that
        each stands for. What SentencePiece drops, such as spaces at the ends, is in none."""
        encoded = normalised.encode("utf-8", "replace")
        sizes = (len(character.encode("utf-8", "replace")) for character in normalised)
        place_of = {byte: at for at, byte in enumerate(itertools.accumulate(sizes, initial=0))}
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in self._sp.encode(encoded, return_type="proto").pieces:
            split = self._split_piece(piece.piece)
            begin, end = place_of[piece.begin], place_of[piece.end]
            ids += self.ids_of(split)
            if len(split) > 1:  # its last one is the comma; the others have their own letters
                last = end - 1
                for part in split[:-1]:
                    marked = part[0] == WORD_MARK and not normalised[begin : begin + 1].isspace()
                    to = min(begin + len(part) - marked, last)
                    spans.append((begin, to))
                    begin = to
                begin = last
            spans.append((begin, end))
        return ids, spans

    def encode_special(self, text: str) -> list[int]:
        """Ids of `text`, in which [MASK], [SEP] and the other special pieces mean themselves.

        `encode` reads them as plain characters, which is right for text that is learned from.
        """
        parts = [part for part in _SPECIAL_IN_TEXT.split(_text(text)) if part]
        plain = iter(self.encode_batch([part for part in parts if part not in SPECIAL]))
        ids: list[int] = []
        for part in parts:
            ids += [SPECIAL[part]] if part in SPECIAL else next(plain)
        return ids

    def encode_pair(
        self, text: str, pair: str | None = None, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """[CLS] text [SEP] or [CLS] text [SEP] pair [SEP], and the token types 0 and 1.

        What is longer than `max_length` loses pieces at the end of its longer part.
        """
        texts = [text] if pair is None else [text, pair]
        return self.with_ends([self.encode_special(each) for each in texts], max_length)

    def with_ends(
        self, parts: list[list[int]], max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """`encode_pair` of one or two texts that are ids already."""
        parts = [list(part) for part in parts]
        if max_length is not None:
            room = max_length - 1 - len(parts)
            if room < len(parts):
                raise ValueError(f"max_length {max_length} leaves no room for any text")
            while sum(map(len, parts)) > room:
                max(parts, key=len).pop()
        ids, types = [CLS], [0]
        for segment, part in enumerate(parts):
            ids += [*part, SEP]
            types += [segment] * (len(part) + 1)
        return ids, types

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary entry of each id; raises ValueError where one is not an id of it."""
        return [self._pieces[i] for i in self._known(ids)]

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; special pieces are kept, as words of their own.

        Raises ValueError where one is not an id of the vocabulary, such as the -100 of labels that
        are to be left out.
        """
        text = "".join(
            f" {self._pieces[i]} " if i < len(SPECIAL) else self._pieces[i]
            for i in self._known(ids)
        )
        return " ".join(text.replace(WORD_MARK, " ").split())

    def _known(self, ids: Iterable[int]) -> list[int]:
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise ValueError(f"ids is {ids!r}; it must be a list of whole numbers.")
        known = []
        for place_in_list, value in enumerate(ids):
            try:
                number = operator.index(value)
            except TypeError:
                raise ValueError(
                    f"id {place_in_list} (the first is 0) is {value!r}, of type "
                    f"{type(value).__name__}; it must be a whole number."
                ) from None
            if not 0 <= number < self.vocab_size:
                raise ValueError(
                    f"id {place_in_list} (the first is 0) is {number}; the vocabulary has ids 0 to "
                    f"{self.vocab_size - 1}."
                )
            known.append(number)
        return known


def _text(text: str) -> str:
    if not isinstance(text, str):
        shown = repr(text)
        raise ValueError(
            f"{shown if len(shown) <= 40 else f'{shown[:40]}...'} is of type "
            f"{type(text).__name__}; a text must be a str."
        )
    if wrong := unwritable(text):
        raise ValueError(f"A text has {wrong}.")
    return text


def unwritable(text: str) -> str | None:
    """What keeps a str from being written as UTF-8, which JSON may hold: cut in the middle of an
    emoji it is "\\ud83d". None: nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at position {error.start + 1}"
    return None
