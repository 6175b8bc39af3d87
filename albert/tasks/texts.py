"""What tasks on one text or two have in common: classes, a number, or several labels at once.

A task of this kind reads examples and names its metrics; rows, head, loss and evaluation are here.
Source of head and loss: `create_model` in `classifier_utils.py`, google-research/albert.
"""

import abc
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from albert.data.labelled.kept import kept_sequences
from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.sequences import Sequences
from albert.data.sources.base import SourceError
from albert.models.encoder import Albert
from albert.models.kinds import label_probabilities
from albert.runtime.console import warn
from albert.runtime.paths import place
from albert.tasks import exits as exit_curve
from albert.tasks.base import Best, Evaluation, Predictions
from albert.tasks.distillation import TAUGHT
from albert.tasks.finetuning import (
    FineTuning,
    FineTuningConfig,
    digest_of,
    taught_label_problems,
)
from albert.tasks.metrics import METRICS, defined, expected_calibration_error
from albert.tasks.pictures import Draw, confusion, histogram, reliability, scatter
from albert.tasks.vocabulary import tokenizer_of, vocabulary_of

HEAD, EXITS = "classifier", "exits"
# How the classifiers of the depths before the last are learned, if there are any.
EXITS_LEARNED = ("none", "together", "frozen")


class Example(NamedTuple):
    """One row of a data set."""

    id: str
    text: str
    pair: str | None  # the second text
    label: Any  # a name, a number, or names; None: not known


@dataclasses.dataclass
class Split:
    """Labelled examples to be judged by."""

    name: str  # of the evaluation: "dev" is the one by which the best checkpoint is chosen
    examples: list
    metrics: tuple[str, ...]  # of `METRICS`, the first decides


@dataclasses.dataclass
class LabelledData:
    """What a task has read."""

    kind: str  # of KINDS
    labels: tuple[str, ...]  # in the order of their ids; none where a number is learned
    train: list  # of `Example`, or what else a task has
    evaluated: list[Split]
    class_weights: tuple[float, ...] = ()  # none: all count alike


@dataclasses.dataclass(frozen=True)
class TextConfig(FineTuningConfig):
    """Fields of the section `data` of tasks whose classifier may stand on every depth."""

    exits: str  # of EXITS_LEARNED: classifiers on the depths before the last, to leave early

    def problems(self) -> list[str]:
        found = super().problems()
        if self.exits not in EXITS_LEARNED:
            found.append(f"exits is {self.exits!r}; it must be one of {', '.join(EXITS_LEARNED)}")
        return found


