"""What a prepared corpus holds: counts, lengths, pieces, repeated documents, padding.

A text is some documents of a corpus, as a plan has them: the training or the held-out part of a
source. Its ids are read a few passages at a time; all else comes from the index. Never imports
jax.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from albert.data.corpus.reader import Corpus, unknown_characters
from albert.data.pretraining.plan import CorpusPlan
from albert.data.tokenizer import SPECIAL, UNK, Tokenizer

QUANTILES = (5, 25, 50, 75, 95)
PACKING = 8  # examples in a row at most, for the estimate where the config does not pack
MOST_FREQUENT = 30
_SENTENCES_AT_ONCE = 1024
_BINS_PER_DOUBLING = 4
_RANKS_PER_DECADE = 20


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long sentences or documents are, in tokens."""

    mean: float
    max: int
    quantiles: dict[str, int]  # "50": half of them are as long as this or shorter
    edges: list[int]  # bin i holds lengths from edges[i] to edges[i + 1] - 1
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How often the entries of the vocabulary occur."""

    most_frequent: list[tuple[str, int]]
    never: int  # entries that do not occur; those that mean something special are not counted
    # Occurrences of the piece of each rank; 1 is the most frequent. Ranks are thinned out evenly
    # on a logarithmic scale.
    ranks: list[int]
    counts: list[int]


@dataclasses.dataclass(frozen=True)
class Text:
    """The figures of one text; numbers of documents where nothing else is said."""

    split: str  # "train" or "held-out"
    spec: str
    # Of the whole source, and None where that is not known or the text is the held-out part of
    # a source that stands in the report already.
    records: int | None
    bad_records: int | None  # left out
    characters_per_token: float | None
    documents: int
    sentences: int
    tokens: int
    unknown: float  # share of the tokens that are <unk>; one may be a whole line
    unknown_characters: float | None  # share of the characters, as above of the whole source
    dropped: float  # share of the tokens that stand in no row of an epoch
    word_starts: float  # share of the tokens that begin a word, as masking counts words
    repeated: int  # equal to one that stands before it in the same text
    in_other_sources: int  # that also stand in another text of the same split
    in_train: int | None  # held-out: that also stand in any training text
    examples: int  # rows of an epoch without packing
    packed_rows: int
    padding: float  # share of the positions of these rows that hold no token
    packed_padding: float
    sentence_lengths: Lengths
    document_lengths: Lengths
    pieces: Pieces


@dataclasses.dataclass(frozen=True)
class Report:
    """The figures of a config's texts."""

    seq_length: int
    packing: int  # examples in a packed row at most
    vocab_size: int
    split_by_hash: bool  # held-out documents are a share of each training source
    texts: list[Text]
    train_pieces: Pieces  # of all training texts
    held_out_documents: int
    leaked: int  # of these, how many also stand in a training text


def make_report(
    train: Sequence[CorpusPlan],
    held_out: Sequence[CorpusPlan],
    tokenizer: Tokenizer,
    split_by_hash: bool,
) -> Report:
    """The figures of the texts of these plans; reads every token once."""
    options = train[0].options
    packing = options.packing or PACKING
    seen = np.unique(np.concatenate([_hashes(plan) for plan in train]))
    shared = _in_several([_hashes(plan) for plan in train])
    pieces = np.zeros(tokenizer.vocab_size, np.int64)
    texts = []
    for plan in train:
        text, counts = _text(plan, tokenizer, packing, shared)
        texts.append(text)
        pieces += counts
    shared = _in_several([_hashes(plan) for plan in held_out])
    for plan in held_out:
        text, _ = _text(plan, tokenizer, packing, shared, seen)
        if split_by_hash:
            text = dataclasses.replace(
                text,
                records=None,
                bad_records=None,
                characters_per_token=None,
                unknown_characters=None,
            )
        texts.append(text)
    return Report(
        seq_length=options.seq_length,
        packing=packing,
        vocab_size=tokenizer.vocab_size,
        split_by_hash=split_by_hash,
        texts=texts,
        train_pieces=pieces_of(pieces, tokenizer),
        held_out_documents=sum(text.documents for text in texts if text.split == "held-out"),
        leaked=sum(text.in_train or 0 for text in texts),
    )


def _text(
    plan: CorpusPlan,
    tokenizer: Tokenizer,
    packing: int,
    shared: np.ndarray,
    seen: np.ndarray | None = None,
) -> tuple[Text, np.ndarray]:
    """The figures of a text, and how often each piece occurs in it.

    `shared`: documents that stand in several texts of the split, by hash; `seen`: those of all
    training texts, where this one is held out.
    """
    corpus, documents = plan.corpus, plan.documents
    hashes = _hashes(plan)
    pieces, sentences = count_tokens(corpus, documents, tokenizer.vocab_size)
    tokens = int(pieces.sum())
    examples, padding = rows_and_padding(plan, 0)
    packed_rows, packed_padding = rows_and_padding(plan, packing)
    of_documents = np.unique(document_lengths(corpus, documents), return_counts=True)
    text = Text(
        split="train" if seen is None else "held-out",
        spec=corpus.manifest["spec"],
        records=corpus.manifest.get("records"),
        bad_records=corpus.manifest.get("bad_records"),
        characters_per_token=_characters_per_token(corpus),
        documents=len(documents),
        sentences=int(sentences.sum()),
        tokens=tokens,
        unknown=int(pieces[UNK]) / tokens,
        unknown_characters=unknown_characters(corpus),
        dropped=plan.dropped_share(),
        word_starts=int(pieces[tokenizer.starts_word].sum()) / tokens,
        repeated=len(hashes) - len(np.unique(hashes)),
        in_other_sources=int(np.isin(hashes, shared).sum()),
        in_train=None if seen is None else int(np.isin(hashes, seen).sum()),
        examples=examples,
        packed_rows=packed_rows,
        padding=padding,
        packed_padding=packed_padding,
        sentence_lengths=lengths_of(np.flatnonzero(sentences), sentences[sentences > 0]),
        document_lengths=lengths_of(*of_documents),
        pieces=pieces_of(pieces, tokenizer),
    )
    return text, pieces


