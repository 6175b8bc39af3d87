"""GLUE: nine tasks on one text or two, and a diagnostic set (Wang et al. 2018, arXiv 1804.07461).

Sources: the readers of `classifier_utils.py` in google-research/albert for the files' layout, and
GLUE's own scripts for the metrics. Quotes in the files are plain characters. What that program
does otherwise: it judges MRPC, QQP and STS-B by one metric alone, trains mismatched MNLI as a task
of its own, and cannot reach the diagnostic set.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from albert.data.labelled.sequences import make_sequences
from albert.data.labelled.tables import tfds_records
from albert.data.sources.base import SourceError
from albert.data.tokenizer import Tokenizer
from albert.runtime.console import warn
from albert.runtime.paths import place
from albert.tasks.metrics import METRICS
from albert.tasks.texts import Example, LabelledData, Split, TextConfig, TextTask

_BINARY = "0", "1"
_ENTAILMENT = "entailment", "not_entailment"
_NLI = "contradiction", "entailment", "neutral"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a task's columns are, counted from 0; -1 is the last."""

    text: tuple[int, ...]
    label: int
    labels: tuple[str, ...]  # in the order of their ids; none: a number
    metrics: tuple[str, ...]  # the first decides which checkpoint is best
    test_text: tuple[int, ...]
    header: bool = True  # of train and dev; test always has one
    id: int | None = 0  # column; None: the split and the line's number
    tfds: tuple[str, ...] = ("sentence1", "sentence2")  # names of the texts there


TASKS: dict[str, Layout] = {
    "cola": Layout(
        (3,), 1, _BINARY, ("matthews",), (1,), header=False, id=None, tfds=("sentence",)
    ),
    "sst-2": Layout((0,), 1, _BINARY, ("accuracy",), (1,), id=None, tfds=("sentence",)),
    "mrpc": Layout((3, 4), 0, _BINARY, ("accuracy", "f1"), (3, 4), id=None),
    "qqp": Layout((3, 4), 5, _BINARY, ("accuracy", "f1"), (1, 2), tfds=("question1", "question2")),
    "sts-b": Layout((7, 8), -1, (), ("pearson", "spearman"), (7, 8)),
    "mnli": Layout((8, 9), -1, _NLI, ("accuracy",), (8, 9), tfds=("premise", "hypothesis")),
    "qnli": Layout((1, 2), -1, _ENTAILMENT, ("accuracy",), (1, 2), tfds=("question", "sentence")),
    "rte": Layout((1, 2), -1, _ENTAILMENT, ("accuracy",), (1, 2)),
    "wnli": Layout((1, 2), -1, _BINARY, ("accuracy",), (1, 2)),
    "ax": Layout((1, 2), -1, _NLI, ("matthews",), (1, 2), tfds=("premise", "hypothesis")),
}
# How TFDS calls them and its splits.
_TFDS_NAMES = {"sst-2": "sst2", "sts-b": "stsb"}
# Names of the files that GLUE's server takes.
SUBMITTED = {
    "cola/test": "CoLA",
    "sst-2/test": "SST-2",
    "mrpc/test": "MRPC",
    "qqp/test": "QQP",
    "sts-b/test": "STS-B",
    "mnli/test": "MNLI-m",
    "mnli/test_mismatched": "MNLI-mm",
    "qnli/test": "QNLI",
    "rte/test": "RTE",
    "wnli/test": "WNLI",
    "ax/test": "AX",
}


def find(task: str) -> str:
    """The key of `TASKS` that a name means, however it is written: "SST-2", "sst2", "stsb".

    Raises ValueError for a name that is none.
    """

    def plain(name: str) -> str:
        return re.sub(r"[-_ ]", "", name.lower())

    for name in TASKS:
        if plain(name) == plain(task):
            return name
    raise ValueError(f"{task!r} is no task of GLUE; there is {', '.join(TASKS)}")


