"""Pretraining examples: every row of every step is a pure function of (corpora, seed, row).

Source: section 5 of the released program's semantics (`create_pretraining_data.py` of
google-research/albert): chunks of whole sentences, sentence order, truncation, masking.

An epoch of a corpus is planned at once from its index: where each chunk begins and ends, and in
which order they come. A row then needs its own chunk only, so any process can make any row, and
resuming needs only the step. Never imports jax.
"""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from albert.data.corpus import Corpus
from albert.data.masking import choose_masked, corrupt
from albert.data.sources import SourceError
from albert.data.tokenizer import CLS, SEP, SPECIAL, WORD_MARK, Tokenizer

SINGLE_SEGMENT = ("split", "drop", "random")
IN_ORDER, SWAPPED = 0, 1
# First number of every key, and all keys of one length: no two streams of a run ever meet.
_PLAN, _MIX, _ROW = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """What an example looks like."""

    seq_length: int  # L
    max_predictions: int  # P
    masking_rate: float
    max_ngram: int
    short_seq_prob: float  # of documents cut into chunks of a random, shorter length
    # What becomes of a chunk of one sentence: "split" it in two at a word, "drop" it, or give it
    # a "random" second segment labelled as swapped, as the released program does.
    single_segment: str


class CorpusPlan:
    """The chunks of one corpus, epoch by epoch."""

    def __init__(
        self, corpus: Corpus, documents: np.ndarray, options: ExampleOptions, seed: Sequence[int]
    ):
        """Plans over the documents with these numbers, sorted; seed: (run, corpus)."""
        self.corpus = corpus
        self.documents = documents
        self._options = options
        self._seed = tuple(seed)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        # Chunk counts differ a little from epoch to epoch. Every epoch has as many rows as the
        # first, so that a row's epoch is a division: a longer plan leaves a random few out, a
        # shorter one begins again.
        self.rows_per_epoch = len(self._epoch(0))

    def __reduce__(self):
        return (CorpusPlan, (self.corpus, self.documents, self._options, self._seed))

    def chunk(self, row: int) -> tuple[int, int, int]:
        """First sentence, last sentence + 1 and target length of a row of this corpus."""
        epoch, position = divmod(row, self.rows_per_epoch)
        chunks = self._epoch(epoch)
        first, last, target = chunks[position % len(chunks)]
        return int(first), int(last), int(target)

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((_PLAN, *self._seed, epoch))
        chunks = plan_chunks(self.corpus, self.documents, self._options, rng)
        return chunks[rng.permutation(len(chunks))]


def plan_chunks(
    corpus: Corpus, documents: np.ndarray, options: ExampleOptions, rng: np.random.Generator
) -> np.ndarray:
    """Cuts documents into chunks of whole sentences.

    Each document draws a target length once: L - 3, or with probability `short_seq_prob` uniform
    in [2, L - 3]. Sentences are added until the target is reached or the document ends.

    Returns:
      int64 [chunks, 3]: first sentence, last sentence + 1, target length; in corpus order.
    """
    longest = options.seq_length - 3
    targets = np.full(len(documents), longest, np.int64)
    short = rng.random(len(documents)) < options.short_seq_prob
    targets[short] = rng.integers(2, longest + 1, int(short.sum()))
    # tokens_before[i]: tokens in front of sentence i.
    tokens_before = np.concatenate([[0], np.cumsum(corpus.sentence_lengths, dtype=np.int64)])
    first = np.asarray(corpus.document_starts[documents])
    ends = np.asarray(corpus.document_starts[documents + 1])
    pieces = []
    # All documents advance by one chunk at a time, side by side.
    while len(first):
        reached = np.searchsorted(tokens_before, tokens_before[first] + targets)
        last = np.minimum(reached, ends)
        pieces.append(np.stack([first, last, targets], axis=1))
        unfinished = last < ends
        first, ends, targets = last[unfinished], ends[unfinished], targets[unfinished]
    chunks = np.concatenate(pieces) if pieces else np.zeros((0, 3), np.int64)
    chunks = chunks[np.argsort(chunks[:, 0], kind="stable")]
    single = chunks[:, 1] - chunks[:, 0] == 1
    if options.single_segment == "drop":
        return chunks[~single]
    if options.single_segment == "split":
        too_short = corpus.sentence_lengths[chunks[:, 0]] < 2
        return chunks[~(single & too_short)]
    return chunks


