"""SQuAD 1.1 and 2.0: heads, answers, thresholds, ensembles.

Source: `squad_utils.py` of google-research/albert. What it does otherwise, and is not copied: it
answers only below a threshold that was chosen with "up to it", compares logits with a threshold
that is for probabilities, and starts the search for a threshold at one that answers everything
where it is meant to answer nothing.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from albert.data.labelled.answers import (
    N_BEST,
    NO_ANSWER,
    answers_v1,
    answers_v2,
    grid,
    ranked,
    texts,
    with_threshold,
)
from albert.data.labelled.kept import kept_windows
from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.squad import Options, Question, Windows, features, read
from albert.data.sources.base import SourceError
from albert.models.encoder import Albert
from albert.models.heads import outside_of_paragraph
from albert.runtime.paths import place
from albert.tasks.base import Best, Evaluation, Predictions
from albert.tasks.finetuning import (
    FineTuning,
    FineTuningConfig,
    digest_of,
    whole_within,
)
from albert.tasks.pictures import Draw, curves, histogram, reliability
from albert.tasks.squad_scores import exact, f1, normalised, score, threshold_curve
from albert.tasks.vocabulary import tokenizer_of, vocabulary_of

__all__ = [
    "Question",
    "Squad",
    "answers_v1",
    "answers_v2",
    "exact",
    "f1",
    "features",
    "normalised",
    "read",
    "score",
    "texts",
    "with_threshold",
]


@dataclasses.dataclass(frozen=True)
class SquadConfig(FineTuningConfig):
    """The section `data` of a config."""

    train: str  # official JSON files
    dev: str
    version: str  # 1.1: every question has an answer; 2.0: or none
    doc_stride: int  # tokens from one window of a paragraph to the next
    max_question: int  # pieces of a question: the first ones
    max_answer: int  # pieces of an answer

    def problems(self) -> list[str]:
        found = super().problems()
        if self.version not in ("1.1", "2.0"):
            found.append(f"version is {self.version!r}; it must be 1.1 or 2.0")
        for name in ("doc_stride", "max_question", "max_answer"):
            if getattr(self, name) < 1:
                found.append(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seq_length < N_BEST:
            found.append(
                f"seq_length is {self.seq_length}; it must be at least {N_BEST}, the positions of "
                "a window that are looked at"
            )
        if self.version == "1.1" and self.dropout:
            found.append(
                f"dropout is {self.dropout}; the head of version 1.1 has none: set it to 0.0"
            )
        if self.seq_length < self.max_question + 4:
            found.append(
                f"seq_length is {self.seq_length} and max_question {self.max_question}: there is "
                "no room for a paragraph"
            )
        return found

    def text_problems(self) -> list[str]:
        found = []
        for field in ("train", "dev"):
            path = getattr(self, field)
            if not path:
                found.append(f"{field} is empty; name SQuAD's {field}-v{self.version}.json")
            elif not place(str(path)).is_file():
                found.append(f"{field} {path} is not a file")
        return found


class Squad(FineTuning):
    """Spans of paragraphs: version 1.1 by two logits of every token, version 2.0 by an end that is
    given its start, and by a logit for no answer.

    Losses: of 1.1 the mean of both cross entropies over all positions of a row, padding too, so
    that rows are padded to data.seq_length; of 2.0 that, over what may be chosen, and half the
    binary cross entropy of answerability. A row is a window.
    """

    Section = SquadConfig
    deciding: ClassVar = {"data_options": "version, seq_length, doc_stride, max_question"}
    best = Best("dev", "f1", higher_is_better=True)

    def __init__(self, config, tokenizer=None, train=None, dev=None):
        """Without questions nothing can be trained on or evaluated: what is left are the pure
        functions of a step."""
        self._config, self.tokenizer = config, tokenizer
        self._train, self._dev = train, dev
        self._judged: Sequence[Question] = dev or ()
        self.model = self.make_model(config)
        self._has_none = config.data.version == "2.0"
        self.rows, self.evaluations, self.opening = None, [], []
        if train is not None:
            windows = self._windows(train, training=True)
            self.rows = self._rows_of(windows, training=True)
            inside = float(1 - windows.is_impossible.mean())
            self.opening = [
                f"{len(train):,} training questions in {len(windows):,} windows, "
                f"{100 * inside:.1f} % of which hold an answer.",
                *_moved(train),
            ]
        if dev is not None:
            windows = self._windows(dev, training=False)
            count, told = whole_within(windows.example, config.train.eval_rows, "questions")
            if told:
                self.opening += told
                self._judged = dev[:count]
                windows = self._windows(self._judged, training=False)
            self._dev_windows = windows
            rows = self._rows_of(windows, training=False)
            self.evaluations = [
                Evaluation(
                    "dev",
                    rows,
                    len(windows),
                    self._top,
                    lambda found: self.judged([found])[0],
                    _line_of,
                    _table,
                    gathers=True,
                    pictures=self._pictures,
                )
            ]
            self.predictions = [
                Predictions(
                    rows, len(windows), self._top, lambda found: self.files(*self.judged([found]))
                )
            ]

    # Asked before there is any data or device.

    @classmethod
    def unused(cls, config):
        del config
        return ("pooler",)

    @classmethod
    def evaluation_problems(cls, config, model):
        head = _head(config.data.version)
        found = []
        if head not in model.heads or f"{head}_head" in model.missing:
            found.append(
                f"the model has no head {head}: it was not fine-tuned on SQuAD "
                f"{config.data.version}"
            )
        if model.tokenizer is None:
            found.append(
                "there is no vocabulary beside the model; name it with --config.data.tokenizer"
            )
        return found

    @classmethod
    def make_model(cls, config, saved=None):
        del saved
        head = _head(config.data.version)
        fields = {"dropout": config.data.dropout} if head == "conditional_span" else {}
        return Albert(config.model, (head,), {head: fields})

    # Makers.

    @classmethod
    def prepare(cls, config, workdir: Path, saved, start):
        tokenizer = tokenizer_of(config, workdir, saved, start)
        train = _read(config.data.train, config.data.version)
        dev = _read(config.data.dev, config.data.version, judged=True)
        return cls(config, tokenizer, train, dev)._enough()

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        del saved, model
        dev = _read(config.data.dev, config.data.version, judged=True)
        return cls(config, tokenizer, None, dev)

    def _windows(self, questions: Sequence[Question], training: bool) -> Windows:
        data = self._config.data
        options = Options(data.seq_length, data.doc_stride, data.max_question, training)
        return kept_windows(
            questions, vocabulary_of(self.tokenizer), options, place(data.folder), data.workers
        )

    def _rows_of(self, windows: Windows, training: bool) -> LabelledRows:
        fields = {}
        if training:
            names = "start_position", "end_position", "is_impossible"
            fields = {name: getattr(windows, name) for name in names}
            fields["weights"] = np.ones(len(windows), np.float32)
        return LabelledRows(
            windows.sequences,
            fields,
            self._config.data.seq_length,
            self._config.seed if training else None,
            is_fixed=not self._has_none,
        )

    # Pure functions of one step.

    def denominators(self, batch):
        return {"rows": batch["weights"].sum()}

    def sums(self, params, rows, dropout_keys):
        found = self._outputs(params, rows, dropout_keys, rows["start_position"])
        terms: Any = 0.0
        for name in ("start", "end"):
            at = rows[f"{name}_position"][:, None]
            terms -= 0.5 * jnp.take_along_axis(found[name], at, axis=1)[:, 0]
        sums = {
            "real_tokens": rows["attention_mask"].sum(),
            "padded_tokens": jnp.asarray(rows["attention_mask"].size, jnp.int32),
        }
        if self._has_none:
            logit, none = found["none"], rows["is_impossible"]
            terms += 0.5 * (jax.nn.softplus(logit) - logit * none)
            right = (logit > 0) == (none > 0)
            sums["answerable_hits"] = (right * rows["weights"]).sum()
        return sums | {"loss": (terms * rows["weights"]).sum()}

    def loss(self, sums, denominators):
        return sums["loss"] / denominators["rows"]

    def metrics(self, sums, denominators):
        found = {name: sums[name] for name in self.amounts}
        if self._has_none:
            found["answerability"] = sums["answerable_hits"] / denominators["rows"]
        return found

    def line(self, metrics):
        known = "answerability" in metrics
        return f"answerability {100 * metrics['answerability']:.1f} %" if known else ""

    def _outputs(self, params, rows, dropout_keys=None, starts=None) -> dict[str, jax.Array]:
        """Log-probabilities of starts and ends, [B, L]; of version 2.0 also what `ConditionalSpan`
        gives."""
        inputs: dict[str, Any] = {}
        if self._has_none:
            mask = outside_of_paragraph(rows["attention_mask"], rows["token_type_ids"])
            inputs = {"mask": mask, "starts": starts}
        found = self._head_output(params, rows, dropout_keys, inputs)
        if self._has_none:
            return found
        logits = {"start": found[..., 0], "end": found[..., 1]}
        if starts is None:
            return logits
        return {name: jax.nn.log_softmax(value) for name, value in logits.items()}

    def _top(self, params, rows) -> dict[str, jax.Array]:
        """The likeliest positions of every row, of one shape whatever the row's length."""
        found = self._outputs(params, rows)
        if self._has_none:
            return found
        top = {}
        for name, logits in found.items():
            top[name], top[f"{name}_index"] = jax.lax.top_k(logits, N_BEST)
        return top

    @cached_property
    def _fields(self) -> dict[str, np.ndarray]:
        """The fields of the dev windows, as `features` has them."""
        return self._dev_windows.padded(self._config.data.seq_length)

    def judged(
        self, outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> tuple[dict[str, float], dict[str, list[dict]], dict[str, float]]:
        """(figures, answers by question, null odds) on the dev questions.

        Args:
          outputs: what `predictions` gather of every window, of a checkpoint or of each of several,
            which answer together: by their means, as in `answers_v1` and `answers_v2`.
        """
        questions, longest = self._judged, self._config.data.max_answer
        assert questions is not None
        if not self._has_none:
            names = "start_index", "end_index", "start", "end"
            pairs = [
                [grid(*row) for row in zip(*(found[name] for name in names), strict=True)]
                for found in outputs
            ]
            answers = ranked(questions, self._fields, pairs, N_BEST, longest, NO_ANSWER, 0.0)
            scores = score(questions, texts(answers))
            figures = {name: value / 100 for name, value in scores.items()}
            return figures, answers, {}
        beams = [
            {
                "start_top_index": found["start_index"],
                "start_top_log_probs": found["start"],
                "end_top_index": found["end_index"],
                "end_top_log_probs": found["end"],
                "cls_logits": found["none"],
            }
            for found in outputs
        ]
        answers, odds = answers_v2(questions, self._fields, beams, max_answer=longest)
        threshold = score(questions, texts(answers), odds)["best_f1_thresh"]
        if _answers_nothing(questions, texts(answers), odds):
            threshold = min(odds.values()) - 1.0
        elif higher := [value for value in odds.values() if value > threshold]:
            # Half way to the next question, so that rounding decides none.
            threshold = (threshold + min(higher)) / 2
        scores = score(questions, texts(answers), odds, threshold)
        names = "exact", "f1", "HasAns_f1", "NoAns_f1"
        figures = {name: scores[name] / 100 for name in names if name in scores}
        return figures | {"threshold": threshold}, answers, odds

    def _pictures(self, found) -> dict[str, Draw]:
        """Of 1.1 how far the probability of an answer is to be trusted; of 2.0 what every threshold
        gives, and the null odds of questions with and without an answer."""
        questions = self._judged
        assert questions is not None
        figures, answers, odds = self.judged([found])
        predictions = texts(answers)
        if not self._has_none:
            confidence = [answers[question.id][0]["probability"] for question in questions]
            hits = [
                max(exact(gold, predictions[question.id]) for gold, _ in question.answers)
                for question in questions
            ]
            return {"reliability": reliability(confidence, hits)}
        curve = threshold_curve(questions, predictions, odds)
        lines = {name: curve[name] for name in ("exact", "f1")}
        of, mark = "threshold of the null odds", figures["threshold"]
        groups = {
            name: [odds[q.id] for q in questions if bool(q.answers) is wanted]
            for name, wanted in (("with an answer", True), ("without", False))
        }
        return {
            "thresholds": curves(curve["threshold"], lines, of, mark),
            "null_odds": histogram(groups, "null odds", "null odds", mark),
        }

    def files(self, figures, answers, odds) -> dict[str, list[str]]:
        """Files, by name, of what `judged` gives: their lines."""
        predictions = texts(answers)
        if self._has_none:
            predictions = with_threshold(predictions, odds, figures["threshold"])
        files = {"predictions.json": predictions, "nbest.json": answers}
        if odds:
            files["null_odds.json"] = odds
        return {
            name: json.dumps(content, indent=1, ensure_ascii=False).split("\n")
            for name, content in files.items()
        }

    # What a run is.

    def description(self):
        return {
            "examples": digest_of(self._train),
            "held_out": digest_of(self._dev),
            "data_options": [
                getattr(self._config.data, name)
                for name in ("version", "seq_length", "doc_stride", "max_question")
            ],
        }


def _head(version: str) -> str:
    return "conditional_span" if version == "2.0" else "span"


def _read(path: str, version: str, judged: bool = False) -> list[Question]:
    """`judged`: whether answers are compared with those of the file."""
    questions = read(path)
    has_none = any(question.is_impossible is not None for question in questions)
    if has_none != (version == "2.0"):
        told = "2.0, whose questions may have no answer" if has_none else "1.1"
        raise SourceError(f"{path} is of version {told}; data.version is {version}")
    if judged and version == "1.1":
        for question in questions:
            if not question.answers:
                raise SourceError(
                    f"{path}, question {question.id}: there is no answer to judge by, and in "
                    "version 1.1 every question has one"
                )
    return questions


def _moved(questions: Sequence[Question]) -> list[str]:
    """A line on answers that do not stand where their file says."""
    count = sum(
        question.context[start : start + len(text)] != text
        for question in questions
        for text, start in question.answers[:1]
    )
    if not count:
        return []
    return [
        f"{count:,} of their first answers do not stand at their answer_start; what stands there "
        "is learned."
    ]


def _answers_nothing(questions, predictions, odds) -> bool:
    """Whether no threshold beats answering no question at all; the official script calls that a
    threshold of 0, at which negative odds would answer."""
    nothing = score(questions, dict.fromkeys(predictions, ""))["f1"]
    return nothing >= score(questions, predictions, odds)["best_f1"]


def _line_of(figures: dict[str, float]) -> str:
    first = "exact" if "exact" in figures else "exact_match"
    return f"dev: {first} {100 * figures[first]:.1f} %, f1 {100 * figures['f1']:.1f} %"


def _table(of: str, figures: dict[str, float]) -> str:
    lines = [f"dev {of}"]
    for name, value in figures.items():
        if name == "threshold":
            note = "no answer where the null odds are over it; best for F1 here"
            lines.append(f"  {name:<20} {value:>9.3f}   {note}")
        else:
            lines.append(f"  {name.replace('_', ' '):<20} {100 * value:>7.1f} %")
    return "\n".join(lines)
