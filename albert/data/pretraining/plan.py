"""The plan of an epoch, from the index of a corpus alone: chunks of sentences, rows of chunks.

Source: section 5 of the released program's semantics (`create_instances_from_document` in
`create_pretraining_data.py` of google-research/albert). Compiled by Numba: Wikipedia and books
have 160 million sentences. `tests/test_plan.py` holds it equal to that program's loop and, for
packing, to plain Python. Never imports jax.
"""

import dataclasses
import threading
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from albert.data.compiled import compiled
from albert.data.corpus.reader import Corpus
from albert.data.pretraining.pieces import Pieces
from albert.data.scratch import Scratch

OBJECTIVES = ("sop", "nsp", "none")
SINGLE_SEGMENT = ("split", "drop", "random")
MASKING_UNITS = ("word", "piece")
# First number of every key, and all keys of one length: no two streams of a run ever meet.
PLAN_STREAM, MIX_STREAM, ROW_STREAM, ORDER_STREAM = 1, 2, 3, 4
# Bits of an example's key: the corpus, the epoch and the chunk. Later epochs go on above these 64.
CORPUS_BITS, EPOCH_BITS, CHUNK_BITS = 10, 20, 34
_SEED_BITS = 34  # of a seed below 2^31 with the number of its stream
_sharing = threading.Lock()  # Grain starts its workers from several threads


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """What an example looks like."""

    seq_length: int  # L
    max_predictions: int  # P
    masking_rate: float
    masking_unit: str  # what an n-gram is made of: "word" or "piece"
    max_ngram: int
    corruption: tuple[float, float, float]  # of the masked: [MASK], unchanged, any piece
    sentence_objective: str  # "sop", "nsp", or "none": one segment without a label
    short_seq_prob: float  # of documents cut into chunks of a random, shorter length
    # What becomes of a chunk of one sentence: "split" it in two at a word, "drop" it, or give it
    # a "random" second segment labelled as swapped, as the released program does.
    single_segment: str
    packing: int  # examples in a row at most; 0: one, and the fields of packed rows are absent
    static_copies: int  # so many epochs differ, then they come again; 0: all differ

    @property
    def special_tokens(self) -> int:
        return 2 if self.sentence_objective == "none" else 3

    @property
    def text_tokens(self) -> int:
        """Tokens of text that a row has room for."""
        return self.seq_length - self.special_tokens

    @cached_property
    def budgets(self) -> np.ndarray:
        """int64 [L + 1]: tokens to mask in an example of every length."""
        wanted = np.rint(np.arange(self.seq_length + 1) * self.masking_rate).astype(np.int64)
        return np.clip(wanted, 1, self.max_predictions)


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Chunks, and which of them stand in each row."""

    # [chunks, 4]: first sentence, last + 1, and the same of a second segment from elsewhere,
    # which is empty where the chunk is both segments.
    chunks: np.ndarray
    lengths: np.ndarray  # int32 [chunks], tokens of the finished example
    members: np.ndarray  # [chunks], numbers of chunks, row by row
    bounds: np.ndarray | None  # int64 [rows + 1] into members; None: one to a row
    dropped: float  # share of the tokens that stand in no row

    def __len__(self) -> int:
        return len(self.members) if self.bounds is None else len(self.bounds) - 1

    def row(self, position: int) -> np.ndarray:
        if self.bounds is None:
            return self.members[position : position + 1]
        return self.members[self.bounds[position] : self.bounds[position + 1]]


class CorpusPlan:
    """The rows of one corpus, epoch by epoch.

    Sent to another process of this machine it takes the plans of epochs along as files to map.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: np.ndarray,
        options: ExampleOptions,
        seed: Sequence[int],
        rows_per_epoch: int | None = None,
        scratch: Scratch | None = None,
    ):
        """Plans over the documents with these numbers, sorted; seed: (run, corpus).

        `rows_per_epoch` and `scratch` are of a plan that was made in another process.
        """
        self.corpus = corpus
        self.documents = documents
        self.options = options
        self._seed = tuple(seed)
        self._scratch = scratch
        self.keep_epochs(2)
        # Counts differ a little from epoch to epoch. Every epoch has as many rows as the first,
        # so that a row's epoch is a division: a longer plan leaves a random few out, a shorter
        # one begins again.
        self.rows_per_epoch = len(self.epoch(0)) if rows_per_epoch is None else rows_per_epoch

    def __reduce__(self):
        with _sharing:
            self._share()
        return (
            CorpusPlan,
            (
                self.corpus,
                self.documents,
                self.options,
                self._seed,
                self.rows_per_epoch,
                self._scratch,
            ),
        )

    def _share(self) -> None:
        """Puts the first epoch where every process of this machine that gets the plan finds it."""
        if self._scratch is not None:
            return
        try:
            self._scratch = Scratch()
        except OSError as error:
            warnings.warn(
                f"There is no folder for temporary files ({error}): every process that makes "
                "batches plans its epochs for itself. Set TMPDIR to a folder that has room.",
                stacklevel=3,
            )
        else:
            first = self.epoch(0)
            self._scratch.arrays(_epoch_name(0), lambda: _as_arrays(first))
            self.keep_epochs(self._kept)  # mapped from now on, here as well

    @cached_property
    def pieces(self) -> Pieces:
        """What chunks count: sentences, and pieces of those that no row has room for."""
        two_segments = self.options.sentence_objective != "none"
        return Pieces(self.corpus, self.options.text_tokens, two_segments)

    def keep_epochs(self, count: int) -> None:
        """Remembers the plans of so many epochs, the last that were asked for."""
        self._kept = count
        self.epoch = lru_cache(maxsize=count)(self._find_epoch)

    def _find_epoch(self, number: int) -> Epoch:
        if self._scratch is None:
            return self._plan_epoch(number)
        arrays = self._scratch.arrays(
            _epoch_name(number), lambda: _as_arrays(self._plan_epoch(number))
        )
        if number >= self._kept:
            self._scratch.remove(_epoch_name(number - self._kept))
        return Epoch(
            arrays["chunks"],
            arrays["lengths"],
            arrays["members"],
            arrays.get("bounds"),
            float(arrays["dropped"]),
        )

    def row(self, row: int) -> tuple[np.ndarray, list[int]]:
        """The chunks of a row of this corpus, [examples, 4], and the key of each one's stream."""
        number, position = divmod(row, self.rows_per_epoch)
        epoch = self.epoch(number)
        members = epoch.row(position % len(epoch))
        corpus, copy = self._seed[1], self._copy(number)
        keys = [example_key(corpus, copy, member) for member in members.tolist()]
        return epoch.chunks[members], keys

    def padding(self) -> float:
        """Share of the positions of the first epoch's rows that hold no token."""
        epoch = self.epoch(0)
        room = len(epoch) * self.options.seq_length
        return 1 - float(epoch.lengths.sum(dtype=np.int64)) / room if room else 0.0

    def dropped_share(self) -> float:
        """Share of the tokens of its documents that stand in no row of the first epoch.

        They are cut off from examples that are longer than a row, or stand in chunks that give no
        example. A random second segment counts as text, too.
        """
        return self.epoch(0).dropped

    def _copy(self, epoch: int) -> int:
        copies = self.options.static_copies
        return epoch % copies if copies else epoch

    def _plan_epoch(self, number: int) -> Epoch:
        options = self.options
        rng = np.random.default_rng((PLAN_STREAM, *self._seed, self._copy(number)))
        chunks, lengths, dropped = _plan_chunks(self.pieces, self.documents, options, rng)
        order = rng.permutation(np.arange(len(chunks), dtype=np.uint32))
        shuffle = np.random.default_rng((ORDER_STREAM, *self._seed, number))
        if not options.packing:
            return Epoch(chunks, lengths, shuffle.permutation(order), None, dropped)
        rows, count = pack(
            lengths,
            order,
            options.seq_length,
            options.budgets,
            options.max_predictions,
            options.packing,
        )
        # Rows in random order, and the chunks of each one behind the other.
        place = shuffle.permutation(np.arange(count, dtype=np.uint32))[rows]
        members = np.argsort(place, kind="stable").astype(np.uint32)
        bounds = np.zeros(count + 1, np.int64)
        np.cumsum(np.bincount(place, minlength=count), out=bounds[1:])
        return Epoch(chunks, lengths, members, bounds, dropped)


