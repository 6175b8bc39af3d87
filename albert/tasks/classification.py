"""A user's own labelled texts: classes, a number, or several labels at once."""

import csv
import dataclasses
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from albert.data.labelled.tables import records, table_problem
from albert.data.sources.base import SourceError
from albert.models.kinds import label_probabilities
from albert.runtime.console import warn
from albert.tasks.finetuning import held_out
from albert.tasks.texts import (
    Example,
    LabelledData,
    Split,
    TextConfig,
    TextTask,
    predictions_of,
)

# What a run is judged by, the first figure first.
_METRICS = {
    "classes": ("accuracy", "f1_macro", "matthews"),
    "number": ("pearson", "spearman"),
    "several": ("f1_micro", "f1_macro", "accuracy"),
}
CLASS_WEIGHTS = ("none", "balanced")


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(TextConfig):
    """The section `data` of a config. A source is a file that ends in .tsv, .csv, .jsonl or
    .parquet, or tfds:NAME:SPLIT."""

    train: tuple[str, ...]  # sources
    dev: tuple[str, ...]  # none: dev_fraction of the training examples
    dev_fraction: float
    predict: tuple[str, ...]  # to be labelled when the run is evaluated
    text: str  # names of columns
    pair: str  # of the second text; empty: there is one text
    label: str
    id: str  # empty: the number of the record
    kind: str  # classes, number, or several: any number of labels for each text
    separator: str  # between several labels in one cell; lists need none
    class_weights: str  # none, or balanced: every class counts as much, whatever its frequency
    metric: str  # which decides what checkpoint is best; empty: the first of the kind's

    def problems(self) -> list[str]:
        found = super().problems()
        if self.kind not in _METRICS:
            found.append(f"kind is {self.kind!r}; it must be one of {', '.join(_METRICS)}")
        elif self.metric and self.metric not in _METRICS[self.kind]:
            found.append(
                f"metric is {self.metric!r}; of kind {self.kind} it must be one of "
                f"{', '.join(_METRICS[self.kind])}"
            )
        if self.class_weights not in CLASS_WEIGHTS:
            found.append(
                f"class_weights is {self.class_weights!r}; it must be one of "
                f"{', '.join(CLASS_WEIGHTS)}"
            )
        elif self.class_weights != "none" and self.kind != "classes":
            found.append(f"class_weights is {self.class_weights} and kind {self.kind}, not classes")
        if not self.dev and not 0 < self.dev_fraction < 1:
            found.append(
                f"dev is empty and dev_fraction {self.dev_fraction}; it must be between 0 and 1, "
                "or dev name a source"
            )
        if self.kind == "several" and not self.separator:
            found.append("separator is empty; it parts the labels in a cell, such as ','")
        for name in ("text", "label"):
            if not getattr(self, name):
                found.append(f"{name} is empty; it names the column of the {name}")
        return found

    def text_problems(self) -> list[str]:
        found = []
        if not self.train:
            found.append("train is empty; name files of labelled texts")
        for field in ("train", "dev", "predict"):
            for source in getattr(self, field):
                if problem := table_problem(source):
                    found.append(f"{field}: {source} {problem}")
        return found


class OwnTexts(TextTask):
    """Labels are found in the training data, in the order of their names, and kept with the run."""

    Section = ClassificationConfig

    @classmethod
    def known_labels(cls, config):
        return () if config.data.kind == "number" else None

    @classmethod
    def draws_held_out(cls, config):
        return not config.data.dev

    @classmethod
    def read(cls, config, training, saved=None):
        data = config.data
        metrics = _METRICS[data.kind]
        if data.metric:
            metrics = (data.metric, *(name for name in metrics if name != data.metric))
        train = _examples(data, data.train) if training or not data.dev else []
        if data.dev:
            dev = _examples(data, data.dev)
        else:
            train, dev = held_out(train, data.dev_fraction, config.seed)
        labels = tuple(saved["labels"]) if saved else _labels_of(data.kind, train or dev)
        if training:
            _check_dev(data, labels, dev)
        weights: tuple[float, ...] = ()
        if data.class_weights == "balanced":
            counts = Counter(example.label for example in train)
            weights = tuple(
                len(train) / (len(labels) * counts[name]) if counts[name] else 0.0
                for name in labels
            )
        return LabelledData(data.kind, labels, train, [Split("dev", dev, metrics)], weights)

    @classmethod
    def read_unlabelled(cls, config):
        data = config.data
        found = {}
        for number, source in enumerate(data.predict):
            name = f"{number}_{source.rsplit('/', 1)[-1].rsplit('.', 1)[0]}.tsv"
            found[name] = _examples(data, (source,), labelled=False)
        return found

    def prediction_lines(self, examples, outputs):
        return prediction_table(
            self.kind, self.labels, [example.id for example in examples], outputs
        )


