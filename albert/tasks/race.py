"""RACE (Lai et al. 2017, arXiv 1704.04683) and any other multiple choice.

Source: `race_utils.py` of google-research/albert. It reads `SPLIT/{middle,high}/all.txt` with a
passage a line, which the data set does not have; the folders that it does have are read as well.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from albert.data.labelled.choices import choice_pairs, choice_sequences, keep_the_question
from albert.data.labelled.kept import kept_sequences
from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.sequences import Sequences
from albert.data.labelled.tables import json_record, records
from albert.data.sources.base import SourceError
from albert.data.tokenizer import Tokenizer
from albert.models.encoder import Albert
from albert.models.kinds import label_probabilities
from albert.runtime.paths import place
from albert.tasks.distillation import Seen
from albert.tasks.finetuning import FineTuningConfig
from albert.tasks.texts import HEAD, LabelledData, Split, TextTask
from albert.tasks.vocabulary import vocabulary_of

LEVELS = ("middle", "high")
_ABSENT = -1e30  # logit of an option that a question does not have


class Question(NamedTuple):
    """A question on a text, with the options to choose from."""

    id: str
    context: str
    question: str
    options: tuple[str, ...]
    label: int | None  # the number of the right one, from 0; None: not known
    level: str = ""  # of RACE: middle or high


def read(path: str | Path, split: str | None = None) -> list[Question]:
    """The questions of one split, of RACE first those of "middle", then of "high".

    Args:
      path: a folder of RACE, as distributed (SPLIT/middle/1.txt) or with a passage a line
        (SPLIT/middle/all.txt, SPLIT.jsonl); or JSON lines, of passages (article, questions,
        options, answers) or of questions (context, question, options, answer: a number from 0, a
        letter from A, or the option itself).
      split: of a folder, such as "dev"; None: `path` is the split's own folder or file.

    Raises SourceError for what is not there or wrong; names file, line and field.
    """
    path = place(str(path))
    if split is not None:
        own = path / split
        path = own if own.is_dir() else path / f"{split}.jsonl"
    if path.is_dir():
        found = list(_read_folder(path))
    elif path.is_file():
        found = [
            question for where, record in records(str(path)) for question in _of(record, where)
        ]
    else:
        raise SourceError(f"There is no {path}")
    if not found:
        raise SourceError(f"{path} holds no questions")
    order = {level: number for number, level in enumerate(LEVELS)}
    return sorted(found, key=lambda question: order.get(question.level, 0))


def _read_folder(path: Path) -> Iterator[Question]:
    if not any((path / level).is_dir() for level in LEVELS):
        raise SourceError(f"{path} has no folder middle or high, as RACE has")
    for level in LEVELS:
        files = (path / level).glob("*.txt")
        for file in sorted(files, key=lambda f: (len(f.stem), f.stem)):
            try:
                text = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(f"{file}: not UTF-8 ({error.reason})") from error
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield from _of({**json_record(line, where), "level": level}, where)


def _of(record: dict, where: str) -> Iterator[Question]:
    """The questions of a passage of RACE, or the one of a record of a user's own."""
    level = str(record.get("level", ""))
    for name in LEVELS:
        if not level and f"{name}/" in str(record.get("file", "")):
            level = name
    key = str(record.get("id", record.get("file", where.rpartition(" ")[2])))
    if "article" in record:
        for field in ("questions", "options", "answers"):
            if not isinstance(record.get(field), list):
                raise SourceError(f"{where}: there is no list {field!r}")
        counts = {len(record[field]) for field in ("questions", "options", "answers")}
        if len(counts) > 1:
            raise SourceError(f"{where}: questions, options and answers are of different number")
        for number, (question, options, answer) in enumerate(
            zip(record["questions"], record["options"], record["answers"], strict=True)
        ):
            at = f"{where}, question {number}"
            values = {"context": record["article"], "question": question, "options": options}
            yield _question(
                f"{key}-{number}", {**values, "answer": answer}, level, at, letters=True
            )
    else:
        yield _question(key, record, level, where)


def _question(key: str, values: dict, level: str, where: str, letters: bool = False) -> Question:
    for field in ("context", "question"):
        if not isinstance(values.get(field), str):
            raise SourceError(f"{where}: there is no text {field!r}")
    options = values.get("options")
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise SourceError(f"{where}: options is {options!r}; it must be a list of texts")
    if len(options) < 2:
        raise SourceError(f"{where}: there are {len(options)} options; a choice needs two")
    if not (values["question"] + "".join(options)).strip():
        raise SourceError(f"{where}: the question and its options are empty")
    answer = values.get("answer")
    label = None
    if isinstance(answer, int) and not isinstance(answer, bool):
        label = answer
    elif answer in options and not letters:
        label = options.index(answer)
    elif isinstance(answer, str) and len(answer) == 1 and "A" <= answer <= "Z":
        label = ord(answer) - ord("A")
    elif answer is not None:
        raise SourceError(
            f"{where}: answer is {answer!r}; it must be a number from 0, a letter from A, or one "
            "of the options"
        )
    if label is not None and not 0 <= label < len(options):
        raise SourceError(f"{where}: answer is {answer!r} and there are {len(options)} options")
    return Question(key, values["context"], values["question"], tuple(options), label, level)


def features(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    seq_length: int = 512,
    max_question: int = 128,
) -> dict[str, np.ndarray]:
    """The questions as arrays, C the most options that one of them has.

    Returns:
      int32 [n, C, L] `input_ids`, `attention_mask` and `token_type_ids`, and int32 [n] `labels`, -1
      where the answer is not known.
    """
    questions = [Question(*question) for question in questions]
    count = max(len(question.options) for question in questions)
    rows = choice_sequences([q[1:4] for q in questions], tokenizer, seq_length, max_question)
    arrays = rows.padded(range(len(rows)), seq_length)
    shape = len(questions), count, seq_length
    labels = [-1 if question.label is None else question.label for question in questions]
    return {name: value.reshape(shape) for name, value in arrays.items()} | {
        "labels": np.asarray(labels, np.int32)
    }


