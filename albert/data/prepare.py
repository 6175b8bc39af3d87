"""From the data section of a config to rows: vocabulary, corpora, held-out split.

Never imports jax.
"""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from albert.data.corpus import Corpus, corpus_folder, prepare_corpus
from albert.data.examples import SINGLE_SEGMENT, CorpusPlan, ExampleOptions, Examples
from albert.data.sources import Source, SourceError, parse_source
from albert.data.tokenizer import Tokenizer, VocabularyError
from albert.data.vocabulary import prepare_vocabulary

_HASH_BUCKETS = 10_000  # the finest step of valid_fraction
# Held-out rows are the same in every run, whatever its seed, and share no stream with training.
_HELDOUT_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train_sources: tuple[str, ...]  # see albert/data/sources.py
    train_weights: tuple[float, ...]  # share of the rows; empty: in proportion to their sizes
    valid_sources: tuple[str, ...]  # held-out text; empty: valid_fraction of train_sources
    valid_fraction: float  # of the documents, chosen by hash, so duplicates stay together
    text_field: str  # of JSON lines and TFDS records
    language: str  # ISO code, for splitting paragraphs into sentences
    max_documents: int  # read from each source; 0 for all
    tokenizer: str  # SentencePiece .model; empty: train one with model.vocab_size pieces
    lower_case: bool
    strip_accents: bool
    folder: str  # prepared corpora and vocabularies are kept here
    seq_length: int  # L
    max_predictions: int  # P
    masking_rate: float
    max_ngram: int
    short_seq_prob: float
    single_segment: str
    workers: int  # processes that make batches; 0: a thread

    def text_problems(self) -> list[str]:
        """Sources that are not there, one sentence each; looks for the files, reads none."""
        found = []
        if not self.train_sources:
            found.append(
                "train_sources is empty; name the text to learn from, for example "
                "--config.data.train_sources=\"('wiki/*.txt.gz',)\", or ('python-docs',) for the "
                "documentation installed with this Python"
            )
        for name in ("train_sources", "valid_sources"):
            for spec in getattr(self, name):
                try:
                    parse_source(spec, self.text_field)
                except SourceError as error:
                    found.append(f"{name}: {error}")
        if self.tokenizer and not Path(self.tokenizer).expanduser().is_file():
            found.append(f"tokenizer: there is no file {self.tokenizer}")
        return found

    def problems(self) -> list[str]:
        """What is wrong with the other fields, one sentence each."""
        found = []
        weights = self.train_weights
        if weights and (len(weights) != len(self.train_sources) or min(weights) <= 0):
            found.append(
                f"train_weights is {weights}; it must be empty or hold one positive number for "
                f"each of the {len(self.train_sources)} train_sources"
            )
        if not self.valid_sources and not 1 / _HASH_BUCKETS <= self.valid_fraction < 1:
            found.append(
                f"valid_fraction is {self.valid_fraction}; without valid_sources it must be at "
                f"least {1 / _HASH_BUCKETS} and below 1"
            )
        if self.seq_length < 8:
            found.append(f"seq_length is {self.seq_length}; it must be at least 8")
        for name, least in (("max_predictions", 1), ("max_ngram", 1), ("workers", 0),
                            ("max_documents", 0)):  # fmt: skip
            if getattr(self, name) < least:
                found.append(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("masking_rate", "short_seq_prob"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if self.single_segment not in SINGLE_SEGMENT:
            found.append(
                f"single_segment is {self.single_segment!r}; it must be one of "
                f"{', '.join(SINGLE_SEGMENT)}"
            )
        return found

    @property
    def example_options(self) -> ExampleOptions:
        return ExampleOptions(
            seq_length=self.seq_length,
            max_predictions=self.max_predictions,
            masking_rate=self.masking_rate,
            max_ngram=self.max_ngram,
            short_seq_prob=self.short_seq_prob,
            single_segment=self.single_segment,
        )


@dataclasses.dataclass(frozen=True)
class PreparedData:
    tokenizer: Tokenizer
    train: Examples
    valid: Examples
    identity: dict  # what decides the rows of training: fingerprints, options and seed


def prepare(
    config: DataConfig, vocab_size: int, seed: int, tokenizer: Tokenizer | None = None
) -> PreparedData:
    """Makes or finds the vocabulary and the corpora, and plans the first epoch.

    With a `tokenizer` no vocabulary is looked for.

    Raises:
      SourceError: a source cannot be read or holds too little text.
      VocabularyError: the vocabulary cannot be used, or has not `vocab_size` pieces.
    """
    # One object per source: what it learned of itself once serves vocabulary and corpus.
    sources = [parse_source(spec, config.text_field) for spec in config.train_sources]
    if tokenizer is None:
        path = Path(config.tokenizer).expanduser()
        if not config.tokenizer:
            path = prepare_vocabulary(
                sources, vocab_size, config.language, config.lower_case, config.strip_accents,
                config.max_documents, Path(config.folder).expanduser(),
            )  # fmt: skip
        tokenizer = open_tokenizer(path, config, vocab_size)
    corpora = _prepare_all(sources, config, tokenizer)
    valid = prepare_valid(config, tokenizer, corpora)
    if config.valid_sources:
        warn_of_overlap(corpora, [plan.corpus for plan in valid.plans])
        documents = [np.arange(corpus.num_documents) for corpus in corpora]
    else:
        documents = [np.flatnonzero(~_held_out(corpus, config)) for corpus in corpora]
    train = _examples(corpora, documents, config.train_weights, config, tokenizer, seed, "train")
    identity = {
        "train": [corpus.fingerprint for corpus in corpora],
        "train_weights": list(config.train_weights),
        "valid_fraction": 0.0 if config.valid_sources else config.valid_fraction,
        "seed": seed,
        **dataclasses.asdict(config.example_options),
    }
    return PreparedData(tokenizer, train, valid, identity)


def open_tokenizer(path: Path, config: DataConfig, vocab_size: int) -> Tokenizer:
    """The vocabulary in `path`; raises VocabularyError when it does not fit the model."""
    tokenizer = Tokenizer(path, config.lower_case, config.strip_accents)
    if tokenizer.vocab_size != vocab_size:
        raise VocabularyError(
            f"The vocabulary {path} has {tokenizer.vocab_size} pieces and the model "
            f"{vocab_size}: set --config.model.vocab_size={tokenizer.vocab_size}."
        )
    return tokenizer


def prepare_valid(
    config: DataConfig, tokenizer: Tokenizer, train_corpora: list[Corpus] | None = None
) -> Examples:
    """Held-out rows: of valid_sources, or of the held-out documents of train_sources.

    Their randomness is the same in every run. Raises SourceError as `prepare` does.
    """
    if config.valid_sources:
        sources = [parse_source(spec, config.text_field) for spec in config.valid_sources]
        corpora = _prepare_all(sources, config, tokenizer)
        documents = [np.arange(corpus.num_documents) for corpus in corpora]
    else:
        corpora = train_corpora or _prepare_all(
            [parse_source(spec, config.text_field) for spec in config.train_sources],
            config, tokenizer,
        )  # fmt: skip
        documents = [np.flatnonzero(_held_out(corpus, config)) for corpus in corpora]
    return _examples(corpora, documents, (), config, tokenizer, _HELDOUT_SEED, "held-out")


def _prepare_all(sources: list[Source], config: DataConfig, tokenizer: Tokenizer) -> list[Corpus]:
    folder = Path(config.folder).expanduser()
    return [
        prepare_corpus(source, tokenizer, config.language, config.max_documents, folder)
        for source in sources
    ]


def _held_out(corpus: Corpus, config: DataConfig) -> np.ndarray:
    """bool [documents]: chosen by hash, so copies of a document are on the same side."""
    return corpus.document_hashes % _HASH_BUCKETS < round(config.valid_fraction * _HASH_BUCKETS)


def _examples(corpora, documents, weights, config, tokenizer, seed, split) -> Examples:
    plans = [
        CorpusPlan(corpus, chosen, config.example_options, (seed, number))
        for number, (corpus, chosen) in enumerate(zip(corpora, documents, strict=True))
    ]
    for plan in plans:
        if not plan.rows_per_epoch:
            raise SourceError(
                f"{plan.corpus.manifest['spec']} is too small: {len(plan.documents)} of its "
                f"{plan.corpus.num_documents} documents are in the {split} split, and they give "
                "no example. Add text, change data.valid_fraction, or name data.valid_sources."
            )
    return Examples(plans, weights, tokenizer, config.example_options, seed)


def found_corpora(config: DataConfig, fingerprints: list[str]) -> list[Corpus]:
    """Those of the prepared corpora that are still in the config's folder."""
    folders = [corpus_folder(Path(config.folder).expanduser(), f) for f in fingerprints]
    return [Corpus(folder) for folder in folders if folder.is_dir()]


def warn_of_overlap(train: list[Corpus], valid: list[Corpus]) -> None:
    """Warns when held-out documents also stand in the training text."""
    if not train:
        return
    seen = np.concatenate([corpus.document_hashes for corpus in train])
    held_out = np.concatenate([corpus.document_hashes for corpus in valid])
    shared = int(np.isin(held_out, seen).sum())
    if shared:
        warnings.warn(
            f"{shared} of the {len(held_out)} held-out documents also stand in the training "
            "text: held-out figures will look better than they are.",
            stacklevel=2,
        )
