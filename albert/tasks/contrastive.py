"""Sentence vectors by contrast: a text is to be nearer to its partner than to the rest of a batch.

Gao et al. 2021 (SimCSE, arXiv 2104.08821): without labels the partner is the same text under other
dropout (section 3); of pairs it is the second text, and a third may be a negative of its own
(section 4). Judged by similarity on STS-B, and by alignment and uniformity (Wang and Isola 2020,
arXiv 2005.10242).
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from albert.data.corpus.prepared import open_source
from albert.data.corpus.writer import prepare_corpus
from albert.data.labelled.kept import kept_sequences
from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.sentences import corpus_sentences
from albert.data.labelled.sequences import Sequences, first_alike
from albert.data.labelled.tables import records, table_problem
from albert.data.pretraining.prepare import check_unknown, source_problem
from albert.data.sentences import language_problem
from albert.data.sources.base import SourceError
from albert.data.tokenizer import Tokenizer
from albert.models.encoder import Albert
from albert.models.heads import POOLING
from albert.runtime.paths import place
from albert.tasks import glue
from albert.tasks.base import Best, Evaluation
from albert.tasks.classification import text_of
from albert.tasks.finetuning import FineTuning, FineTuningConfig, digest_of
from albert.tasks.metrics import defined, pearson, spearman
from albert.tasks.pictures import Draw, histogram, scatter
from albert.tasks.vocabulary import tokenizer_of, vocabulary_of

HEAD = "sentence"
_STSB = "tfds:glue/stsb"
_ABSENT = -1e30  # similarity of what is no negative
_ALIKE = 0.8  # pairs of more than this share of the highest score mean the same: of STS-B, over 4
_SPREAD_OVER = 4096  # texts, the first, between all of which uniformity is


class Scored(NamedTuple):
    """Two texts, and how much they mean the same."""

    text_a: str
    text_b: str
    score: float


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(FineTuningConfig):
    """The section `data` of a config. A table is a file that ends in .tsv, .csv, .jsonl or
    .parquet, or tfds:NAME:SPLIT."""

    train: tuple[str, ...]  # text as pretraining reads it; with text_a, tables
    text_a: str  # names of columns; empty: sentences of text
    text_b: str  # what means the same as text_a; empty: text_a itself
    negative: str  # what does not, though it looks so; empty: there is none
    max_sentences: int  # of text, drawn at random; 0: all
    text_field: str  # of JSON lines, Parquet columns and TFDS records of text
    language: str  # ISO code, for splitting paragraphs into sentences
    max_bad_share: float  # of the records of text: more broken ones stop the run
    max_unknown_share: float  # of the characters of text: more <unk> stop the run
    dev: str  # the official folder of STS-B, tfds:glue/stsb, or a table
    dev_columns: tuple[str, str, str]  # of that table: two texts and the score
    pooling: str  # of POOLING: what a text's vector is of, kept with the model
    projection: bool  # a dense layer and tanh on the vector, in training alone
    temperature: float  # similarities are divided by it

    @property
    def texts(self) -> int:
        """Texts of an example, as they are read."""
        return 1 + bool(self.text_b) + bool(self.negative)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.pooling not in POOLING:
            found.append(f"pooling is {self.pooling!r}; it must be one of {', '.join(POOLING)}")
        if not 0 < self.temperature < math.inf:
            found.append(f"temperature is {self.temperature}; it must be positive")
        if self.max_sentences < 0:
            found.append(f"max_sentences is {self.max_sentences}; it must not be negative")
        if self.text_b and not self.text_a:
            found.append("text_b is set and text_a is empty; a pair needs the columns of both")
        if self.negative and not self.text_b:
            found.append("negative is set and text_b is empty; a negative is beside a pair")
        if not all(self.dev_columns):
            found.append(
                f"dev_columns is {self.dev_columns}; it names the columns of two texts and a score"
            )
        for name in ("max_bad_share", "max_unknown_share"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if problem := language_problem(self.language):
            found.append(f"language: {problem}")
        return found

    def text_problems(self) -> list[str]:
        found = []
        if not self.train:
            found.append(
                "train is empty; name text to take sentences from, such as ('wiki/*.txt.gz',), or "
                "tables together with their column text_a"
            )
        for source in self.train:
            if not self.text_a:
                problem = source_problem(source, self.text_field, place(self.folder))
                if problem and not table_problem(source):
                    problem += " If it is a table, name its column with data.text_a."
            elif problem := table_problem(source):
                problem = f"{source} {problem}"
            if problem:
                found.append(f"train: {problem}")
        if not self.dev:
            found.append("dev is empty; name the folder of STS-B, such as glue_data/STS-B")
        elif not _is_stsb(self.dev) and (problem := table_problem(self.dev)):
            found.append(f"dev: {self.dev} is no folder of STS-B, and as a table it {problem}")
        return found


def _is_stsb(source: str) -> bool:
    return source == _STSB or place(source).is_dir()


def read_scored(source: str, columns: Sequence[str]) -> list[Scored]:
    """Pairs of texts with a score: the dev set of STS-B, or a table with these columns.

    Raises SourceError for what cannot be read; names file, line and column.
    """
    if _is_stsb(source):
        path = source if source == _STSB else str(place(source))
        return [Scored(e.text, e.pair or "", e.label) for e in glue.read(path, "sts-b", "dev")]
    found = []
    for where, record in records(source):
        texts = [text_of(record, name, where, "text") for name in columns[:2]]
        found.append(Scored(texts[0], texts[1], _score(record, columns[2], where)))
    if not found:
        raise SourceError(f"{source} holds no records")
    return found


def _score(record: dict, column: str, where: str) -> float:
    try:
        score = float(record[column])
    except KeyError:
        raise SourceError(
            f"{where}: there is no column {column!r} for the score; there is "
            f"{', '.join(map(repr, record))}. Name the right ones in data.dev_columns."
        ) from None
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(record[column], bool) or not math.isfinite(score):
        raise SourceError(
            f"{where}, column {column}: the score is {record[column]!r}, not a finite number"
        )
    return score


def read_texts(config: ContrastiveConfig) -> list[str]:
    """The texts of the tables of training, those of an example one behind the other: text_a,
    text_b, negative, as far as the config names them. Raises SourceError."""
    names = ("text_a", "text_b", "negative")[: config.texts]
    found: list[str] = []
    for source in config.train:
        before = len(found)
        for where, record in records(source):
            found += [text_of(record, getattr(config, name), where, name) for name in names]
        if len(found) == before:
            raise SourceError(f"{source} holds no records")
    return found


def contrasts(vectors, numbers, temperature: float):
    """How well every anchor finds its partner among all texts of the batch that are not anchors.

    Args:
      vectors: float32 [B, S, H]: of anchors, of their partners and, where S is 3, of texts that are
        negatives of that anchor and of all others.
      numbers: int [B, S]: texts with the same number are the same text. What is the anchor's own
        text or its partner's, and a partner of the same text elsewhere, is no negative.
      temperature: cosine similarities are divided by it.

    Returns:
      float32 [B] each: the cross entropy, and 1 where no other is nearer than the partner.
    """
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    unit = vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
    # In float32 on every device: a cosine's error is divided by the temperature too.
    cosines = jnp.einsum(
        "BH,CSH->BCS", unit[:, 0], unit[:, 1:], precision=jax.lax.Precision.HIGHEST
    )
    anchors, partners, others = numbers[:, 0], numbers[:, 1], numbers[:, 1:]
    is_partner = jnp.arange(others.shape[1]) == 0
    same = (others == anchors[:, None, None]) | (others == partners[:, None, None])
    same |= (anchors[:, None] == anchors)[:, :, None] & is_partner
    same &= ~(jnp.eye(len(vectors), dtype=bool)[:, :, None] & is_partner)  # its own stays
    scores = jnp.where(same, _ABSENT, cosines / temperature)
    right = jnp.einsum("BB->B", scores[:, :, 0])
    flat = scores.reshape(len(vectors), -1)
    loss = jax.nn.logsumexp(flat, axis=-1) - right
    return loss, (right >= flat.max(-1)).astype(jnp.float32)


def figures(scores: Sequence[float], numbers: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """What the vectors of pairs are worth.

    Args:
      scores: [n], how much each pair means the same.
      numbers: int [n, 2]: texts with the same number are the same text.
      vectors: [n, 2, H].

    Returns:
      Correlations of cosine and score, 0 where undefined; `alignment`, the mean squared distance of
      pairs that mean the same, where there are some; and `uniformity`, the logarithm of the mean of
      exp(-2 * squared distance) between different texts; both of unit vectors.
    """
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    labels = np.asarray(scores, np.float64)
    cosines = (unit[:, 0] * unit[:, 1]).sum(-1)
    found = {"spearman": spearman(labels, cosines), "pearson": pearson(labels, cosines)}
    found = {name: defined(value) for name, value in found.items()}
    alike = labels > _ALIKE * labels.max()
    if alike.any():
        found["alignment"] = float((2 - 2 * cosines[alike]).mean())
    _, first = np.unique(numbers.ravel(), return_index=True)
    texts = unit.reshape(-1, unit.shape[-1])[np.sort(first)[:_SPREAD_OVER]]
    if len(texts) > 1:
        squared = np.maximum(2 - 2 * texts @ texts.T, 0)
        between = np.exp(-2 * squared[np.triu_indices(len(texts), 1)])
        found["uniformity"] = float(np.log(between.mean()))
    return found


class Contrastive(FineTuning):
    """The mean over anchors of the cross entropy of their partner among all of the batch, by cosine
    similarity over a temperature.

    The negatives are those of the whole batch, over all devices, so that it is computed in one
    part. A row is an example: [texts, L], of a text that stands for itself [1, L].
    """

    Section = ContrastiveConfig
    deciding: ClassVar = {
        "pooling": "data.pooling",
        "projection": "data.projection",
        "texts": "texts of an example",
    }
    best = Best("dev", "spearman", higher_is_better=True)

    def __init__(
        self,
        config,
        tokenizer: Tokenizer | None = None,
        train: Sequences | None = None,
        dev: Sequence[Scored] | None = None,
        drawn_from: int | None = None,
    ):
        """Without data nothing can be trained on or evaluated: what is left are the pure functions
        of a step. `drawn_from`: how many sentences there are of which `train` are some."""
        self._config, self.tokenizer = config, tokenizer
        self._train, self._dev = train, dev
        self.model = self.make_model(config)
        self.rows, self.evaluations, told = None, [], []
        if train is not None:
            count = config.data.texts
            numbers = first_alike(train).reshape(-1, count)
            self.rows = LabelledRows(
                train, {"numbers": numbers}, config.data.seq_length, config.seed, group=count
            )
            told += self._opening(train, numbers, drawn_from)
        if dev is not None:
            self.evaluations = [self._evaluation(dev, told)]
        self.opening = told

    def _opening(self, train: Sequences, numbers: np.ndarray, drawn_from: int | None) -> list[str]:
        data = self._config.data
        kind = "pairs" if data.text_b else "texts" if data.text_a else "sentences"
        with_negatives = " with a negative each" if data.negative else ""
        lines = [f"{len(numbers):,} {kind} to learn from{with_negatives}."]
        if drawn_from is not None and drawn_from > len(numbers):
            lines = [
                f"{len(numbers):,} of {drawn_from:,} sentences to learn from, drawn at random "
                "(data.max_sentences)."
            ]
        if train.cut:
            lines.append(
                f"{train.cut:,} of {len(train):,} texts ({100 * train.cut / len(train):.1f} %) are "
                f"cut to data.seq_length, {data.seq_length} tokens."
            )
        if repeated := len(train) - len(np.unique(numbers)):
            lines.append(
                f"{repeated:,} texts are the same as one before: where both stand in a batch, "
                "neither is a negative of the other."
            )
        return lines

    def _evaluation(self, dev: Sequence[Scored], told: list[str]) -> Evaluation:
        positions = self._config.model.max_position_embeddings  # as `encode` cuts them
        sequences = self._sequences([text for pair in dev for text in pair[:2]], positions)
        count = min(len(dev), self._config.train.eval_rows)
        if count < len(dev):
            told.append(
                f"dev: judged by the first {count:,} of {len(dev):,} pairs (train.eval_rows)."
            )
        if sequences.cut:
            told.append(f"dev: {sequences.cut:,} texts are cut to {positions} tokens.")
        scores = [pair.score for pair in dev[:count]]
        numbers = first_alike(sequences).reshape(-1, 2)[:count]
        pooling = self._config.data.pooling
        return Evaluation(
            "dev",
            LabelledRows(sequences, {}, positions, group=2),
            count,
            self._vectors,
            partial(figures, scores, numbers),
            _line_of,
            partial(_table, pooling),
            gathers=True,
            pictures=partial(_pictures, scores),
        )

    def _sequences(self, texts: Sequence[str], length: int) -> Sequences:
        return _sequences_of(texts, self._config.data, vocabulary_of(self.tokenizer), length)

    # Asked before there is any data or device.

    @classmethod
    def problems(cls, config, needs_text):
        found = super().problems(config, needs_text)
        data, model, train = config.data, config.model, config.train
        if train.batch_size < 2:
            found.append(
                f"train.batch_size is {train.batch_size}; the negatives of a text are the others "
                "of its batch: it must be at least 2"
            )
        for name, whole in (("accumulation", 1), ("microbatch", 0)):
            if (value := getattr(train, name)) > whole:
                found.append(
                    f"train.{name} is {value}; the negatives of a text are those of the whole "
                    f"batch, which is not computed in parts: set it to {whole}, and spare memory "
                    "with model.remat or a smaller train.batch_size"
                )
        if train.reduce_dtype != "float32":
            found.append(
                f"train.reduce_dtype is {train.reduce_dtype}; it is of gradients that every device "
                "computes from its rows alone, and here negatives are on all devices: set it to "
                "float32"
            )
        if config.sharding.slices > 1:
            found.append(
                f"sharding.slices is {config.sharding.slices}; slices send each other gradients "
                "alone, and here negatives are on all devices: train on one slice"
            )
        drops = (data.dropout, model.hidden_dropout_prob, model.attention_probs_dropout_prob)
        if needs_text and not data.text_b and not any(drops):
            found.append(
                "there is no dropout, so that both views of a text would be the same: set "
                "--config.model.hidden_dropout_prob=0.1 and "
                "--config.model.attention_probs_dropout_prob=0.1"
            )
        return found

    @classmethod
    def evaluation_problems(cls, config, model):
        """Any encoder with a vocabulary has vectors of sentences, trained to be so or not."""
        found = []
        if model.tokenizer is None:
            note = f" ({model.vocabulary_note})" if model.vocabulary_note else ""
            found.append(
                f"there is no vocabulary beside the model{note}; name it with "
                "--config.data.tokenizer"
            )
        if config.data.pooling == "pooled" and "pooler" in model.missing:
            found.append("data.pooling is pooled and the model has no pooler; it has mean and cls")
        return found

    @classmethod
    def unused(cls, config):
        return () if config.data.pooling == "pooled" else ("pooler",)

    @classmethod
    def make_model(cls, config, saved=None):
        del saved
        names = ("pooling", "projection", "dropout")
        fields = {name: getattr(config.data, name) for name in names}
        return Albert(config.model, (HEAD,), {HEAD: fields})

    @classmethod
    def sequences_per_row(cls, config):
        return max(config.data.texts, 2)  # a text that stands for itself is seen twice

    # Makers.

    @classmethod
    def prepare(cls, config, workdir: Path, saved, start):
        tokenizer = tokenizer_of(config, workdir, saved, start)
        dev = read_scored(config.data.dev, config.data.dev_columns)
        if config.data.text_a:
            texts = read_texts(config.data)
            train = _sequences_of(texts, config.data, tokenizer, config.data.seq_length)
            return cls(config, tokenizer, train, dev)._enough()
        train, count = _sentences_of(config.data, tokenizer, config.seed)
        return cls(config, tokenizer, train, dev, count)._enough()

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        del saved, model
        return cls(config, tokenizer, dev=read_scored(config.data.dev, config.data.dev_columns))

    # Pure functions of one step.

    def denominators(self, batch):
        return {"rows": jnp.asarray(len(batch["numbers"]), jnp.float32)}

    def sums(self, params, rows, dropout_keys):
        if rows["numbers"].shape[1] == 1:
            rows = {name: jnp.repeat(value, 2, axis=1) for name, value in rows.items()}
        vectors = self._outputs(params, rows, dropout_keys)["projected"]
        losses, hits = contrasts(vectors, rows["numbers"], self._config.data.temperature)
        return {
            "loss": losses.sum(),
            "hits": hits.sum(),
            "real_tokens": rows["attention_mask"].sum(),
            "padded_tokens": jnp.asarray(rows["attention_mask"].size, jnp.int32),
        }

    def loss(self, sums, denominators):
        return sums["loss"] / denominators["rows"]

    def metrics(self, sums, denominators):
        found = {name: sums[name] for name in self.amounts}
        return found | {"accuracy": sums["hits"] / denominators["rows"]}

    def line(self, metrics):
        return f"partner found {100 * metrics['accuracy']:.1f} %"

    def _outputs(self, params, rows, dropout_keys=None):
        """What the head gives of rows of texts, [B, S, L]: float32 [B, S, H] by name. Every text of
        a row drops out by a key of its own."""
        count, texts, _ = rows["input_ids"].shape
        flat, keys = self._flat(rows, dropout_keys)
        found = self._head_output(params, flat, keys, {"attention_mask": flat["attention_mask"]})
        return {name: value.reshape(count, texts, -1) for name, value in found.items()}

    def _vectors(self, params, rows):
        """float32 [B, 2, H], as `encode` of a loaded model gives them."""
        return self._outputs(params, rows)["vector"]

    # What a run is.

    def description(self):
        data = self._config.data
        return {
            "pooling": data.pooling,
            "projection": data.projection,
            "texts": data.texts,
            "examples": _digest(self._train),
            "held_out": digest_of(self._dev),
        }


def _sequences_of(
    texts: Sequence[str], data: ContrastiveConfig, tokenizer: Tokenizer, length: int
) -> Sequences:
    pairs = [(text, None) for text in texts]
    return kept_sequences(pairs, tokenizer, length, place(data.folder), data.workers)


def _sentences_of(
    data: ContrastiveConfig, tokenizer: Tokenizer, seed: int
) -> tuple[Sequences, int]:
    """Sentences of text, prepared as pretraining prepares it, and of how many they are drawn.
    Raises SourceError, VocabularyError."""
    folder = place(data.folder)
    corpora = []
    for spec in data.train:
        source = open_source(spec, data.text_field, folder)
        corpora.append(
            prepare_corpus(source, tokenizer, data.language, 0, data.max_bad_share, folder)
        )
        check_unknown(corpora[-1], tokenizer, data.max_unknown_share)
    count = sum(corpus.num_sentences for corpus in corpora)
    return corpus_sentences(corpora, data.max_sentences, seed, data.seq_length), count


def _digest(train: Sequences | None) -> str:
    """Digits that change with any token of the examples."""
    digest = hashlib.blake2b(digest_size=8)
    if train is not None:
        digest.update(train.ids.tobytes())
        digest.update(train.starts.tobytes())
    return digest.hexdigest()


def _line_of(found: dict[str, float]) -> str:
    return f"dev: Spearman {100 * found['spearman']:.1f} %, Pearson {100 * found['pearson']:.1f} %"


def _table(pooling: str, of: str, found: dict[str, float]) -> str:
    notes = {
        "spearman": f"cosine and score, vectors: {pooling}",
        "alignment": "squared distance of pairs that mean the same: the less the closer",
        "uniformity": "how vectors crowd: the less the wider they spread",
    }
    lines = [f"dev {of}"]
    for name, value in found.items():
        shown = f"{100 * value:.1f} %" if name in ("spearman", "pearson") else f"{value:.3f}"
        lines.append(f"  {name:<12} {shown:>9}   {notes.get(name, '')}".rstrip())
    return "\n".join(lines)


def _pictures(scores: Sequence[float], vectors: np.ndarray) -> dict[str, Draw]:
    norms = np.maximum(np.linalg.norm(vectors, axis=-1), 1e-12)
    cosines = (vectors[:, 0] * vectors[:, 1]).sum(-1) / norms.prod(-1)
    labels = np.asarray(scores)
    alike = labels > _ALIKE * labels.max()
    groups = {"means the same": cosines[alike], "others": cosines[~alike]}
    return {
        "scatter": scatter(labels, cosines),
        "cosines": histogram(groups, "cosine of a pair", "cosines"),
    }