class TextTask(FineTuning):
    """A classifier on the pooled output, or on that of every depth.

    The loss is the mean over examples, weighted by class where that is asked for, of the cross
    entropy of classes, the squared error of a number, or the mean binary cross entropy of several
    labels. With a classifier on every depth it is the mean of the depths' losses, weighted by
    depth, 1 to N (Zhou et al. 2020, arXiv 2006.04152).
    """

    taught_head = HEAD
    deciding: ClassVar = {
        "kind": "what is learned",
        "labels": "the labels",
        "exits": "the classifiers of the depths (data.exits)",
    }

    @classmethod
    @abc.abstractmethod
    def known_labels(cls, config) -> tuple[str, ...] | None:
        """The labels that the config tells of; None: they are found in the training data."""

    @classmethod
    def exits(cls, config) -> str:
        """How the classifiers of all depths are learned: of EXITS_LEARNED."""
        return config.data.exits

    @classmethod
    @abc.abstractmethod
    def read(cls, config, training: bool, saved: dict | None = None) -> LabelledData:
        """The examples; those of training only where they are asked for. `saved`: the description
        of the run that they are for. Raises SourceError."""

    @classmethod
    def read_unlabelled(cls, config) -> dict[str, list[Example]]:
        """Name of a file of predictions -> what to predict for it. Raises SourceError."""
        del config
        return {}

    @abc.abstractmethod
    def prediction_lines(self, examples: Sequence[Example], outputs: np.ndarray) -> Iterable[str]:
        """The lines of a file of predictions. outputs: the logits, float32 [n, labels]."""

    def __init__(self, config, data: LabelledData | None = None, tokenizer=None, training=False):
        """Without data nothing can be evaluated or trained on: what is left are the pure functions
        of a step."""
        self._config, self._data, self.tokenizer = config, data, tokenizer
        self.kind = data.kind if data else ("classes" if self.known_labels(config) else "number")
        self.labels = data.labels if data else self.known_labels(config) or ()
        self.model = self._model(config, len(self.labels) or 1, self.kind)
        self.rows = None
        told: list[str] = []
        if data is None:
            return
        self._ids = {name: number for number, name in enumerate(self.labels)}
        if training:
            sequences = self._sequences(data.train)
            targets = self._targets(data.train)
            fields = {"labels": targets, "weights": self._weights(targets)}
            self.rows = self._rows(sequences, data.train, fields, config.seed)
            told = self._opening(sequences)
        self.evaluations = [self._evaluation(split, told) for split in data.evaluated]
        self.opening = told
        self.best = Best("dev", data.evaluated[0].metrics[0], higher_is_better=True)

    # Asked before there is any data or device.

    @classmethod
    def problems(cls, config, needs_text):
        found = super().problems(config, needs_text)
        learned = cls.exits(config)
        if learned != "none" and config.model.depth < 2 and not config.init_model:
            found.append(f"data.exits is {learned!r} and the model has one layer: set it to 'none'")
        if learned != "none" and config.model.least_depth:
            found.append(
                f"data.exits is {learned!r} and model.least_depth {config.model.least_depth}: "
                "classifiers on every depth train every depth; set least_depth to 0"
            )
        if learned == "frozen" and needs_text and not config.init_from:
            found.append(
                "data.exits is 'frozen' and init_from is empty; name the fine-tuned model whose "
                "depths are to have classifiers"
            )
        if learned != "none" and config.distillation.teacher:
            found.append(
                f"data.exits is {learned!r} and distillation.teacher is set: a teacher teaches the "
                "last depth alone. Set data.exits to 'none'; learned afterwards, 'frozen', they "
                "stand behind what the teacher taught"
            )
        return found

    @classmethod
    def start_problems(cls, config, start):
        found = super().start_problems(config, start)
        learned = cls.exits(config)
        if learned != "none" and start.config.depth < 2:
            found.append(
                f"data.exits is {learned!r} and init_from, {config.init_from}, has one layer: set "
                "it to 'none'"
            )
        if learned == "frozen" and (HEAD not in start.heads or f"{HEAD}_head" in start.missing):
            found.append(
                f"data.exits is 'frozen' and init_from, {config.init_from}, has no classifier: "
                "fine-tune it first, or set data.exits to 'together'"
            )
        return found

    @classmethod
    def kept(cls, config):
        if cls.exits(config) == "frozen":
            return "embeddings", "encoder", "pooler", f"{HEAD}_head"
        return super().kept(config)

    @classmethod
    def evaluation_problems(cls, config, model):
        found = []
        if HEAD not in model.heads or f"{HEAD}_head" in model.missing:
            found.append(
                "the model has no classifier, so there is nothing to evaluate: it was not "
                "fine-tuned on such a task"
            )
            return found
        known = cls.known_labels(config)
        count = model.heads[HEAD]["labels"]
        if known is not None and count != max(len(known), 1):
            found.append(
                f"the model's classifier has {count} outputs and the task needs "
                f"{max(len(known), 1)}"
            )
        elif known and model.labels and set(known) != set(model.labels):
            found.append(
                f"the model's labels are {', '.join(model.labels)} and the task's "
                f"{', '.join(known)}"
            )
        if model.tokenizer is None:
            note = f" ({model.vocabulary_note})" if model.vocabulary_note else ""
            found.append(
                f"there is no vocabulary beside the model{note}; name it with "
                "--config.data.tokenizer"
            )
        return found

    @classmethod
    def make_model(cls, config, saved=None):
        labels = saved["labels"] if saved else cls.known_labels(config)
        kind = saved["kind"] if saved else ("classes" if labels else "number")
        return cls._model(config, len(labels or ()) or 1, kind)

    @classmethod
    def _model(cls, config, labels: int, kind: str) -> Albert:
        more = {"labels": labels, "dropout": config.data.dropout}
        heads = {HEAD: {**more, "kind": kind}}
        if cls.exits(config) != "none":
            heads[EXITS] = more
        return Albert(config.model, tuple(heads), heads)

    # Makers.

    @classmethod
    def prepare(cls, config, workdir: Path, saved, start):
        tokenizer = tokenizer_of(config, workdir, saved, start)
        data = cls.read(config, training=True)
        task = cls(config, data, tokenizer, training=True)
        task._enough()
        if (
            start is not None
            and cls.exits(config) == "frozen"
            and (f"{HEAD}_head" in task.left_out(start))
        ):
            raise SourceError(
                f"data.exits is 'frozen' and the classifier of init_from, {config.init_from}, "
                f"tells other things apart ({', '.join(start.labels) or 'no names'}) than the "
                f"training examples ({', '.join(task.labels) or 'numbers'})."
            )
        return task

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        if saved is None and model is not None and model.labels:
            saved = {"labels": list(model.labels)}
        data = cls.read(config, training=False, saved=saved)
        if saved is not None:  # the order in which the model has learned them
            data.labels = tuple(saved["labels"])
        if model is not None and HEAD in model.heads:
            count = model.heads[HEAD]["labels"]
            if count != (len(data.labels) or 1):
                raise SourceError(
                    f"The model's classifier has {count} outputs without names and the examples "
                    f"have {len(data.labels) or 'no'} labels ({', '.join(data.labels)}): it was "
                    "not fine-tuned on these."
                )
        task = cls(config, data, tokenizer)
        task.check_drawn(saved)
        task.predictions = [
            Predictions(
                task._unlabelled_rows(examples),
                len(examples),
                task._logits,
                partial(task._file, name, examples),
            )
            for name, examples in cls.read_unlabelled(config).items()
        ]
        return task

    def _file(self, name: str, examples: Sequence, outputs: np.ndarray) -> dict[str, Iterable[str]]:
        return {name: self.prediction_lines(examples, outputs)}

    def _sequences(self, examples: Sequence[Example]) -> Sequences:
        data = self._config.data
        pairs = [(example.text, example.pair) for example in examples]
        return kept_sequences(
            pairs, vocabulary_of(self.tokenizer), data.seq_length, place(data.folder), data.workers
        )

    def _rows(
        self, sequences: Sequences, examples: Sequence, fields: dict, seed: int | None = None
    ) -> LabelledRows:
        del examples
        return LabelledRows(sequences, fields, self._config.data.seq_length, seed)

    def _unlabelled_rows(self, examples: Sequence) -> LabelledRows:
        return self._rows(self._sequences(examples), examples, {})

    def _targets(self, examples: Sequence[Example]) -> np.ndarray:
        """Classes: int32 [n]; a number: float32 [n]; several labels: float32 [n, labels]."""
        labels = [example.label for example in examples]
        if self.kind == "number":
            return np.asarray(labels, np.float32)
        unknown = {
            name
            for label in labels
            for name in (label if self.kind == "several" else (label,))
            if name not in self._ids
        }
        if unknown:
            raise SourceError(
                f"There are labels that the model does not know: "
                f"{', '.join(map(repr, sorted(unknown)))}; it knows {', '.join(self.labels)}."
            )
        if self.kind == "classes":
            return np.asarray([self._ids[name] for name in labels], np.int32)
        targets = np.zeros((len(labels), len(self.labels)), np.float32)
        for row, names in enumerate(labels):
            targets[row, [self._ids[name] for name in names]] = 1
        return targets

    def _weights(self, targets: np.ndarray) -> np.ndarray:
        """float32 [n]: how much each example counts."""
        assert self._data is not None
        if not self._data.class_weights:
            return np.ones(len(targets), np.float32)
        return np.asarray(self._data.class_weights, np.float32)[targets]

    def _evaluation(self, split: Split, told: list[str]) -> Evaluation:
        targets = self._targets(split.examples)
        rows = self._unlabelled_rows(split.examples)
        count = min(len(targets), self._config.train.eval_rows)
        if count < len(targets):
            told.append(
                f"{split.name}: judged by the first {count:,} of {len(targets):,} examples "
                "(train.eval_rows)."
            )
        return Evaluation(
            split.name,
            rows,
            count,
            self._of_every_depth if EXITS in self.model.heads else self._logits,
            partial(self._figures, targets[:count], split.metrics, split.examples[:count]),
            partial(_line_of, split.name, split.metrics),
            partial(_table, split.name, split.metrics),
            gathers=True,
            pictures=partial(self._pictures, targets[:count], split.metrics),
        )

    def _opening(self, sequences: Sequences) -> list[str]:
        assert self._data is not None
        line = f"{len(sequences):,} training examples"
        if self.kind == "classes":
            counts = Counter(example.label for example in self._data.train)
            shares = [f"{name} {100 * counts[name] / len(sequences):.1f} %" for name in self.labels]
            line += f": {', '.join(shares[:8])}{' and others' if len(shares) > 8 else ''}"
            if len(self.labels) < 2:
                warn("All training examples have one class: there is nothing to be learned.")
        lines = [f"{line}."]
        if sequences.cut:
            lines.append(
                f"{sequences.cut:,} of them ({100 * sequences.cut / len(sequences):.1f} %) are cut "
                f"to data.seq_length, {self._config.data.seq_length} tokens."
            )
        return lines

    # Pure functions of one step.

    def denominators(self, batch):
        found = {"weight": batch["weights"].sum()}
        return found | self.distillation.denominators(batch) if self.distillation else found

    def sums(self, params, rows, dropout_keys):
        if EXITS in self.model.heads:
            kept = self.kept(self._config)
            # What is not learned needs no backward pass.
            params = {
                part: jax.lax.stop_gradient(value) if part in kept else value
                for part, value in params.items()
            }
            logits = self._of_every_depth(params, rows, dropout_keys)
            terms = [self._terms(logits[:, n], rows["labels"]) for n in range(logits.shape[1])]
            depths = range(1, len(terms) + 1)
            losses = sum(n * loss for n, (loss, _) in zip(depths, terms, strict=True)) / sum(depths)
            hits = terms[-1][1]
            seen = None
        else:
            seen = self._seen(params, rows, dropout_keys)
            losses, hits = self._terms(seen.logits, rows["labels"])
        found = {
            "loss": (losses * rows["weights"]).sum(),
            "real_tokens": rows["attention_mask"].sum(),
            "padded_tokens": jnp.asarray(rows["attention_mask"].size, jnp.int32),
        }
        if self.distillation and seen:
            weights, sequences = rows["weights"], self._encoded_rows(rows)
            found |= self.distillation.sums(self.kind, seen, rows[TAUGHT], weights, sequences)
        return found if hits is None else found | {"hits": (hits * rows["weights"]).sum()}

    def loss(self, sums, denominators):
        hard = sums["loss"] / denominators["weight"]
        if self.distillation is None:
            return hard
        return self.distillation.loss(hard, sums, denominators, 1 / denominators["weight"])

    def metrics(self, sums, denominators):
        found = {name: sums[name] for name in self.amounts}
        if "hits" in sums:
            found["accuracy"] = sums["hits"] / denominators["weight"]
        if self.distillation:
            hard, scale = sums["loss"] / denominators["weight"], 1 / denominators["weight"]
            found |= self.distillation.metrics(hard, sums, denominators, scale)
        return found

    def line(self, metrics):
        parts = [f"accuracy {100 * metrics['accuracy']:.1f} %"] if "accuracy" in metrics else []
        parts += [self.distillation.line(metrics)] if self.distillation else []
        return "  ".join(parts)

    def _encoded_rows(self, rows) -> dict:
        """The sequences of rows, as the encoder is given them."""
        return rows

    def _terms(self, logits, labels):
        """Loss, and whether the likeliest class is right (None: there are no classes), of every
        example: float32 [B] each."""
        if self.kind == "number":
            return jnp.square(logits[:, 0] - labels), None
        if self.kind == "several":
            per_label = jax.nn.softplus(logits) - logits * labels  # binary cross entropy
            return per_label.mean(-1), ((logits > 0) == (labels > 0)).mean(-1)
        log_probabilities = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
        return nll, (jnp.argmax(logits, -1) == labels).astype(jnp.float32)

    def _logits(self, params, rows, dropout_keys=None):
        """float32 [B, labels]."""
        return self._seen(params, rows, dropout_keys).logits

    def _of_every_depth(self, params, rows, dropout_keys=None):
        """Logits of all depths, the last one's last: float32 [B, N, labels]."""
        found = self._output(params, rows, dropout_keys).logits
        return jnp.concatenate([found[EXITS], found[HEAD][:, None]], axis=1)

    def _figures(
        self, targets: np.ndarray, metrics: tuple[str, ...], examples: Sequence, logits: np.ndarray
    ) -> dict[str, float]:
        """The figures of logits, [n, labels], of these examples; of several depths, [n, N, labels],
        those of the last. What is undefined, such as a correlation with outputs that are all alike,
        counts as 0."""
        del examples
        logits = logits[:, -1] if logits.ndim == 3 else logits
        loss, _ = self._terms(jnp.asarray(logits), jnp.asarray(targets))
        found = {"loss": float(loss.mean())}
        predictions = predictions_of(self.kind, logits)
        for name in metrics:
            found[name] = defined(METRICS[name](targets, predictions))
        if self.kind in ("classes", "choice"):
            counts = np.bincount(targets)
            found["majority"] = float(counts.max() / counts.sum())
            found["calibration_error"] = expected_calibration_error(
                label_probabilities(self.kind, logits), targets
            )
        return found

    def exit_points(self, split: str, logits: np.ndarray) -> list[exit_curve.Point]:
        """What leaving early costs in the metrics of a split, and saves in layers.

        logits: what its evaluation gathers of a model with a classifier on every depth, float32
        [n, N, labels].
        """
        assert self._data is not None
        (of,) = (each for each in self._data.evaluated if each.name == split)
        return self._points(self._targets(of.examples[: len(logits)]), of.metrics, logits)

    def _points(self, targets: np.ndarray, metrics: tuple[str, ...], logits: np.ndarray):
        def figures(left):
            predictions = predictions_of(self.kind, left)
            return {name: defined(METRICS[name](targets, predictions)) for name in metrics}

        return exit_curve.points(self.kind, logits, figures)

    def _pictures(
        self, targets: np.ndarray, metrics: tuple[str, ...], logits: np.ndarray
    ) -> dict[str, Draw]:
        if logits.ndim == 3:
            points = self._points(targets, metrics, logits)
            more = {"exits": exit_curve.draw(points, metrics[0])}
            return self._pictures(targets, metrics, logits[:, -1]) | more
        predictions = predictions_of(self.kind, logits)
        if self.kind == "number":
            error = predictions - targets
            return {
                "scatter": scatter(targets, predictions),
                "errors": histogram({"dev": error}, "predicted less label", "errors"),
            }
        probabilities = label_probabilities(self.kind, logits)
        if self.kind == "several":
            hits = (probabilities > 0.5) == (targets > 0)
            confidence = np.maximum(probabilities, 1 - probabilities)
            groups = {"with it": probabilities[targets > 0], "without": probabilities[targets == 0]}
            return {
                "scores": histogram(groups, "probability of a label", "scores", 0.5),
                "reliability": reliability(confidence.reshape(-1), hits.reshape(-1)),
            }
        found = {"reliability": reliability(probabilities.max(-1), predictions == targets)}
        if self.kind == "classes":
            found["confusion"] = confusion(self.labels, targets, predictions)
        if len(self.labels) == 2:
            groups = {name: probabilities[targets == i, 1] for i, name in enumerate(self.labels)}
            found["scores"] = histogram(groups, f"probability of {self.labels[1]}", "scores", 0.5)
        return found

    # What a run is.

    def teacher_problems(self, config, teacher):
        found = super().teacher_problems(config, teacher)
        section = config.distillation
        if not section.share:
            return found  # what is learned of the hidden states alone needs no head
        kind = teacher.heads[HEAD]["kind"]
        if kind != self.kind:
            return [
                *found,
                f"the classifier of distillation.teacher, {section.teacher}, tells {kind} and the "
                f"data {self.kind}: fine-tune the teacher on this task",
            ]
        if self.kind == "number" and section.temperature is not None:
            found.append(
                f"distillation.temperature is {section.temperature} and what is learned is a "
                "number, which has none: set it to None"
            )
        if self.labels:
            found += taught_label_problems(config, self.labels, teacher)
        return found

    def left_out(self, start):
        """The heads of a model that tells other things apart, and what it learned of depths where
        it has another number of them."""
        kind = start.heads.get(HEAD, {}).get("kind")
        same = self.labels and start.labels == self.labels and kind == self.kind
        if not same:
            parts = HEAD, *(name for name in (EXITS,) if name in start.heads)
            return tuple(f"{name}_head" for name in parts)
        if EXITS in start.heads and start.config.depth != self._config.model.depth:
            return (f"{EXITS}_head",)
        return ()

    def description(self):
        assert self._data is not None
        return json.loads(
            json.dumps(
                {
                    "labels": self.labels,
                    "kind": self.kind,
                    "exits": None if EXITS not in self.model.heads else self.exits(self._config),
                    "examples": digest_of(self._data.train),
                    "held_out": {s.name: digest_of(s.examples) for s in self._data.evaluated},
                }
            )
        )


def predictions_of(kind: str, logits: np.ndarray) -> np.ndarray:
    """The ids of classes [n], numbers [n], or 0 and 1 for each of several labels, [n, labels]."""
    if kind == "number":
        return logits[:, 0]
    return np.argmax(logits, -1) if kind in ("classes", "choice") else (logits > 0).astype(np.int32)


def _percent(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "loss" else f"{100 * value:.1f} %"


def _line_of(split: str, metrics: tuple[str, ...], figures: dict[str, float]) -> str:
    named = ", ".join(f"{name} {_percent(name, figures[name])}" for name in metrics)
    return f"{split}: {named}, loss {figures['loss']:.3f}"


_NOTES = {
    "calibration_error": "confidence and accuracy apart, over tenths of confidence",
    "majority": "what the most frequent class would give",
}


def _table(split: str, metrics: tuple[str, ...], of: str, figures: dict[str, float]) -> str:
    lines = [f"{split} {of}"]
    for name, value in figures.items():
        shown = name.replace("_", " ")
        lines.append(f"  {shown:<20} {_percent(name, value):>9}   {_NOTES.get(name, '')}".rstrip())
    return "\n".join(lines)