def accuracies(questions: Sequence[Question], predictions: Sequence[int]) -> dict[str, float]:
    """Share of right answers over all questions, and of each level that there is."""
    right = np.asarray([q.label for q in questions]) == np.asarray(predictions)
    levels = np.asarray([q.level for q in questions])
    found = {"accuracy": float(right.mean())}
    for level in LEVELS:
        if (levels == level).any():
            found[f"accuracy_{level}"] = float(right[levels == level].mean())
    return found


@dataclasses.dataclass(frozen=True)
class ChoiceConfig(FineTuningConfig):
    """The section `data` of a config. A source is a folder of RACE's split, or JSON lines."""

    train: str
    dev: str
    test: str  # judged as well when the run is evaluated; empty: none
    predict: tuple[str, ...]  # JSON lines to be answered when the run is evaluated
    options: int  # of a question, at most
    max_question: int  # pieces of a question with an option: the last ones

    def problems(self) -> list[str]:
        found = super().problems()
        if self.options < 2:
            found.append(f"options is {self.options}; a choice needs two")
        if not 1 <= self.max_question <= self.seq_length - 3:
            found.append(
                f"max_question is {self.max_question}; it must be from 1 to seq_length - 3, "
                f"{self.seq_length - 3}"
            )
        return found

    def text_problems(self) -> list[str]:
        found = []
        for field in ("train", "dev", "test", "predict"):
            value = getattr(self, field)
            named = value if field == "predict" else ((value,) if value else ())
            if not named and field in ("train", "dev"):
                found.append(f"{field} is empty; name a folder of RACE, such as RACE/{field}")
            found += [
                f"{field}: there is no {source}" for source in named if not place(source).exists()
            ]
        return found


class MultipleChoice(TextTask):
    """One logit for each option, softmax over the options of a question.

    A row is a question with all its options, [C, L].
    """

    Section = ChoiceConfig

    @classmethod
    def exits(cls, config):
        del config
        return "none"  # what a question's options are worth is known only side by side

    @classmethod
    def known_labels(cls, config):
        del config
        return ()

    @classmethod
    def read(cls, config, training, saved=None):
        del saved
        data = config.data
        evaluated = [Split("dev", _labelled(data.dev, data.options), ("accuracy",))]
        if data.test and not training:
            evaluated.append(Split("test", _labelled(data.test, data.options), ("accuracy",)))
        train = _labelled(data.train, data.options) if training else []
        return LabelledData("choice", (), train, evaluated)

    @classmethod
    def read_unlabelled(cls, config):
        return {
            f"{number}_{Path(source).stem}.tsv": _checked(read(source), source, config.data.options)
            for number, source in enumerate(config.data.predict)
        }

    def prediction_lines(self, examples, outputs) -> Iterable[str]:
        yield "id\tprediction\tprobability"
        probabilities = label_probabilities("choice", outputs)
        for question, shares in zip(examples, probabilities, strict=True):
            chosen = int(np.argmax(shares))
            yield f"{question.id}\t{chosen}\t{shares[chosen]:.6f}"

    @classmethod
    def _model(cls, config, labels, kind):
        del labels, kind
        fields = {"labels": 1, "dropout": config.data.dropout, "kind": "choice"}
        return Albert(config.model, (HEAD,), {HEAD: fields})

    @classmethod
    def sequences_per_row(cls, config):
        return config.data.options

    def _sequences(self, examples):
        data, tokenizer = self._config.data, vocabulary_of(self.tokenizer)
        return kept_sequences(
            choice_pairs([q[1:4] for q in examples], tokenizer, data.options),
            tokenizer,
            data.seq_length,
            place(data.folder),
            data.workers,
            keep_the_question(data.max_question),
            f"context, last {data.max_question}",
        )

    def _rows(
        self, sequences: Sequences, examples: Sequence, fields: dict, seed: int | None = None
    ) -> LabelledRows:
        counts = np.asarray([len(question.options) for question in examples], np.int32)
        data = self._config.data
        return LabelledRows(
            sequences, {**fields, "options": counts}, data.seq_length, seed, data.options
        )

    def _targets(self, examples):
        return np.asarray([question.label for question in examples], np.int32)

    def _seen(self, params, rows, dropout_keys=None, model=None):
        """Logits are float32 [B, C], hidden states [B * C, L, H]."""
        count, options, _ = rows["input_ids"].shape
        flat, keys = self._flat(rows, dropout_keys)
        logits, hidden = super()._seen(params, flat, keys, model)
        if logits is None:
            return Seen(None, hidden)
        there = jnp.arange(options) < jnp.maximum(rows["options"], 1)[:, None]
        return Seen(jnp.where(there, logits.reshape(count, options), _ABSENT), hidden)

    def _encoded_rows(self, rows):
        return self._flat(rows)[0]

    def _figures(self, targets, metrics, examples, logits):
        found = super()._figures(targets, metrics, examples, logits)
        return found | accuracies(examples, np.argmax(logits, -1))


def _labelled(source: str, most: int) -> list[Question]:
    questions = _checked(read(source), source, most)
    for question in questions:
        if question.label is None:
            raise SourceError(f"{source}, question {question.id}: there is no answer")
    return questions


def _checked(questions: list[Question], source: str, most: int) -> list[Question]:
    for question in questions:
        if len(question.options) > most:
            raise SourceError(
                f"{source}, question {question.id}: {len(question.options)} options; set "
                f"--config.data.options={len(question.options)}, which is {most}"
            )
    return questions