def count_tokens(
    corpus: Corpus, documents: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts over the documents with these numbers, sorted, without holding their ids.

    Returns:
      int64 [vocab_size], how often each piece occurs; int64 [longest + 1], how many sentences
      have each length.
    """
    pieces = np.zeros(vocab_size, np.int64)
    sentences = np.zeros(1, np.int64)
    spans = list(_spans(corpus, documents))
    progress = tqdm(
        desc=f"Counting {corpus.manifest['spec']}",
        total=sum(end - begin for begin, end in spans),
        unit="sentences",
        unit_scale=True,
        mininterval=1,
        leave=False,
        delay=2,
    )
    with progress:
        for begin, end in spans:
            for first in range(begin, end, _SENTENCES_AT_ONCE):
                last = min(first + _SENTENCES_AT_ONCE, end)
                pieces += np.bincount(corpus.read(first, last), minlength=vocab_size)
                found = np.bincount(corpus.sentence_lengths[first:last], minlength=len(sentences))
                found[: len(sentences)] += sentences
                sentences = found
                progress.update(last - first)
    return pieces, sentences


def _spans(corpus: Corpus, documents: np.ndarray) -> Iterator[tuple[int, int]]:
    """First sentence and last + 1 of every run of documents that follow each other."""
    breaks = np.flatnonzero(np.diff(documents) != 1)
    firsts = corpus.document_starts[documents[np.concatenate([[0], breaks + 1])]]
    ends = corpus.document_starts[documents[np.concatenate([breaks, [-1]])] + 1]
    return zip(firsts.tolist(), ends.tolist(), strict=True)


def document_lengths(corpus: Corpus, documents: np.ndarray) -> np.ndarray:
    """Tokens of the documents with these numbers: int64 [documents]."""
    starts = corpus.document_starts[:-1]
    return np.add.reduceat(corpus.sentence_lengths, starts, dtype=np.int64)[documents]


def lengths_of(values: np.ndarray, counts: np.ndarray) -> Lengths:
    """`counts[i]` of them have `values[i]` tokens; values rise from 1 on."""
    reached = np.cumsum(counts)
    total = int(reached[-1])
    # Rounded up in integers: a share such as 0.95 is none that a float has.
    places = [np.searchsorted(reached, -(-total * percent // 100)) for percent in QUANTILES]
    doublings = int(values[-1]).bit_length()
    steps = np.arange(doublings * _BINS_PER_DOUBLING + 1) / _BINS_PER_DOUBLING
    edges = np.unique(np.rint(2**steps).astype(np.int64))
    edges = edges[: np.searchsorted(edges, values[-1], side="right") + 1]
    bins = np.searchsorted(edges, values, side="right") - 1
    binned = np.zeros(len(edges) - 1, np.int64)
    np.add.at(binned, bins, counts)
    return Lengths(
        mean=int(values @ counts) / total,
        max=int(values[-1]),
        quantiles={
            str(percent): int(values[place])
            for percent, place in zip(QUANTILES, places, strict=True)
        },
        edges=edges.tolist(),
        counts=binned.tolist(),
    )


def pieces_of(counts: np.ndarray, tokenizer: Tokenizer) -> Pieces:
    """`counts[i]`: occurrences of piece i."""
    order = np.argsort(-counts, kind="stable")
    best = order[:MOST_FREQUENT][counts[order[:MOST_FREQUENT]] > 0]
    occurring = int((counts > 0).sum())
    decades = np.arange(0, np.log10(max(occurring, 1)), 1 / _RANKS_PER_DECADE)
    ranks = np.unique(np.append(np.rint(10**decades).astype(np.int64), occurring))
    ranks = ranks[(ranks >= 1) & (ranks <= occurring)]
    return Pieces(
        most_frequent=list(zip(tokenizer.pieces(best), counts[best].tolist(), strict=True)),
        never=int((counts[len(SPECIAL) :] == 0).sum()),
        ranks=ranks.tolist(),
        counts=counts[order[ranks - 1]].tolist(),
    )


def rows_and_padding(plan: CorpusPlan, packing: int) -> tuple[int, float]:
    """Rows of an epoch with so many examples to a row at most, and their share of padding.

    Those of the plan itself if it packs as many. Otherwise the draws of short chunks are others,
    and as many tokens may be masked as packed rows need.
    """
    options = plan.options
    if packing != options.packing:
        wanted = round(options.masking_rate * options.seq_length)
        options = dataclasses.replace(
            options, packing=packing, max_predictions=max(options.max_predictions, wanted)
        )
        plan = CorpusPlan(plan.corpus, plan.documents, options, (0, 0))
    return plan.rows_per_epoch, plan.padding()


def _hashes(plan: CorpusPlan) -> np.ndarray:
    return plan.corpus.document_hashes[plan.documents]


def _in_several(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """Those that stand in more than one of the arrays."""
    values, counts = np.unique(
        np.concatenate([np.unique(array) for array in hashes]), return_counts=True
    )
    return values[counts > 1]


def _characters_per_token(corpus: Corpus) -> float | None:
    manifest = corpus.manifest
    # Characters are counted where text is read, which goes on a little behind max_documents.
    cut_off = manifest["max_documents"] and manifest["documents"] == manifest["max_documents"]
    if cut_off or "characters" not in manifest:
        return None
    return manifest["characters"] / manifest["tokens"]