class Examples:
    """Rows of a mixture of corpora, an endless sequence indexed by the global row number."""

    def __init__(
        self,
        plans: Sequence[CorpusPlan],
        weights: Sequence[float],
        tokenizer: Tokenizer,
        options: ExampleOptions,
        seed: int,
    ):
        """Mixes the plans by weight; no weights means in proportion to their sizes."""
        self.plans = list(plans)
        self.tokenizer = tokenizer
        self.options = options
        self._weights = tuple(weights)
        self._seed = seed
        sizes = [plan.rows_per_epoch for plan in self.plans]
        total = sum(sizes)
        shares = [w / sum(weights) for w in weights] if weights else [n / total for n in sizes]
        self._counts = [round(share * total) for share in shares]
        self.rows_per_epoch = sum(self._counts)
        for plan, count in zip(self.plans, self._counts, strict=True):
            if not count:
                raise SourceError(
                    f"{plan.corpus.manifest['spec']} gets none of the {total} rows of an epoch: "
                    "its weight in data.train_weights is too small."
                )
        self._order = lru_cache(maxsize=2)(self._mix_epoch)

    def __reduce__(self):
        arguments = (self.plans, self._weights, self.tokenizer, self.options, self._seed)
        return (Examples, arguments)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """One example.

        Returns:
          input_ids, token_type_ids, attention_mask: int32 [L];
          mlm_positions, mlm_labels: int32 [P]; mlm_weights: float32 [P];
          sop_labels: int32 scalar, 0 in order and 1 swapped.
        """
        plan, row_of_plan = self._locate(row)
        rng = np.random.Generator(np.random.Philox(key=[self._seed * 8 + _ROW, row]))
        a, b, label = self._segments(plan, plan.chunk(row_of_plan), rng)
        a, b = truncate(a, b, self.options.seq_length - 3, rng)
        return self._build(a, b, label, rng)

    def _locate(self, row: int) -> tuple[CorpusPlan, int]:
        if len(self.plans) == 1:
            return self.plans[0], row
        epoch, position = divmod(row, self.rows_per_epoch)
        slot = int(self._order(epoch)[position])
        for plan, count in zip(self.plans, self._counts, strict=True):
            if slot < count:
                return plan, epoch * count + slot
            slot -= count
        raise AssertionError("the counts add up to the rows of an epoch")

    def _mix_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((_MIX, self._seed, 0, epoch)).permutation(self.rows_per_epoch)

    def _segments(self, plan, chunk, rng) -> tuple[np.ndarray, np.ndarray, int]:
        """Segments A and B before truncation, and the sentence-order label."""
        first, last, target = chunk
        sentences = plan.corpus.read(first, last)
        if len(sentences) > 1:
            cut = int(rng.integers(1, len(sentences)))
            a, b = np.concatenate(sentences[:cut]), np.concatenate(sentences[cut:])
        elif self.options.single_segment == "random":
            return sentences[0], self._random_segment(plan, first, target, sentences[0], rng), 1
        else:
            starts = np.flatnonzero(self.tokenizer.starts_word[sentences[0]][1:]) + 1
            places = starts if len(starts) else np.arange(1, len(sentences[0]))
            cut = int(places[rng.integers(len(places))])
            a, b = sentences[0][:cut], sentences[0][cut:]
        if rng.random() < 0.5:
            return b, a, SWAPPED
        return a, b, IN_ORDER

    def _random_segment(self, plan, first, target, a, rng) -> np.ndarray:
        """Sentences of another document, until A and B together reach the target."""
        starts = plan.corpus.document_starts
        own = np.searchsorted(starts, first, side="right") - 1
        document = own
        for _ in range(10):  # as released: a corpus of one document settles for its own
            document = plan.documents[rng.integers(len(plan.documents))]
            if document != own:
                break
        start = int(rng.integers(starts[document], starts[document + 1]))
        lengths = plan.corpus.sentence_lengths[start : starts[document + 1]]
        reached = int(np.searchsorted(np.cumsum(lengths), target - len(a))) + 1
        return np.concatenate(plan.corpus.read(start, start + min(reached, len(lengths))))

    def _build(self, a, b, label, rng) -> dict[str, np.ndarray]:
        options = self.options
        length = len(a) + len(b) + 3
        ids = np.zeros(options.seq_length, np.int32)
        ids[:length] = np.concatenate([[CLS], a, [SEP], b, [SEP]])
        types = np.zeros(options.seq_length, np.int32)
        types[len(a) + 2 : length] = 1
        mask = np.zeros(options.seq_length, np.int32)
        mask[:length] = 1

        # Candidates are the tokens without [CLS] and [SEP]; a segment begins with a word.
        word_starts = self.tokenizer.starts_word[np.concatenate([a, b])]
        word_starts[[0, len(a)]] = True
        budget = min(options.max_predictions, max(1, round(length * options.masking_rate)))
        chosen = choose_masked(word_starts, budget, options.max_ngram, rng)
        chosen = chosen + 1 + (chosen >= len(a))
        positions = np.zeros(options.max_predictions, np.int32)
        labels = np.zeros(options.max_predictions, np.int32)
        weights = np.zeros(options.max_predictions, np.float32)
        positions[: len(chosen)] = chosen
        labels[: len(chosen)] = ids[chosen]
        weights[: len(chosen)] = 1
        ids[chosen] = corrupt(ids[chosen], self.tokenizer.vocab_size, rng)
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "attention_mask": mask,
            "mlm_positions": positions,
            "mlm_labels": labels,
            "mlm_weights": weights,
            "sop_labels": np.array(label, np.int32),
        }