def prediction_table(
    kind: str, labels: Sequence[str], ids: Sequence[str], logits: np.ndarray
) -> Iterable[str]:
    """Lines of tab-separated values: id, prediction, and the probability of every label."""
    header = ["id", "prediction", *(labels if kind != "number" else ())]
    yield _tab_separated(header)
    predictions = predictions_of(kind, logits)
    probabilities = None if kind == "number" else label_probabilities(kind, logits)
    for row, key in enumerate(ids):
        if kind == "number":
            yield _tab_separated([key, f"{predictions[row]:.6g}"])
            continue
        if kind == "classes":
            named = labels[int(predictions[row])]
        else:
            named = ",".join(n for n, on in zip(labels, predictions[row], strict=True) if on)
        assert probabilities is not None
        yield _tab_separated([key, named, *(f"{p:.6f}" for p in probabilities[row])])


def _tab_separated(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter="\t", lineterminator="").writerow(cells)
    return line.getvalue()


def example_of(
    record: dict, where: str, number: int, text: str, pair: str, key: str, label: Any = None
) -> Example:
    """A record as an example, its texts and id from the columns of these names; an empty name is
    none. Raises SourceError."""
    return Example(
        str(_cell(record, key, where, "id")) if key else str(number),
        text_of(record, text, where, "text"),
        text_of(record, pair, where, "pair") if pair else None,
        label,
    )


def _examples(
    data: ClassificationConfig, sources: Sequence[str], labelled: bool = True
) -> list[Example]:
    found: list[Example] = []
    for source in sources:
        before = len(found)
        for where, record in records(source):
            label = _label(record, data, where) if labelled else None
            found.append(
                example_of(record, where, len(found), data.text, data.pair, data.id, label)
            )
        if len(found) == before:
            raise SourceError(f"{source} holds no records")
    return found


def _cell(record: dict, column: str, where: str, field: str):
    if column not in record:
        raise SourceError(
            f"{where}: there is no column {column!r} for the {field}; there is "
            f"{', '.join(map(repr, record))}. Name the right one."
        )
    return record[column]


def text_of(record: dict, column: str, where: str, field: str) -> str:
    """The text in a column of a record; raises SourceError where there is none."""
    value = _cell(record, column, where, field)
    if not isinstance(value, str):
        raise SourceError(
            f"{where}, column {column}: {value!r} is of type {type(value).__name__}, not a text"
        )
    if not value.strip():
        raise SourceError(f"{where}, column {column}: the text is empty")
    return value


def _label(record: dict, data: ClassificationConfig, where: str):
    value = _cell(record, data.label, where, "label")
    at = f"{where}, column {data.label}"
    if data.kind == "number":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise SourceError(f"{at}: the label is {value!r}; kind number needs a finite number")
        return number
    if data.kind == "several":
        names = value.split(data.separator) if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            raise SourceError(f"{at}: the label is {value!r}; kind several needs a list or a text")
        return tuple(dict.fromkeys(name for each in names if (name := str(each).strip())))
    if value is None or not str(value).strip() or isinstance(value, (float, list, dict)):
        raise SourceError(f"{at}: the label is {value!r}; it must be a name or a whole number")
    return str(value).strip()


def _labels_of(kind: str, examples: Sequence[Example]) -> tuple[str, ...]:
    """The names of all labels, sorted; whole numbers by size."""
    if kind == "number":
        return ()
    names = {
        name
        for example in examples
        for name in (example.label if kind == "several" else (example.label,))
    }
    if not names:
        raise SourceError("No training example has a label.")
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # 1 and 01 are two
    return tuple(sorted(names))


def _check_dev(data: ClassificationConfig, labels: tuple[str, ...], dev: list[Example]) -> None:
    """Raises SourceError where the held-out examples have classes that are never learned; warns
    where they have one alone."""
    if data.kind == "number":
        return
    found = _labels_of(data.kind, dev)
    if unknown := [name for name in found if name not in labels]:
        raise SourceError(
            f"The held-out examples have labels that the training examples lack: "
            f"{', '.join(map(repr, unknown))}; there is {', '.join(map(repr, labels))}."
        )
    if len(found) == 1 and data.kind == "classes":
        warn(f"All held-out examples are of the class {found[0]!r}: figures tell little.")