def read(path: str | Path, task: str, split: str) -> list[Example]:
    """The examples of one split.

    Args:
      path: the official folder of the task, such as glue_data/MRPC, or "tfds:glue/mrpc".
      task: a key of `TASKS`; "mismnli" is MNLI with its mismatched files.
      split: "train", "dev" or "test"; of MNLI also "dev_mismatched" and "test_mismatched".

    Returns:
      (id, text, second text or None, label or None): labels are names, of STS-B numbers; those of
      test sets are not known. Texts are as they stand in the file.

    Raises:
      SourceError: a file is not there or has another layout; names file, line and column.
      ValueError: there is no such task or split.
    """
    if task.lower() in ("mismnli", "mnli-mm"):
        task, split = "mnli", split if split == "train" else f"{split}_mismatched"
    task = find(task)
    known = ["test"] if task == "ax" else ["train", "dev", "test"]
    if task == "mnli":
        split = split.removesuffix("_matched")
        known += ["dev_mismatched", "test_mismatched"]
    if split not in known:
        raise ValueError(f"{task} has no split {split!r}; there is {', '.join(known)}")
    if str(path).startswith("tfds:"):
        return _read_tfds(str(path).removeprefix("tfds:"), task, split)
    return _read_file(place(str(path)) / _file_name(task, split), task, split)


def _file_name(task: str, split: str) -> str:
    if task == "ax":
        return "diagnostic.tsv"
    if task == "mnli" and split in ("dev", "test"):
        return f"{split}_matched.tsv"
    return f"{split}.tsv"


def _read_file(path: Path, task: str, split: str) -> list[Example]:
    layout, is_test = TASKS[task], split.startswith("test")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}. The folder of {task} has train.tsv, dev.tsv "
            "and test.tsv as GLUE's download has them."
        ) from error
    except UnicodeDecodeError as error:
        where = error.object.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {where}: not UTF-8 ({error.reason})") from error
    lines = text.split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    columns = layout.test_text if is_test else layout.text
    label_column = None if is_test else layout.label
    needed = max(*columns, label_column or 0, 0 if is_test else layout.id or 0) + 1
    examples: list[Example] = []
    left_out: list[int] = []
    has_header = is_test or layout.header
    width = len(lines[0].split("\t")) if lines else 0
    for number, line in enumerate(lines):
        if number == 0 and has_header:
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) < needed or (label_column == -1 and len(fields) < width):
            if task == "qqp":
                left_out.append(number + 1)
                continue
            raise SourceError(
                f"{path}, line {number + 1}: {len(fields)} columns, and {task} needs "
                f"{max(needed, width)}. Columns are separated by tabs."
            )
        if is_test:
            key = fields[0]
        else:
            key = f"{split}-{number}" if layout.id is None else fields[layout.id]
        label = None
        if label_column is not None:
            label = _label(fields[label_column], layout, f"{path}, line {number + 1}")
        texts = [fields[column] for column in columns]
        examples.append(Example(key, texts[0], texts[1] if len(texts) > 1 else None, label))
    if left_out:
        shown = ", ".join(map(str, left_out[:5]))
        warn(
            f"{path}: {len(left_out)} of {len(lines) - has_header} rows have too few columns and "
            f"are left out, as by every reader of QQP: lines {shown}"
            f"{' and others' if len(left_out) > 5 else ''}."
        )
    if not examples:
        raise SourceError(f"{path} holds no examples")
    return examples


def _label(text: str, layout: Layout, where: str) -> str | float:
    if layout.labels:
        if text not in layout.labels:
            raise SourceError(
                f"{where}, column {layout.label}: the label is {text!r}; it must be one of "
                f"{', '.join(layout.labels)}"
            )
        return text
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise SourceError(f"{where}, column {layout.label}: the label is {text!r}, not a number")
    return value


def _read_tfds(name: str, task: str, split: str) -> list[Example]:
    """Examples of TFDS, whose class numbers follow an order of their own: labels go by name."""
    layout = TASKS[task]
    expected = f"glue/{_TFDS_NAMES.get(task, task)}"
    if name.split(":")[0] != expected:
        raise SourceError(f"data.path is tfds:{name}, and {task} is tfds:{expected} there")
    there = split.replace("dev", "validation")
    if task == "mnli" and there in ("validation", "test"):
        there += "_matched"
    examples = []
    for number, record in enumerate(tfds_records(name, there)):
        texts = [record[column] for column in layout.tfds]
        label = record["label"]
        if split.startswith("test"):
            label = None
        elif layout.labels:
            label = _TFDS_LABELS.get(task, {}).get(label, label)
            label = _label(str(label), layout, f"tfds:{name}, {there}, record {number}")
        key = str(record.get("idx", number))
        examples.append(Example(key, texts[0], texts[1] if len(texts) > 1 else None, label))
    return examples


# Names of classes there -> in the official files, where they differ.
_TFDS_LABELS = {
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "sst-2": {"negative": "0", "positive": "1"},
    "mrpc": {"not_equivalent": "0", "equivalent": "1"},
    "qqp": {"not_duplicate": "0", "duplicate": "1"},
    "wnli": {"not_entailment": "0", "entailment": "1"},
}


