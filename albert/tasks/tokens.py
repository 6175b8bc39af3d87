"""Labels of words: names of persons and places, slots of a command, parts of speech.

The first piece of a word stands for it, as in Devlin et al. 2019 (arXiv 1810.04805), section 5.3.
Entities are judged by seqeval, as the CoNLL shared tasks do.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.tables import records
from albert.data.labelled.words import WordRows, word_sequences
from albert.data.sources.base import SourceError
from albert.models.encoder import Albert
from albert.runtime.console import warn
from albert.runtime.paths import place
from albert.tasks.base import Best, Evaluation, Predictions
from albert.tasks.distillation import TAUGHT
from albert.tasks.finetuning import (
    FineTuning,
    FineTuningConfig,
    digest_of,
    held_out,
    taught_label_problems,
    whole_within,
)
from albert.tasks.pictures import Draw, confusion
from albert.tasks.vocabulary import tokenizer_of, vocabulary_of

HEAD = "tokens"
FORMATS = (".conll", ".txt", ".tsv", ".jsonl")
_BOUNDARY = "-DOCSTART-"  # a line of CoNLL between documents, which is no sentence


class Sentence(NamedTuple):
    """Words, and what each is."""

    id: str
    words: tuple[str, ...]
    labels: tuple[str, ...] | None  # None: not known


def read(path: str | Path, words: str = "tokens", labels: str | None = "labels") -> list[Sentence]:
    """The sentences of a file.

    Args:
      path: JSON lines with two lists; or CoNLL: a word a line, its columns parted by white space,
        the word the first and the label the last one, and a blank line between sentences.
      words, labels: names of the lists in JSON lines; `labels` None: there are none.

    Raises SourceError for what is wrong; names file, line and column.
    """
    path = place(str(path))
    try:
        found = list(
            _of_json(path, words, labels) if path.suffix == ".jsonl" else _of_conll(path, labels)
        )
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if not found:
        raise SourceError(f"{path} holds no sentences")
    return found


def _of_json(path: Path, words: str, labels: str | None):
    for number, (where, record) in enumerate(records(str(path))):
        lists = {}
        for name in (words, labels) if labels else (words,):
            value = record.get(name)
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise SourceError(f"{where}: {name} is {value!r}; it must be a list of texts")
            lists[name] = tuple(value)
        if not lists[words]:
            raise SourceError(f"{where}: {words} is empty")
        if labels and len(lists[labels]) != len(lists[words]):
            raise SourceError(
                f"{where}: there are {len(lists[words])} {words} and {len(lists[labels])} {labels}"
            )
        yield Sentence(str(number), lists[words], lists[labels] if labels else None)


def _of_conll(path: Path, labels: str | None):
    words: list[str] = []
    tags: list[str] = []
    count = 0
    text = path.read_bytes()
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        where = text.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {where}: not UTF-8 ({error.reason})") from error
    for number, line in enumerate([*lines, ""], 1):
        columns = line.split()
        if columns and columns[0] != _BOUNDARY:
            if labels and len(columns) < 2:
                raise SourceError(
                    f"{path}, line {number}: one column; a word and its label are needed"
                )
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield Sentence(str(count), tuple(words), tuple(tags) if labels else None)
            count += 1
            words, tags = [], []


def figures(labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict:
    """Accuracy of words; of labels that mark entities (B-, I-) also precision, recall and F1 of
    whole ones, by seqeval."""
    flat = [
        (a, b)
        for row, other in zip(labels, predictions, strict=True)
        for a, b in zip(row, other, strict=True)
    ]
    found = {"accuracy": sum(a == b for a, b in flat) / max(len(flat), 1)}
    if marks_entities({a for a, _ in flat}):
        from seqeval.metrics import f1_score, precision_score, recall_score

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is predicted, or nothing is there
            for name, function in (
                ("f1", f1_score),
                ("precision", precision_score),
                ("recall", recall_score),
            ):
                arguments = [list(map(list, labels)), list(map(list, predictions))]
                found[name] = float(function(*arguments, zero_division=0))
    return found


def marks_entities(labels: set[str]) -> bool:
    """Whether labels are those of entities: begun by B- and gone on by I-."""
    return any(label.startswith(("B-", "I-")) for label in labels)


@dataclasses.dataclass(frozen=True)
class TokensConfig(FineTuningConfig):
    """The section `data` of a config. A file is CoNLL (.conll, .txt, .tsv) or JSON lines."""

    train: tuple[str, ...]
    dev: tuple[str, ...]  # none: dev_fraction of the training sentences
    dev_fraction: float
    predict: tuple[str, ...]  # to be labelled when the run is evaluated
    words: str  # names of the lists in JSON lines
    labels: str

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.dev and not 0 < self.dev_fraction < 1:
            found.append(
                f"dev is empty and dev_fraction {self.dev_fraction}; it must be between 0 and 1, "
                "or dev name a file"
            )
        return found

    def text_problems(self) -> list[str]:
        found = [] if self.train else ["train is empty; name files of labelled sentences"]
        for field in ("train", "dev", "predict"):
            for file in getattr(self, field):
                path = place(file)
                if path.suffix not in FORMATS:
                    found.append(f"{field}: {file} must end in {', '.join(FORMATS)}")
                elif not path.is_file():
                    found.append(f"{field}: {file} is not a file")
        return found


class TokenLabels(FineTuning):
    """A dense layer on every token; the loss is the mean cross entropy of the words' first pieces.

    Labels are found in the training data, in the order of their names, and kept with the run. A
    sentence longer than a row goes on in another.
    """

    Section = TokensConfig
    taught_head = HEAD
    deciding: ClassVar = {"labels": "the labels"}

    def __init__(self, config, labels: Sequence[str], tokenizer=None, train=None, dev=None):
        """Without sentences nothing can be trained on or evaluated."""
        self._config, self.tokenizer = config, tokenizer
        self.labels = tuple(labels)
        self._train, self._dev = train, dev
        self.model = self._model(config, len(labels))
        self.rows, self.evaluations, opening = None, [], []
        self._ids = {name: number for number, name in enumerate(self.labels)}
        if train is not None:
            rows = self._words(train)
            self.rows = self._rows_of(rows, train, config.seed)
            opening.append(
                f"{len(train):,} training sentences in {len(rows.rows):,} rows, "
                f"{len(self.labels)} labels."
            )
            if rows.empty:
                opening.append(f"{rows.empty:,} words have no piece and are <unk>.")
        self.opening = opening
        if dev is not None:
            rows = self._words(dev)
            count, told = whole_within(rows.sentences, config.train.eval_rows, "sentences")
            if told:
                opening += told
                dev = dev[:count]
                rows = self._words(dev)
            entities = marks_entities(set(self.labels))
            self.best = Best("dev", "f1" if entities else "accuracy", higher_is_better=True)
            self.evaluations = [
                Evaluation(
                    "dev",
                    self._rows_of(rows, None),
                    len(rows.rows),
                    self._predicted,
                    lambda found: figures(
                        [sentence.labels for sentence in dev], self._of_words(rows, dev, found)
                    ),
                    _line_of,
                    _table,
                    gathers=True,
                    pictures=lambda found: self._pictures(dev, self._of_words(rows, dev, found)),
                )
            ]

    def _pictures(self, sentences, predicted) -> dict[str, Draw]:
        targets = [self._ids[label] for sentence in sentences for label in sentence.labels]
        chosen = [self._ids[label] for labels in predicted for label in labels]
        return {"confusion": confusion(self.labels, targets, chosen)}

    # Asked before there is any data or device.

    @classmethod
    def draws_held_out(cls, config):
        return not config.data.dev

    @classmethod
    def unused(cls, config):
        del config
        return ("pooler",)

    @classmethod
    def evaluation_problems(cls, config, model):
        del config
        if HEAD not in model.heads or f"{HEAD}_head" in model.missing or not model.labels:
            return ["the model has no head that labels tokens, with names of its labels"]
        return [] if model.tokenizer else ["there is no vocabulary beside the model"]

    @classmethod
    def _model(cls, config, labels: int) -> Albert:
        fields = {"labels": labels, "dropout": config.data.dropout}
        return Albert(config.model, (HEAD,), {HEAD: fields})

    @classmethod
    def make_model(cls, config, saved=None):
        return cls._model(config, len(saved["labels"]) if saved else 1)

    # Makers.

    @classmethod
    def prepare(cls, config, workdir: Path, saved, start):
        tokenizer = tokenizer_of(config, workdir, saved, start)
        train, dev = _split(config)
        labels = sorted({label for sentence in train for label in sentence.labels or ()})
        _check(dev, labels)
        return cls(config, labels, tokenizer, train, dev)._enough()

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        labels = saved["labels"] if saved else list(model.labels)
        _, dev = _split(config, training=False)
        _check(dev, labels)
        task = cls(config, labels, tokenizer, None, dev)
        task.check_drawn(saved)
        task.predictions = []
        for number, file in enumerate(config.data.predict):
            sentences = read(file, config.data.words, None)
            rows = task._words(sentences)
            task.predictions.append(
                Predictions(
                    task._rows_of(rows, None),
                    len(rows.rows),
                    task._predicted,
                    partial(task._file, f"{number}_{Path(file).stem}.conll", rows, sentences),
                )
            )
        return task

    def _words(self, sentences: Sequence[Sentence]) -> WordRows:
        words = [sentence.words for sentence in sentences]
        return word_sequences(words, vocabulary_of(self.tokenizer), self._config.data.seq_length)

    def _rows_of(self, rows: WordRows, labelled: Sequence[Sentence] | None, seed=None):
        """Rows of training with the labels of first pieces, or, without sentences, all of one
        length, to be put one behind the other."""
        length = self._config.data.seq_length
        if labelled is None:
            return LabelledRows(rows.rows, {}, length, is_fixed=True)
        targets = np.full(len(rows.words), -1, np.int32)
        of = np.repeat(rows.sentences, rows.rows.lengths)
        for at in np.flatnonzero(rows.words >= 0).tolist():
            labels = labelled[of[at]].labels
            assert labels is not None
            targets[at] = self._ids[labels[rows.words[at]]]
        return LabelledRows(rows.rows, {}, length, seed, of_tokens={"labels": targets})

    def _of_words(self, rows: WordRows, sentences, found: np.ndarray) -> list[list[str]]:
        """The predicted label of every word of the sentences."""
        predicted: list[list[str]] = [[] for _ in sentences]
        for row, sentence in enumerate(rows.sentences.tolist()):
            ids = found[row, rows.first_pieces(row)]
            predicted[sentence] += [self.labels[i] for i in ids.tolist()]
        return predicted

    def _file(self, name: str, rows: WordRows, sentences, found: np.ndarray):
        lines = []
        for sentence, labels in zip(sentences, self._of_words(rows, sentences, found), strict=True):
            lines += [
                f"{word}\t{label}" for word, label in zip(sentence.words, labels, strict=True)
            ]
            lines.append("")
        return {name: lines}

    # Pure functions of one step.

    def denominators(self, batch):
        found = {"words": (batch["labels"] >= 0).sum().astype(jnp.float32)}
        return found | self.distillation.denominators(batch) if self.distillation else found

    def sums(self, params, rows, dropout_keys):
        seen = self._seen(params, rows, dropout_keys)
        logits, labels = seen.logits, rows["labels"]
        known = (labels >= 0).astype(jnp.float32)
        log_probabilities = jax.nn.log_softmax(logits)
        chosen = jnp.maximum(labels, 0)[..., None]
        nll = -jnp.take_along_axis(log_probabilities, chosen, axis=-1)[..., 0]
        found = {
            "loss": (nll * known).sum(),
            "hits": ((jnp.argmax(logits, -1) == labels) * known).sum(),
            "real_tokens": rows["attention_mask"].sum(),
            "padded_tokens": jnp.asarray(rows["attention_mask"].size, jnp.int32),
        }
        if self.distillation:
            found |= self.distillation.sums("classes", seen, rows[TAUGHT], known, rows)
        return found

    def loss(self, sums, denominators):
        words = jnp.maximum(denominators["words"], 1.0)
        hard = sums["loss"] / words
        if self.distillation is None:
            return hard
        return self.distillation.loss(hard, sums, denominators, 1 / words)

    def metrics(self, sums, denominators):
        words = jnp.maximum(denominators["words"], 1.0)
        found = {name: sums[name] for name in self.amounts}
        found["accuracy"] = sums["hits"] / words
        if self.distillation:
            hard = sums["loss"] / words
            found |= self.distillation.metrics(hard, sums, denominators, 1 / words)
        return found

    def line(self, metrics):
        text = f"accuracy {100 * metrics['accuracy']:.1f} %"
        return f"{text}  {self.distillation.line(metrics)}" if self.distillation else text

    def _logits(self, params, rows, dropout_keys=None):
        """float32 [B, L, labels]."""
        return self._head_output(params, rows, dropout_keys)

    def _predicted(self, params, rows):
        """The likeliest label of every token, int32 [B, L]."""
        return jnp.argmax(self._logits(params, rows), axis=-1)

    # What a run is.

    def teacher_problems(self, config, teacher):
        found = super().teacher_problems(config, teacher)
        if config.distillation.share:
            found += taught_label_problems(config, self.labels, teacher)
        return found

    def left_out(self, start):
        return () if start.labels == self.labels else (f"{HEAD}_head",)

    def description(self):
        return {
            "labels": list(self.labels),
            "examples": digest_of(self._train),
            "held_out": digest_of(self._dev),
        }


def _split(config, training: bool = True) -> tuple[list[Sentence], list[Sentence]]:
    """(training, held out); those of training only where they are asked for."""
    data = config.data

    def of(files):
        return [each for file in files for each in read(file, data.words, data.labels)]

    if data.dev:
        return of(data.train) if training else [], of(data.dev)
    return held_out(of(data.train), data.dev_fraction, config.seed)


def _check(dev: Sequence[Sentence], labels: Sequence[str]) -> None:
    known = set(labels)
    unknown = sorted({each for sentence in dev for each in sentence.labels or ()} - known)
    if unknown:
        raise SourceError(
            f"The held-out sentences have labels that the training sentences lack: "
            f"{', '.join(map(repr, unknown))}; there is {', '.join(map(repr, labels))}."
        )
    if len(known) == 1:
        warn("All words have one label: there is nothing to be learned.")


def _line_of(found: dict[str, float]) -> str:
    return "dev: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())


def _table(of: str, found: dict[str, float]) -> str:
    lines = [f"dev {of}"]
    return "\n".join(
        lines + [f"  {name:<12} {100 * value:>7.1f} %" for name, value in found.items()]
    )
