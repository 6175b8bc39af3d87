"""Rows of the small text, and the loops of the released program that made theirs."""

import itertools

import numpy as np

from albert.data.corpus.reader import Corpus
from albert.data.corpus.writer import prepare_corpus
from albert.data.pretraining.examples import Examples
from albert.data.pretraining.plan import CorpusPlan, ExampleOptions
from albert.data.sources.parse import parse_source

OPTIONS = ExampleOptions(
    seq_length=32,
    max_predictions=6,
    masking_rate=0.15,
    masking_unit="word",
    max_ngram=3,
    corruption=(0.8, 0.1, 0.1),
    sentence_objective="sop",
    short_seq_prob=0.1,
    single_segment="split",
    packing=0,
    static_copies=0,
)


def read_corpus(spec, tokenizer, folder, max_documents=0, max_bad_share=0.0) -> Corpus:
    source = parse_source(str(spec), "text")
    return prepare_corpus(source, tokenizer, "en", max_documents, max_bad_share, folder)


def read_sentences(corpus, first, last):
    """The ids of sentences first, ..., last - 1, a list each."""
    bounds = [0, *np.cumsum(corpus.sentence_lengths[first:last]).tolist()]
    ids = corpus.read(first, last).tolist()
    return [ids[a:b] for a, b in itertools.pairwise(bounds)]


def make_examples(corpus, tokenizer, options=OPTIONS, seed=0):
    plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (seed, 0))
    return Examples([plan], (), 1.0, tokenizer, options, seed)


def restored(row):
    """The ids of a row as they were before masking."""
    ids = row["input_ids"].copy()
    masked = row["mlm_weights"] > 0
    ids[row["mlm_positions"][masked]] = row["mlm_labels"][masked]
    return ids


def released_chunks(lengths, target):
    """The loop of the released program over one document: [first, last) of every chunk."""
    chunks, current, size = [], [], 0
    for i, length in enumerate(lengths):
        current.append(i)
        size += length
        if i == len(lengths) - 1 or size >= target:
            chunks.append((current[0], current[-1] + 1))
            current, size = [], 0
    return chunks


def run_lengths(chosen):
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    return [len(run) for run in np.split(np.asarray(chosen), breaks)]