def features(
    examples: Sequence[Example], task: str, tokenizer: Tokenizer, seq_length: int
) -> dict[str, np.ndarray]:
    """The examples as arrays.

    Returns:
      int32 [n, L] `input_ids`, `attention_mask` and `token_type_ids`, and [n] `labels`: int32 ids,
      -1 where the label is not known; of STS-B float32, nan where it is not known.
    """
    layout = TASKS[find("mnli" if task.lower() in ("mismnli", "mnli-mm") else task)]
    pairs = [(example[1], example[2]) for example in examples]
    rows = make_sequences(pairs, tokenizer, seq_length)
    return rows.padded(range(len(rows)), seq_length) | {
        "labels": _targets([example[3] for example in examples], layout)
    }


def _targets(labels: Sequence, layout: Layout) -> np.ndarray:
    if not layout.labels:
        return np.asarray([np.nan if each is None else each for each in labels], np.float32)
    ids = {name: number for number, name in enumerate(layout.labels)}
    return np.asarray([-1 if each is None else ids[each] for each in labels], np.int32)


def metrics(task: str, labels, predictions) -> dict[str, float]:
    """The official metrics of a task by name: of class ids, or of numbers for STS-B."""
    return {name: METRICS[name](labels, predictions) for name in TASKS[find(task)].metrics}


def score(figures: Mapping[str, Mapping[str, float]]) -> float:
    """GLUE's score: the mean over tasks of each one's mean metric; AX does not count.

    Args:
      figures: task -> its metrics. Of MNLI "mnli" has "accuracy", and "accuracy_mismatched" where
        it is known.
    """
    means = [np.mean(list(values.values())) for task, values in figures.items() if task != "ax"]
    return float(np.mean(means))


@dataclasses.dataclass(frozen=True)
class GlueConfig(TextConfig):
    """The section `data` of a config."""

    name: str  # of the task: a key of TASKS
    path: str  # its official folder, or tfds:glue/NAME
    diagnostic: str  # folder of the diagnostic set, which an MNLI model predicts; empty: none

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            name = find(self.name)
        except ValueError as error:
            return [*found, f"name: {error}"]
        if name == "ax":
            found.append("name is ax, which has no training set; it is predicted by an MNLI model")
        if self.diagnostic and name != "mnli":
            found.append("diagnostic is set; the diagnostic set is for name mnli")
        return found

    def text_problems(self) -> list[str]:
        if not self.path:
            return ["path is empty; name the folder of the task, such as glue_data/MRPC"]
        if not self.path.startswith("tfds:") and not place(self.path).is_dir():
            return [f"path {self.path} is not a folder"]
        return []


class Glue(TextTask):
    """A task of GLUE with the paper's head, loss and official metrics."""

    Section = GlueConfig

    @classmethod
    def known_labels(cls, config):
        return TASKS[find(config.data.name)].labels

    @classmethod
    def read(cls, config, training, saved=None):
        del saved
        data = config.data
        name, layout = find(data.name), TASKS[find(data.name)]
        path = data.path if data.path.startswith("tfds:") else str(place(data.path))
        splits = ["dev", "dev_mismatched"] if name == "mnli" else ["dev"]
        return LabelledData(
            kind="classes" if layout.labels else "number",
            labels=layout.labels,
            train=read(path, name, "train") if training else [],
            evaluated=[Split(each, read(path, name, each), layout.metrics) for each in splits],
        )

    @classmethod
    def read_unlabelled(cls, config):
        data = config.data
        name, found = find(data.name), {}
        path = data.path if data.path.startswith("tfds:") else str(place(data.path))
        for split in ["test", "test_mismatched"] if name == "mnli" else ["test"]:
            if path.startswith("tfds:") or (place(path) / _file_name(name, split)).is_file():
                found[f"{SUBMITTED[f'{name}/{split}']}.tsv"] = read(path, name, split)
            else:
                warn(f"{path} has no {_file_name(name, split)}: nothing is predicted for it")
        if data.diagnostic:
            found["AX.tsv"] = read(place(data.diagnostic), "ax", "test")
        return found

    def prediction_lines(self, examples, outputs):
        """As GLUE's server takes them: numbers for STS-B, within 0 and 5, names for the others."""
        yield "index\tprediction"
        for example, output in zip(examples, outputs, strict=True):
            if self.labels:
                yield f"{example.id}\t{self.labels[int(np.argmax(output))]}"
            else:
                yield f"{example.id}\t{float(np.clip(output[0], 0, 5)):.3f}"