def truncate(
    a: np.ndarray, b: np.ndarray, max_tokens: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts two segments to fit together.

    As if one token at a time were taken from the longer (from B if equal), at its front or back
    with probability 1/2 each.
    """
    excess = len(a) + len(b) - max_tokens
    if excess <= 0:
        return a, b
    longer = min(excess, abs(len(a) - len(b)))
    from_a = longer if len(a) > len(b) else 0
    from_a += (excess - longer) // 2
    segments = []
    for segment, removed in ((a, from_a), (b, excess - from_a)):
        front = int(rng.binomial(removed, 0.5))
        segments.append(segment[front : len(segment) - (removed - front)])
    return segments[0], segments[1]


def show_row(example: dict[str, np.ndarray], tokenizer: Tokenizer) -> str:
    """An example for a reader: label, counts, and its text with masked pieces in braces."""
    length = int(example["attention_mask"].sum())
    masked = {
        int(position): int(label)
        for position, label, weight in zip(
            example["mlm_positions"], example["mlm_labels"], example["mlm_weights"], strict=True
        )
        if weight
    }
    words = []
    for position in range(length):
        piece = tokenizer.pieces([int(example["input_ids"][position])])[0]
        if position in masked:
            truth = tokenizer.pieces([masked[position]])[0]
            # The mark goes in front of the brace, so that words stay apart and pieces together.
            mark = WORD_MARK if truth.startswith(WORD_MARK) else ""
            words.append(f"{mark}{{{truth.removeprefix(WORD_MARK)} > {piece}}}")
        else:
            words.append(f"{WORD_MARK}{piece}{WORD_MARK}" if piece in SPECIAL else piece)
    label = int(example["sop_labels"])
    order = {IN_ORDER: "in order", SWAPPED: "swapped"}.get(label, "no label")
    text = " ".join("".join(words).replace(WORD_MARK, " ").split())
    return (
        f"sentence order {label} ({order}), {length} of {len(example['input_ids'])} positions, "
        f"{len(masked)} masked\n{text}"
    )
