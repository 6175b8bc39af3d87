"""From the data section of a config to rows: vocabulary, corpora, held-out split.

Never imports jax.
"""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from albert.data.corpus.prepared import PreparedText, open_source, prepared_corpora
from albert.data.corpus.reader import Corpus, differences, unknown_characters
from albert.data.corpus.writer import corpus_folder, prepare_corpus
from albert.data.pretraining.examples import Examples
from albert.data.pretraining.plan import (
    CORPUS_BITS,
    MASKING_UNITS,
    OBJECTIVES,
    SINGLE_SEGMENT,
    CorpusPlan,
    ExampleOptions,
)
from albert.data.sentences import language_problem
from albert.data.sources.base import Source, SourceError
from albert.data.sources.parse import parse_source
from albert.data.tokenizer import Tokenizer, VocabularyError, is_padding
from albert.data.vocabulary import MIN_COVERAGE, TOLD_UNKNOWN, prepare_vocabulary
from albert.runtime.paths import place

_HASH_BUCKETS = 10_000  # the finest step of valid_fraction
# Held-out rows are the same in every run, whatever its seed, and share no stream with training,
# whose seed is below.
MAX_SEED = _HELDOUT_SEED = 2**31 - 1
_TOLD_DROPPED = 0.4  # of the tokens: more that stand in no row are told
_MAX_SOURCES = 1 << CORPUS_BITS


