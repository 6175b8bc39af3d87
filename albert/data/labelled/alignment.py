"""Which characters of a text its pieces stand for.

The released program (`squad_utils.py`, google-research/albert) finds it by the longest common
subsequence of the text and of the characters of the pieces: 50 ms a paragraph. Here offsets are
carried through the normalisation, which comes to the same wherever the pieces spell the normalised
text; a test holds it. Where they do not, the subsequence is searched as there, and where that finds
too little (SentencePiece composes Korean letters that the normalisation has taken apart), what
SentencePiece says of its pieces is used. Never imports jax.
"""

import dataclasses
import unicodedata

import numpy as np

from albert.data.tokenizer import WORD_MARK, Tokenizer, normalise

_NONE = -1
_ENOUGH = 0.8  # share of the text's characters that must have a partner


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The pieces of a text, and the characters that each stands for.

    Attributes:
      ids: int32 [pieces].
      starts, ends: int64 [pieces], the first and the last character of each piece in the text.
      way: "offsets", "subsequence", or "surfaces": by what SentencePiece says of its pieces.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    way: str
    _piece_of: np.ndarray  # [characters of pieces] -> piece
    _of_text: np.ndarray  # [characters of the text] -> characters of pieces, or _NONE

    def pieces_of(self, first: int, last: int) -> tuple[int, int]:
        """The pieces that the characters `first` to `last` of the text begin and end in."""
        begin = _partner(self._of_text, first, None, is_start=True)
        end = _partner(self._of_text, last, None, is_start=False)
        return int(self._piece_of[begin]), int(self._piece_of[end])


def align(text: str, tokenizer: Tokenizer, exactly: bool = True) -> Aligned:
    """The pieces of a text and where they stand in it.

    Args:
      text: any.
      tokenizer: the vocabulary.
      exactly: search for the subsequence, as the released program does, where the pieces do not
        spell the normalised text. It takes Numba. False: take what SentencePiece says there.
    """
    plain, sources, whole = _with_sources(text, tokenizer.lower_case, tokenizer.strip_accents)
    pieces = tokenizer.tokenize(text)
    ids, lengths = tokenizer.ids_of(pieces), _lengths(pieces)
    spelled = "".join(pieces).replace(WORD_MARK, " ")
    if spelled == f" {plain}":
        # The mark in front of the first word stands for the white space there, if there is any.
        blank = len(text) - len(text.lstrip())
        lead = next((i for i in range(blank) if _single(text[i], tokenizer) == " "), _NONE)
        partners = np.append(lead, np.where(whole, sources, _NONE))
        return _aligned(ids, lengths, partners, len(text), "offsets")
    if exactly and spelled:
        found = _subsequence(text, spelled, tokenizer)
        if found is not None:
            return _aligned(ids, lengths, found, len(text), "subsequence")
    whole_text = normalise(text, tokenizer.lower_case, tokenizer.strip_accents)
    if len(sources) != len(whole_text):  # of every character by itself
        raise ValueError(f"{text!r} cannot be normalised character by character")
    ids, spans = tokenizer.spans(whole_text)
    inside = np.concatenate([np.arange(*span) for span in spans] or [np.zeros(0, np.int64)])
    lengths = np.asarray([end - begin for begin, end in spans], np.int64)
    return _aligned(ids, lengths, sources[inside.astype(np.int64)], len(text), "surfaces")


def _lengths(pieces: list[str]) -> np.ndarray:
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def _aligned(ids, lengths, partners, count: int, way: str) -> Aligned:
    """partners: [characters of pieces] -> characters of the text, or _NONE."""
    of_text = np.full(count, _NONE, np.int64)
    known = np.flatnonzero(partners != _NONE)[::-1]
    of_text[partners[known]] = known  # the first one, where several have it
    piece_of = np.repeat(np.arange(len(lengths)), lengths)
    last = np.cumsum(lengths) - 1
    most = len(partners) - 1  # a piece without a character stands where its neighbour does
    starts = [_partner(partners, min(int(at), most), count, True) for at in last - lengths + 1]
    ends = [_partner(partners, max(int(at), 0), count, False) for at in last]
    return Aligned(
        np.asarray(ids, np.int32),
        np.asarray(starts, np.int64),
        np.asarray(ends, np.int64),
        way,
        piece_of,
        of_text,
    )


def _partner(index: np.ndarray, at: int, size: int | None, is_start: bool) -> int:
    """The partner of a character, or the place that follows from those of its neighbours."""
    if index[at] != _NONE:
        return int(index[at])
    behind = at
    while behind < len(index) - 1 and index[behind] == _NONE:
        behind += 1
    front = at
    while front > 0 and index[front] == _NONE:
        front -= 1
    f, r = int(index[front]), int(index[behind])
    if f == _NONE and r == _NONE:
        return 0
    if f == _NONE:
        return r if r < 1 else (0 if is_start else r - 1)
    if r == _NONE:
        if size is not None and f < size - 1:
            return f + 1 if is_start else size - 1
        return f
    if r > f + 1:
        return f + 1 if is_start else r - 1
    return r if is_start else f


def _single(character: str, tokenizer: Tokenizer) -> str:
    """A character normalised by itself, white space left as it is."""
    if tokenizer.strip_accents:
        apart = unicodedata.normalize("NFKD", character)
        character = "".join(c for c in apart if not unicodedata.combining(c))
    return character.lower() if tokenizer.lower_case else character


def _with_sources(text: str, lower_case: bool, strip_accents: bool):
    """(normalised text, [its characters] -> the text's, whether each is one character of it).

    The text is None where normalising it as a whole comes to something else than normalising its
    characters one by one, as for a sigma at the end of a word.
    """
    letters: list[str] = []
    sources: list[int] = []
    whole: list[bool] = []
    blank: int | None = None  # the first of a run of white space
    pending = begun = False
    for place, character in enumerate(text):
        if character.isspace():
            if not pending:
                pending, blank = begun, None
            if (
                blank is None
                and (unicodedata.normalize("NFKD", character) if strip_accents else character)
                == " "
            ):
                blank = place
            continue
        begun = True
        if pending:
            letters.append(" ")
            sources.append(place - 1 if blank is None else blank)
            whole.append(blank is not None)
            pending = False
        made = character
        if strip_accents and not character.isascii():
            apart = unicodedata.normalize("NFKD", character)
            made = "".join(c for c in apart if not unicodedata.combining(c))
        made = made.lower() if lower_case else made
        letters.extend(made)
        sources.extend([place] * len(made))
        whole.extend([len(made) == 1] * len(made))
        blank = None
    plain = "".join(letters)
    same = plain == normalise(text, lower_case, strip_accents)
    return plain if same else None, np.asarray(sources, np.int64), np.asarray(whole, bool)


def _subsequence(text: str, spelled: str, tokenizer: Tokenizer) -> np.ndarray | None:
    """[characters of pieces] -> the text's, by the longest common subsequence in a band; None where
    it matches too little of the text."""
    from albert.data.labelled.subsequence import match

    alone = [_single(character, tokenizer) for character in text]
    ours = np.asarray([ord(c) if len(c) == 1 else _NONE for c in alone], np.int64)
    theirs = np.asarray([ord(c) for c in spelled], np.int64)
    distance = abs(len(ours) - len(theirs)) + 5
    for band in (distance, 2 * distance):
        partners, length = match(ours, theirs, band)
        if length > _ENOUGH * len(ours):
            break
    return None if length < _ENOUGH * len(ours) or (partners == _NONE).all() else partners
