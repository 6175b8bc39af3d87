"""The sentences of a corpus as a row sees them: what no row has room for is in pieces.

Text without punctuation, or in a script whose sentence ends are not known, is one sentence of a
thousand tokens and more. The released program makes one example of it, cut to a row's length: the
rest is never seen. Here such a sentence counts as several, one behind the other, each a
neighbour of the next in the same document. Sentences that a row has room for stay whole, so that
text without longer ones has the rows that it always had.

The pieces come from the lengths alone, so that planning still reads no text; a piece may begin
inside a word, as truncated examples do. With two segments in a row a piece is half a row, so that
two of them fill one and the sentence order is that of the text. Never imports jax.
"""

import numpy as np

from albert.data.corpus.reader import Corpus


class Pieces:
    """The sentences of a corpus, those of more than `longest` tokens cut into pieces.

    It has what planning and reading need of a `Corpus`, by the same names.
    """

    def __init__(self, corpus: Corpus, longest: int, two_segments: bool):
        """`longest`: tokens that a row has room for."""
        self._corpus = corpus
        self._longest = longest
        self._piece = -(-longest // 2) if two_segments else longest
        lengths = corpus.sentence_lengths
        # Sentences that are in pieces, and how many pieces stand in front of each one's first.
        self._cut = np.flatnonzero(lengths > longest)
        full, rest = np.divmod(lengths[self._cut].astype(np.int64), longest)
        in_full, in_rest = -(-longest // self._piece), -(-rest // self._piece)
        self._counts = full * in_full + in_rest
        more = np.concatenate([[0], np.cumsum(self._counts - 1)])
        self._firsts = self._cut + more[:-1]
        self._more = more

    @property
    def num_cut(self) -> int:
        """Sentences that are in pieces."""
        return len(self._cut)

    @property
    def num_sentences(self) -> int:
        return self._corpus.num_sentences + int(self._more[-1])

    @property
    def sentence_lengths(self) -> np.ndarray:
        """uint32 [sentences and pieces]: tokens of each. As long as the corpus: made when asked."""
        lengths = self._corpus.sentence_lengths
        if not self.num_cut:
            return lengths
        pieces = np.insert(lengths, np.repeat(self._cut, self._counts - 1), 0)
        begins = np.cumsum(self._counts) - self._counts
        number = np.arange(int(self._counts.sum())) - np.repeat(begins, self._counts)
        ends = self._offset(number + 1)
        ends[begins + self._counts - 1] = lengths[self._cut]  # of the last piece of each
        pieces[np.repeat(self._firsts, self._counts) + number] = ends - self._offset(number)
        return pieces

    @property
    def document_starts(self) -> np.ndarray:
        """int64 [documents + 1]: as of the corpus, in these numbers."""
        starts = self._corpus.document_starts
        if not self.num_cut:
            return starts
        return starts + self._more[self._cut.searchsorted(starts)]

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Tokens of sentences or pieces first, ..., last - 1: int64 [last - first]."""
        return np.diff(self._places(first, last)[2])

    def read(self, first: int, last: int) -> np.ndarray:
        """The ids of sentences or pieces first, ..., last - 1: int32 [tokens]."""
        sentence, skip, ends = self._places(first, last)
        return self._corpus.read_tokens(sentence, skip, int(ends[-1] - ends[0]))

    def _places(self, first: int, last: int) -> tuple[int, int, np.ndarray]:
        """The sentence that `first` is of, the tokens of it in front, and where each one ends.

        The latter are int64 [last - first + 1] and begin with 0 or any other number.
        """
        numbers = np.arange(first, last + 1)
        # The last cut sentence that begins at or in front of each, -1 for none.
        cut = self._firsts.searchsorted(numbers, side="right") - 1
        if cut[-1] < 0:
            sentences, skips = numbers, np.zeros(len(numbers), np.int64)
        else:
            piece = numbers - self._firsts[cut]
            inside = (cut >= 0) & (piece < self._counts[cut])
            sentences = np.where(inside, self._cut[cut], numbers - self._more[cut + 1])
            skips = np.where(inside, self._offset(piece), 0)
        begin = int(sentences[0])
        lengths = self._corpus.sentence_lengths[begin : int(sentences[-1])]
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return begin, int(skips[0]), ends[sentences - begin] + skips

    def _offset(self, piece: np.ndarray) -> np.ndarray:
        """Where pieces with these numbers begin: every second one at a multiple of `longest`."""
        if self._piece == self._longest:
            return piece * self._longest
        return piece // 2 * self._longest + piece % 2 * self._piece