@dataclasses.dataclass(frozen=True)
class DataConfig:
    train_sources: tuple[str, ...]  # see albert/data/sources/parse.py
    train_weights: tuple[float, ...]  # share of the rows; empty: in proportion to their sizes
    temperature: float  # shares ** (1 / temperature): over 1 brings them closer together
    valid_sources: tuple[str, ...]  # held-out text; empty: valid_fraction of train_sources
    valid_fraction: float  # of the documents, chosen by hash, so duplicates stay together
    text_field: str  # of JSON lines, Parquet columns and TFDS records
    language: str  # ISO code, for splitting paragraphs into sentences
    max_documents: int  # read from each source; 0 for all
    max_bad_share: float  # of the records of a source: so many broken ones are left out
    max_unknown_share: float  # of the characters of a training source: more <unk> stop the run
    tokenizer: str  # SentencePiece .model; empty: train one with model.vocab_size pieces
    lower_case: bool
    strip_accents: bool
    character_coverage: float  # of a vocabulary that is trained
    folder: str  # prepared corpora and vocabularies are kept here
    seq_length: int  # L
    max_predictions: int  # P
    packing: int  # examples in a row at most; 0: one
    masking_rate: float
    masking_unit: str
    max_ngram: int
    corruption: tuple[float, float, float]  # of the masked: [MASK], unchanged, any piece
    sentence_objective: str
    short_seq_prob: float
    single_segment: str
    static_copies: int  # so many epochs differ, then they come again; 0: all differ
    workers: int  # processes that make batches; 0: a thread

    def text_problems(self) -> list[str]:
        """Sources that are not there, one sentence each; looks for the files, reads none.

        A source that was prepared before need not be there any more.
        """
        found = []
        if not self.train_sources:
            found.append(
                "train_sources is empty; name the text to learn from, for example "
                "--config.data.train_sources=\"('wiki/*.txt.gz',)\", or ('python-docs',) for the "
                "documentation installed with this Python"
            )
        for name in ("train_sources", "valid_sources"):
            for spec in getattr(self, name):
                if problem := source_problem(spec, self.text_field, self.prepared_folder):
                    found.append(f"{name}: {problem}")
        if self.tokenizer and not place(self.tokenizer).is_file():
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
        for name in ("train_sources", "valid_sources"):
            if len(getattr(self, name)) > _MAX_SOURCES:
                found.append(
                    f"{name} has {len(getattr(self, name))} sources; there may be {_MAX_SOURCES}: "
                    "a folder or a glob is one"
                )
        if self.seq_length < 8:
            found.append(f"seq_length is {self.seq_length}; it must be at least 8")
        least_values = {
            "max_predictions": 1,
            "max_ngram": 1,
            "workers": 0,
            "max_documents": 0,
            "packing": 0,
            "static_copies": 0,
        }
        for name, least in least_values.items():
            if getattr(self, name) < least:
                found.append(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("masking_rate", "short_seq_prob", "max_bad_share", "max_unknown_share"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if not MIN_COVERAGE <= self.character_coverage <= 1:
            found.append(
                f"character_coverage is {self.character_coverage}; it must be in "
                f"[{MIN_COVERAGE}, 1], as SentencePiece takes it"
            )
        if self.temperature <= 0:
            found.append(f"temperature is {self.temperature}; it must be positive")
        if min(self.corruption) < 0 or abs(sum(self.corruption) - 1) > 1e-9:
            found.append(
                f"corruption is {self.corruption}; its three shares ([MASK], unchanged, any piece) "
                "must not be negative and must add up to 1"
            )
        for name, legal in (
            ("single_segment", SINGLE_SEGMENT),
            ("sentence_objective", OBJECTIVES),
            ("masking_unit", MASKING_UNITS),
        ):
            if getattr(self, name) not in legal:
                found.append(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(legal)}"
                )
        wanted = round(self.masking_rate * self.seq_length)
        if self.packing and self.max_predictions < wanted:
            found.append(
                f"max_predictions is {self.max_predictions}; packed rows mask up to masking_rate "
                f"{self.masking_rate} * seq_length {self.seq_length} tokens: set it to {wanted}"
            )
        if problem := language_problem(self.language):
            found.append(f"language: {problem}")
        return found

    @property
    def prepared_folder(self) -> Path:
        """The folder of prepared corpora and vocabularies."""
        return place(self.folder)

    @property
    def example_options(self) -> ExampleOptions:
        names = [field.name for field in dataclasses.fields(ExampleOptions)]
        return ExampleOptions(**{name: getattr(self, name) for name in names})


def source_problem(spec: str, text_field: str, folder: Path) -> str | None:
    """Why neither a source is there nor what was prepared from it in `folder`; reads no text."""
    try:
        parse_source(spec, text_field)
    except SourceError as error:
        return None if prepared_corpora(spec, text_field, folder) else str(error)
    return None


@dataclasses.dataclass(frozen=True)
class PreparedData:
    tokenizer: Tokenizer
    train: Examples
    valid: Examples
    identity: dict  # what decides the rows of training: fingerprints, options and seed


def prepare(
    config: DataConfig,
    vocab_size: int,
    seed: int,
    tokenizer: Tokenizer | None = None,
    wanted: Sequence[str] = (),
) -> PreparedData:
    """Makes or finds the vocabulary and the corpora, and plans the first epoch.

    With a `tokenizer` no vocabulary is looked for. Where a text is gone, what was prepared from it
    is used; corpora with the `wanted` fingerprints, of a run that resumes, rather than others.

    Raises:
      SourceError: a source cannot be read or holds too little text.
      VocabularyError: the vocabulary cannot be used, or has not `vocab_size` pieces.
    """
    # One object per source: what it learned of itself once serves vocabulary and corpus.
    sources = _open_sources(config.train_sources, config, wanted)
    if tokenizer is None:
        path = place(config.tokenizer)
        if not config.tokenizer:
            path = prepare_vocabulary(
                sources,
                vocab_size,
                config.language,
                config.lower_case,
                config.strip_accents,
                config.max_documents,
                config.max_bad_share,
                config.character_coverage,
                config.max_unknown_share,
                config.prepared_folder,
            )
        tokenizer = open_tokenizer(path, config, vocab_size)
    corpora = _prepare_all(sources, config, tokenizer)
    for corpus in corpora:
        check_unknown(corpus, tokenizer, config.max_unknown_share)
    valid = prepare_valid(config, tokenizer, corpora, wanted)
    if config.valid_sources:
        warn_of_overlap(corpora, [plan.corpus for plan in valid.plans])
        documents = [np.arange(corpus.num_documents) for corpus in corpora]
    else:
        documents = [np.flatnonzero(~_held_out(corpus, config)) for corpus in corpora]
    train = _examples(
        corpora,
        documents,
        config.train_weights,
        config.temperature,
        config,
        tokenizer,
        seed,
        "train",
    )
    _tell_of_dropped(train)
    identity = {
        "train": [corpus.fingerprint for corpus in corpora],
        "train_weights": list(config.train_weights),
        "temperature": config.temperature,
        "valid_fraction": 0.0 if config.valid_sources else config.valid_fraction,
        "seed": seed,
        **dataclasses.asdict(config.example_options),
    }
    pieces = [plan.pieces.num_cut for plan in train.plans]
    if any(pieces):  # said only then: rows of other text are those of versions that cut none
        identity["sentences_in_pieces"] = pieces
    return PreparedData(tokenizer, train, valid, identity)


def prepare_with_beam(
    config: DataConfig, vocab_size: int, runner: str, options: list[str], padded: bool = False
) -> list[Corpus]:
    """Makes or finds every corpus of the config by Apache Beam; see `prepare_corpus_with_beam`.

    `padded`: as in `open_tokenizer`.

    Raises SourceError, VocabularyError as `prepare`, also for what Beam cannot do.
    """
    from albert.data.corpus.beam import prepare_corpus_with_beam

    if not config.tokenizer:
        raise VocabularyError(
            "Beam tokenises with a vocabulary that is there: name it with --config.data.tokenizer."
        )
    if config.max_documents:
        raise SourceError(
            "data.max_documents counts from the first document on, and Beam reads all parts at "
            "once: set --config.data.max_documents=0."
        )
    tokenizer = open_tokenizer(place(config.tokenizer), config, vocab_size, padded)
    corpora = []
    for spec in dict.fromkeys((*config.train_sources, *config.valid_sources)):
        source = open_source(spec, config.text_field, config.prepared_folder)
        if isinstance(source, PreparedText):
            corpora.append(source.corpus(tokenizer, config.language, 0))
        else:
            corpora.append(
                prepare_corpus_with_beam(
                    source,
                    tokenizer,
                    config.language,
                    config.max_bad_share,
                    config.prepared_folder,
                    runner,
                    options,
                )
            )
    return corpora


def open_tokenizer(
    path: Path, config: DataConfig, vocab_size: int, padded: bool = False
) -> Tokenizer:
    """The vocabulary in `path`; raises VocabularyError when it does not fit the model.

    `padded`: the model may have some more rows than there are pieces.
    """
    tokenizer = Tokenizer(path, config.lower_case, config.strip_accents)
    fits = tokenizer.vocab_size == vocab_size
    if not (fits or (padded and is_padding(tokenizer.vocab_size, vocab_size))):
        raise VocabularyError(
            f"The vocabulary {path} has {tokenizer.vocab_size} pieces and the model "
            f"{vocab_size}: set --config.model.vocab_size={tokenizer.vocab_size}."
        )
    return tokenizer


def prepare_valid(
    config: DataConfig,
    tokenizer: Tokenizer,
    train_corpora: list[Corpus] | None = None,
    wanted: Sequence[str] = (),
) -> Examples:
    """Held-out rows: of valid_sources, or of the held-out documents of train_sources.

    Their randomness is the same in every run. Raises SourceError as `prepare` does.
    """
    if config.valid_sources:
        sources = _open_sources(config.valid_sources, config, wanted)
        corpora = _prepare_all(sources, config, tokenizer)
        for corpus in corpora:
            check_unknown(corpus, tokenizer, 1.0)  # told: any text may be evaluated on
        documents = [np.arange(corpus.num_documents) for corpus in corpora]
    else:
        corpora = train_corpora or _prepare_all(
            _open_sources(config.train_sources, config, wanted), config, tokenizer
        )
        documents = [np.flatnonzero(_held_out(corpus, config)) for corpus in corpora]
    return _examples(corpora, documents, (), 1.0, config, tokenizer, _HELDOUT_SEED, "held-out")


def _open_sources(
    specs: Sequence[str], config: DataConfig, wanted: Sequence[str]
) -> list[Source | PreparedText]:
    return [open_source(spec, config.text_field, config.prepared_folder, wanted) for spec in specs]


def _prepare_all(
    sources: Sequence[Source | PreparedText], config: DataConfig, tokenizer: Tokenizer
) -> list[Corpus]:
    return [
        prepare_corpus(
            source,
            tokenizer,
            config.language,
            config.max_documents,
            config.max_bad_share,
            config.prepared_folder,
        )
        for source in sources
    ]


def check_unknown(corpus: Corpus, tokenizer: Tokenizer, most: float) -> None:
    """Tells of a text whose characters the vocabulary does not know.

    Raises VocabularyError when they are a larger share than `most`.
    """
    share = unknown_characters(corpus)
    if share is None or share <= TOLD_UNKNOWN:
        return
    told = (
        f"{corpus.manifest['spec']}: {share:.1%} of the characters are unknown to the vocabulary "
        f"{tokenizer.path}"
    )
    advice = (
        "Use one that was trained on such text (data.tokenizer empty trains one), with "
        "data.lower_case and data.strip_accents as it was trained"
    )
    if share > most:
        raise VocabularyError(
            f"{told}, more than data.max_unknown_share {most:g} allows. "
            f"{advice}, or raise --config.data.max_unknown_share."
        )
    print(f"Warning: {told}. {advice}.", file=sys.stderr, flush=True)


def _tell_of_dropped(train: Examples) -> None:
    share = train.dropped_share()
    if share > _TOLD_DROPPED:
        print(
            f"Warning: {share:.0%} of the tokens of the training text stand in no row of an epoch: "
            f"they are cut off from examples that are longer than data.seq_length "
            f"{train.options.seq_length}, or stand in chunks that give no example. "
            "tools/corpus_stats.py shows it by source, with the lengths of sentences.",
            file=sys.stderr,
            flush=True,
        )


def _held_out(corpus: Corpus, config: DataConfig) -> np.ndarray:
    """bool [documents]: chosen by hash, so copies of a document are on the same side."""
    return corpus.document_hashes % _HASH_BUCKETS < round(config.valid_fraction * _HASH_BUCKETS)


def _examples(corpora, documents, weights, temperature, config, tokenizer, seed, split) -> Examples:
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
    return Examples(plans, weights, temperature, tokenizer, config.example_options, seed)


def found_corpora(config: DataConfig, fingerprints: list[str]) -> list[Corpus]:
    """Those of the prepared corpora that are still in the config's folder."""
    folders = [corpus_folder(config.prepared_folder, f) for f in fingerprints]
    return [Corpus(folder) for folder in folders if folder.is_dir()]


def changed_corpora(config: DataConfig, fingerprints: list[str], now: Examples) -> list[str]:
    """What sets the corpora of now apart from those with these fingerprints, a line for each."""
    lines = []
    for plan, fingerprint in zip(now.plans, fingerprints, strict=False):
        manifest = plan.corpus.manifest
        if fingerprint == manifest["fingerprint"]:
            continue
        before = found_corpora(config, [fingerprint])
        if before:
            changed = ", ".join(differences(before[0].manifest, manifest))
            lines.append(f"  {manifest['spec']}: other {changed}")
        else:
            lines.append(f"  {manifest['spec']}: what it was is not in {config.folder} any more")
    return lines


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