def example_key(corpus: int, epoch: int, chunk: int) -> int:
    """What an example's stream is keyed by, another for every example; over 64 bits in late epochs.

    Raises ValueError where a number has no room.
    """
    late, within = divmod(epoch, 1 << EPOCH_BITS)
    if corpus >> CORPUS_BITS or chunk >> CHUNK_BITS or late >> (64 - _SEED_BITS):
        raise ValueError(
            f"corpus {corpus}, epoch {epoch}, chunk {chunk}: a run has room for "
            f"{1 << CORPUS_BITS} corpora of {1 << CHUNK_BITS} chunks"
        )
    return late << 64 | corpus << (EPOCH_BITS + CHUNK_BITS) | within << CHUNK_BITS | chunk


def example_stream(seed: int, key: int) -> np.random.Generator:
    """The random numbers of the example with this key (`example_key`) in a run of this seed."""
    late, low = divmod(key, 1 << 64)
    # As uint64: in a list of Python's integers numpy takes those above 2^63 for floats.
    words = np.array([late << _SEED_BITS | (seed * 8 + ROW_STREAM), low], np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def _epoch_name(number: int) -> str:
    return f"epoch-{number}"


def _as_arrays(epoch: Epoch) -> dict[str, np.ndarray]:
    arrays = {
        "chunks": epoch.chunks,
        "lengths": epoch.lengths,
        "members": epoch.members,
        "dropped": np.asarray(epoch.dropped),
    }
    return arrays if epoch.bounds is None else {**arrays, "bounds": epoch.bounds}


def plan_chunks(
    corpus: Corpus | Pieces,
    documents: np.ndarray,
    options: ExampleOptions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into chunks of whole sentences.

    Each document draws a target length once: that of a full row, or with probability
    `short_seq_prob` uniform from 2 up to it. Sentences are added until the target is reached or
    the document ends. For "nsp", half of the chunks (and those of one sentence) end behind a
    random sentence and get a second segment from a random document; what they leave begins the
    next chunk.

    Returns:
      [chunks, 4] as in `Epoch`, in corpus order, uint32 where that is enough; and int32 [chunks],
      the number of tokens of each example, truncated to L.
    """
    chunks, lengths, _ = _plan_chunks(corpus, documents, options, rng)
    return chunks, lengths


def _plan_chunks(
    corpus: Corpus | Pieces,
    documents: np.ndarray,
    options: ExampleOptions,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float]:
    """As `plan_chunks`, with the share of the tokens that stand in no example."""
    longest = options.text_tokens
    targets = np.full(len(documents), longest, np.int64)
    short = rng.random(len(documents)) < options.short_seq_prob
    targets[short] = rng.integers(2, longest + 1, int(short.sum()))
    # As many as there are sentences at most; memory is taken only for what is written.
    dtype = np.uint32 if corpus.num_sentences < 2**32 else np.int64
    chunks = np.empty((corpus.num_sentences, 4), dtype)
    lengths = np.empty(corpus.num_sentences, np.int32)
    count, left_out = _cut_documents(
        corpus.sentence_lengths,
        corpus.document_starts,
        np.asarray(documents, np.int64),
        targets,
        OBJECTIVES.index(options.sentence_objective),
        SINGLE_SEGMENT.index(options.single_segment),
        rng,
        chunks,
        lengths,
    )
    whole = lengths[:count]
    lengths = np.minimum(whole, longest) + np.int32(options.special_tokens)
    tokens = left_out + int(whole.sum(dtype=np.int64))
    kept = int(lengths.sum(dtype=np.int64)) - options.special_tokens * count
    dropped = 1 - kept / tokens if tokens else 0.0
    return chunks[:count].copy(), lengths, dropped


_SOP, _NSP, _NONE = range(3)
_SPLIT, _DROP, _RANDOM = range(3)


@compiled
def _cut_documents(lengths, starts, documents, targets, objective, single, rng, chunks, tokens):
    """Fills chunks and tokens; returns how many there are, and the tokens of those left out."""
    count = 0
    left_out = 0
    for number in range(len(documents)):
        first, end = starts[documents[number]], starts[documents[number] + 1]
        while first < end:
            size, last = 0, first
            while last < end and size < targets[number]:
                size += lengths[last]
                last += 1
            sentences = last - first
            other = False
            keep = True
            if objective == _NSP:
                other = sentences == 1 or rng.random() < 0.5
                if other and sentences > 1:
                    cut = 1 + int(rng.random() * (sentences - 1))
                    for sentence in range(first + cut, last):
                        size -= lengths[sentence]
                    last = first + cut
            elif objective == _SOP and sentences == 1:
                other = single == _RANDOM
                keep = single == _RANDOM or (single == _SPLIT and size >= 2)
            begin, stop = 0, 0
            if other:
                begin, stop, more = _random_segment(
                    lengths, starts, documents, number, targets[number] - size, rng
                )
                size += more
            if keep:
                chunks[count, 0], chunks[count, 1] = first, last
                chunks[count, 2], chunks[count, 3] = begin, stop
                tokens[count] = min(size, 1 << 30)
                count += 1
            else:
                left_out += size
            first = last
    return count, left_out


@compiled
def _random_segment(lengths, starts, documents, own, wanted, rng):
    """Sentences of another document from a random one on, until there are `wanted` tokens."""
    other = own
    for _ in range(10):  # as released: a corpus of one document settles for its own
        other = int(rng.random() * len(documents))
        if other != own:
            break
    begin, end = starts[documents[other]], starts[documents[other] + 1]
    begin += int(rng.random() * (end - begin))
    stop, size = begin, 0
    while stop < end and (stop == begin or size < wanted):
        size += lengths[stop]
        stop += 1
    return begin, stop, size


@compiled
def pack(lengths, order, capacity, budgets, max_predictions, most):
    """Best fit, longest first: every example into the fullest open row that has room for it.

    Room is for its tokens, for the tokens it masks, and for one more example. Equal lengths come
    in `order`, so that who shares a row is random.

    Args:
      lengths: int32 [examples], each at most `capacity`.
      order: [examples], a permutation.
      capacity: tokens of a row.
      budgets: int64 [capacity + 1], tokens to mask in an example of every length.
      max_predictions: tokens to mask in a row.
      most: examples in a row.

    Returns:
      (row of every example as int64 [examples], number of rows).
    """
    # Counting sort, longest first.
    begins = np.zeros(capacity + 2, np.int64)
    for length in lengths:
        begins[capacity - length + 1] += 1
    begins = np.cumsum(begins)
    ranked = np.empty(len(order), order.dtype)
    for example in order:
        slot = capacity - lengths[example]
        ranked[begins[slot]] = example
        begins[slot] += 1

    rows = np.empty(len(lengths), np.int64)
    # Open rows by the tokens they have left, as linked lists; -1 ends a list.
    heads = np.full(capacity + 1, -1, np.int64)
    following = np.empty(len(lengths), np.int64)
    held = np.zeros(len(lengths), np.int32)
    masked = np.zeros(len(lengths), np.int32)
    count = 0
    for example in ranked:
        length = lengths[example]
        budget = budgets[length]
        row, left = -1, capacity
        for room in range(length, capacity):
            candidate = heads[room]
            if candidate >= 0 and masked[candidate] + budget <= max_predictions:
                heads[room] = following[candidate]
                row, left = candidate, room
                break
        if row < 0:
            row = count
            count += 1
        rows[example] = row
        held[row] += 1
        masked[row] += budget
        if held[row] < most:
            left -= length
            following[row] = heads[left]
            heads[left] = row
    return rows, count
