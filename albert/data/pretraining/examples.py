"""Pretraining rows: every row of every step is a pure function of (corpora, seed, row).

Source: section 5 of the released program's semantics (`create_pretraining_data.py` of
google-research/albert): sentence order, truncation, masking.

`plan.py` says which chunk of which corpus stands where. A row then needs its own chunks only, so
any process can make any row, and resuming needs only the step. What an example looks like does
not depend on where it stands: packed or not, it is the same. Never imports jax.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from albert.data.compiled import compiled
from albert.data.pretraining.masking import choose_masked, corrupt
from albert.data.pretraining.plan import (
    MIX_STREAM,
    CorpusPlan,
    ExampleOptions,
    example_stream,
)
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, SEP, SPECIAL, WORD_MARK, Tokenizer

IN_ORDER, SWAPPED = 0, 1  # labels of "sop"; those of "nsp" are 0 the next and 1 a random segment

Batch = dict[str, np.ndarray]


def empty_batch(count: int, options: ExampleOptions) -> Batch:
    """Rows of padding without targets: what `Examples.batch` fills, and its fields.

    Returns:
      input_ids, token_type_ids, attention_mask: int32 [count, L];
      mlm_positions, mlm_labels: int32 [count, P]; mlm_weights: float32 [count, P];
      sop_labels: int32 [count], -1 for no label. Packed rows, of K examples at most, have
      sop_labels int32 [count, K]; cls_positions int32 [count, K], where each example begins;
      segment_ids int32 [count, L], 1 for the first example's tokens, 2 for the next, 0 for
      padding; position_ids int32 [count, L], which begin at 0 in every example.
    """
    tokens = (count, options.seq_length)
    predictions = (count, options.max_predictions)
    batch = {
        "input_ids": np.zeros(tokens, np.int32),
        "token_type_ids": np.zeros(tokens, np.int32),
        "attention_mask": np.zeros(tokens, np.int32),
        "mlm_positions": np.zeros(predictions, np.int32),
        "mlm_labels": np.zeros(predictions, np.int32),
        "mlm_weights": np.zeros(predictions, np.float32),
        "sop_labels": np.full(count, -1, np.int32),
    }
    if options.packing:
        batch |= {
            "sop_labels": np.full((count, options.packing), -1, np.int32),
            "cls_positions": np.zeros((count, options.packing), np.int32),
            "segment_ids": np.zeros(tokens, np.int32),
            "position_ids": np.zeros(tokens, np.int32),
        }
    return batch


class Examples:
    """Rows of a mixture of corpora, an endless sequence indexed by the global row number."""

    def __init__(
        self,
        plans: Sequence[CorpusPlan],
        weights: Sequence[float],
        temperature: float,
        tokenizer: Tokenizer,
        options: ExampleOptions,
        seed: int,
    ):
        """Mixes the plans by weight ** (1 / temperature); no weights means their sizes."""
        self.plans = list(plans)
        self.tokenizer = tokenizer
        self.options = options
        self._weights = tuple(weights)
        self._temperature = temperature
        self._seed = seed
        self._counts = mixture([p.rows_per_epoch for p in self.plans], weights, temperature)
        self.rows_per_epoch = sum(self._counts)
        for plan, count in zip(self.plans, self._counts, strict=True):
            if not count:
                raise SourceError(
                    f"{plan.corpus.manifest['spec']} gets none of the {self.rows_per_epoch} rows "
                    "of an epoch: its weight in data.train_weights is too small."
                )
            # An epoch of the mixture runs through so many of a corpus, in random order.
            plan.keep_epochs(2 + -(-count // plan.rows_per_epoch))
        self._order = lru_cache(maxsize=2)(self._mix_epoch)
        if options.masking_unit == "word":
            self._starts_word = tokenizer.starts_word
        else:
            self._starts_word = np.ones(tokenizer.vocab_size, bool)

    def __reduce__(self):
        arguments = (
            self.plans,
            self._weights,
            self._temperature,
            self.tokenizer,
            self.options,
            self._seed,
        )
        return (Examples, arguments)

    def __getitem__(self, row: int) -> Batch:
        """One row: the fields of `empty_batch` without their first axis."""
        return {name: values[0] for name, values in self.batch([row]).items()}

    def batch(self, rows: Sequence[int], whole: Sequence[int] | None = None) -> Batch:
        """The rows with these numbers, one behind the other; the fields are those of `empty_batch`.

        Where a number is negative the row is padding without targets. All rows are as long.
        """
        del whole
        options = self.options
        batch = empty_batch(len(rows), options)
        packed = options.packing > 0
        for place, row in enumerate(rows):
            if row < 0:
                continue
            plan, row_of_plan = self._locate(row)
            offset = masked = 0
            for number, (chunk, key) in enumerate(zip(*plan.row(row_of_plan), strict=True)):
                rng = example_stream(self._seed, key)
                a, b, label = self._segments(plan, chunk.tolist(), rng)
                length = len(a) + len(b) + options.special_tokens
                budget = int(options.budgets[length])
                masked = _write_example(
                    batch["input_ids"][place],
                    batch["token_type_ids"][place],
                    batch["mlm_positions"][place],
                    batch["mlm_labels"][place],
                    batch["mlm_weights"][place],
                    offset,
                    masked,
                    a,
                    b,
                    self._starts_word,
                    budget,
                    options.max_ngram,
                    self.tokenizer.vocab_size,
                    options.corruption[0],
                    options.corruption[1],
                    rng.random(2 * length + 2 * budget),
                )
                end = offset + length
                batch["attention_mask"][place, offset:end] = 1
                if packed:
                    batch["segment_ids"][place, offset:end] = number + 1
                    batch["position_ids"][place, offset:end] = np.arange(length)
                    batch["cls_positions"][place, number] = offset
                    batch["sop_labels"][place, number] = label
                else:
                    batch["sop_labels"][place] = label
                offset = end
        return batch

    def padding(self) -> float:
        """Share of the positions of an epoch's rows that hold no token."""
        shares = np.average([plan.padding() for plan in self.plans], weights=self._counts)
        return float(shares)

    def dropped_share(self) -> float:
        """Share of the tokens of the text that stand in no row of an epoch; see `CorpusPlan`.

        The text of each corpus counts by its share of the rows.
        """
        shares = [plan.dropped_share() for plan in self.plans]
        return float(np.average(shares, weights=self._counts))

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
        rng = np.random.default_rng((MIX_STREAM, self._seed, 0, epoch))
        return rng.permutation(np.arange(self.rows_per_epoch, dtype=np.uint32))

    def _segments(self, plan, chunk, rng) -> tuple[np.ndarray, np.ndarray, int]:
        """Segments A and B, truncated to fit a row, and the label."""
        objective = self.options.sentence_objective
        limit = self.options.text_tokens
        first, last, other_first, other_last = chunk
        ids = plan.pieces.read(first, last)
        label = IN_ORDER
        if objective == "none":
            a, b, label = ids, ids[:0], -1
        elif other_last:
            a, b, label = ids, plan.pieces.read(other_first, other_last), SWAPPED
        else:
            cut = self._cut(plan.pieces.lengths(first, last), ids, rng)
            a, b = ids[:cut], ids[cut:]
            if objective == "sop" and rng.random() < 0.5:
                a, b, label = b, a, SWAPPED
        if len(a) + len(b) > limit:
            a, b = truncate(a, b, limit, rng)
        return a, b, label

    def _cut(self, lengths: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> int:
        """Where segment A ends: behind a sentence, or in front of a word if there is just one."""
        if len(lengths) > 1:
            return int(lengths[: rng.integers(1, len(lengths))].sum())
        starts = np.flatnonzero(self.tokenizer.starts_word[ids][1:]) + 1
        places = starts if len(starts) else np.arange(1, len(ids))
        return int(places[rng.integers(len(places))])


def mixture(sizes: Sequence[int], weights: Sequence[float], temperature: float) -> list[int]:
    """Rows of each corpus in an epoch of as many rows as all have.

    The share of a corpus is proportional to weight ** (1 / temperature); without weights, to its
    size ** (1 / temperature): 1 keeps the proportions, more brings them closer together.
    """
    base = np.asarray(weights or sizes, np.float64)
    shares = (base / base.sum()) ** (1 / temperature)
    return [round(share * sum(sizes)) for share in (shares / shares.sum()).tolist()]


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


@compiled
def _write_example(
    ids,
    types,
    positions,
    labels,
    weights,
    offset,
    masked,
    a,
    b,
    starts_word,
    budget,
    max_ngram,
    vocab_size,
    mask_share,
    keep_share,
    draws,
):
    """Writes [CLS] A [SEP] B [SEP], masked, at `offset` of a row that has `masked` masks already.

    Without B there is no second [SEP]. Returns the number of masks with those of this example.
    """
    text = np.empty(len(a) + len(b), np.int32)
    text[: len(a)] = a
    text[len(a) :] = b
    # Candidates are the tokens without [CLS] and [SEP]; a segment begins with a word.
    starts = starts_word[text]
    starts[0] = True
    if len(b):
        starts[len(a)] = True
    chosen = choose_masked(starts, budget, max_ngram, draws)
    hidden = text[chosen]
    shown = corrupt(hidden, vocab_size, mask_share, keep_share, draws[2 * len(text) :])
    text[chosen] = shown

    middle = offset + 1 + len(a)
    ids[offset] = CLS
    ids[offset + 1 : middle] = text[: len(a)]
    ids[middle] = SEP
    if len(b):
        ids[middle + 1 : middle + 1 + len(b)] = text[len(a) :]
        ids[middle + 1 + len(b)] = SEP
        types[middle + 1 : middle + 2 + len(b)] = 1
    for i in range(len(chosen)):
        behind_separator = 1 if len(b) and chosen[i] >= len(a) else 0
        positions[masked + i] = offset + 1 + chosen[i] + behind_separator
        labels[masked + i] = hidden[i]
        weights[masked + i] = 1.0
    return masked + len(chosen)


def show_row(example: dict[str, np.ndarray], tokenizer: Tokenizer) -> str:
    """A row for a reader: labels, counts, and its text with masked pieces in braces."""
    used = int(example["attention_mask"].sum())
    masked = {
        int(position): int(label)
        for position, label, weight in zip(
            example["mlm_positions"], example["mlm_labels"], example["mlm_weights"], strict=True
        )
        if weight
    }
    header = f"{used} of {len(example['input_ids'])} positions, {len(masked)} masked"
    if "segment_ids" not in example:
        label = _label_words(int(example["sop_labels"]))
        return f"{label}, {header}\n{_show_span(example, range(used), masked, tokenizer)}"
    segments = example["segment_ids"][:used]
    count = int(segments.max(initial=0))
    lines = [f"{count} example{'s' if count > 1 else ''}, {header}"]
    for number in range(count):
        span = np.flatnonzero(segments == number + 1).tolist()
        label = _label_words(int(example["sop_labels"][number]))
        of_these = sum(position in masked for position in span)
        lines.append(f"example {number + 1}: {label}, {len(span)} positions, {of_these} masked")
        lines.append(_show_span(example, span, masked, tokenizer))
    return "\n".join(lines)


def _label_words(label: int) -> str:
    order = {IN_ORDER: "in order", SWAPPED: "swapped"}.get(label, "no label")
    return f"sentence order {label} ({order})"


def _show_span(example, span, masked: dict[int, int], tokenizer: Tokenizer) -> str:
    words = []
    for position in span:
        piece = tokenizer.pieces([int(example["input_ids"][position])])[0]
        if position in masked:
            truth = tokenizer.pieces([masked[position]])[0]
            # The mark goes in front of the brace, so that words stay apart and pieces together.
            mark = WORD_MARK if truth.startswith(WORD_MARK) else ""
            words.append(f"{mark}{{{truth.removeprefix(WORD_MARK)} > {piece}}}")
        else:
            words.append(f"{WORD_MARK}{piece}{WORD_MARK}" if piece in SPECIAL else piece)
    return " ".join("".join(words).replace(WORD_MARK, " ").split())
