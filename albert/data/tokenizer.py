"""SentencePiece with the released program's normalisation, and the recipe of its vocabulary.

Source: `tokenization.py` and the README of google-research/albert. Never imports jax.
"""

import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

SPECIAL = {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
PAD, UNK, CLS, SEP, MASK = SPECIAL.values()
WORD_MARK = "\u2581"
# Scripts written without spaces between words: every piece of them is a word of its own.
_NO_SPACES = re.compile("CJK|HIRAGANA|KATAKANA|THAI|LAO |KHMER|MYANMAR|TIBETAN")


class VocabularyError(ValueError):
    """The vocabulary file is missing, damaged or not one that ALBERT can use."""


def normalise(text: str, lower_case: bool, strip_accents: bool) -> str:
    """Collapses white space; then NFKD without combining marks; then lower case."""
    text = " ".join(text.split())
    if not text.isascii() and strip_accents:
        text = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in text if not unicodedata.combining(c))
    return text.lower() if lower_case else text


def starts_word(piece: str) -> bool:
    """Whether a piece begins a new word.

    The released program lets every piece start a word that begins with the word mark or "<" or
    holds a character outside a-z. For lower-case English this is the same rule; here a letter
    or mark of any script continues its word, except in scripts that do not use spaces.
    """
    if piece.startswith((WORD_MARK, "<")) or piece in SPECIAL:
        return True
    return any(
        unicodedata.category(c)[0] not in "LM" or _NO_SPACES.match(unicodedata.name(c, ""))
        for c in piece
    )


class Tokenizer:
    """Text to ids and back.

    Raises VocabularyError when the file cannot be read or its special ids are not those that
    ALBERT's vocabularies have.
    """

    def __init__(
        self, model_path: str | os.PathLike, lower_case: bool = True, strip_accents: bool = True
    ):
        self.path = Path(model_path)
        self.lower_case = lower_case
        self.strip_accents = strip_accents
        if not self.path.is_file():
            raise VocabularyError(
                f"There is no vocabulary file {self.path}. Give the .model file of a "
                "SentencePiece model, or leave data.tokenizer empty to train one on the corpus."
            )
        serialized = self.path.read_bytes()
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
        wrong = [
            f"{name} has id {self._sp.piece_to_id(name)} and not {expected}"
            for name, expected in SPECIAL.items()
            if expected >= self.vocab_size or self._pieces[expected] != name
        ]
        if wrong:
            raise VocabularyError(
                f"{self.path} is not an ALBERT vocabulary: {'; '.join(wrong)}. Train one with "
                "data.tokenizer left empty, or with the spm_train flags that the README gives."
            )
        self.starts_word = np.array([starts_word(piece) for piece in self._pieces])
        self._digit_comma = {
            i for i, p in enumerate(self._pieces) if len(p) > 1 and p[-1] == "," and p[-2].isdigit()
        }

    def __reduce__(self):
        return (Tokenizer, (self.path, self.lower_case, self.strip_accents))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        batch = self._sp.encode(
            [normalise(text, self.lower_case, self.strip_accents) for text in texts],
            out_type=int,
            num_threads=1,  # preparation runs a process per core already
        )
        if self._digit_comma:
            for i, ids in enumerate(batch):
                if not self._digit_comma.isdisjoint(ids):
                    batch[i] = list(
                        itertools.chain.from_iterable(self._split_digit_comma(x) for x in ids)
                    )
        return batch

    def _split_digit_comma(self, piece_id: int) -> list[int]:
        """A piece that ends in a digit and a comma, as pieces in which the comma is alone."""
        if piece_id not in self._digit_comma:
            return [piece_id]
        piece = self._pieces[piece_id]
        split = self._sp.encode(piece[:-1].replace(WORD_MARK, ""), out_type=str)
        if piece[0] != WORD_MARK and split[0][0] == WORD_MARK:
            split = split[1:] if len(split[0]) == 1 else [split[0][1:], *split[1:]]
        return [self._sp.piece_to_id(p) for p in (*split, ",")]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary entry of each id."""
        return [self._pieces[i] for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; special pieces are kept, as words of their own."""
        text = "".join(
            f" {p} " if i < len(SPECIAL) else p
            for i, p in ((int(i), self._pieces[int(i)]) for i in ids)
        )
        return " ".join(text.replace(WORD_MARK, " ").split())
