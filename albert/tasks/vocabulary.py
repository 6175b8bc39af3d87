"""What tasks on text ask of the vocabulary that a model brings with it."""

from pathlib import Path

from albert.data.pretraining.prepare import open_tokenizer
from albert.data.tokenizer import Tokenizer, VocabularyError
from albert.interop.weights import Weights
from albert.interop.workdir import VOCABULARY
from albert.runtime.paths import place


def vocabulary_problems(config, start: Weights) -> list[str]:
    """Why the vocabulary of `config.init_from` does not fit the section `data`, a sentence each."""
    path, data = config.init_from, config.data
    if data.tokenizer:
        named = open_tokenizer(place(data.tokenizer), data, config.model.vocab_size, padded=True)
        if start.tokenizer and _pieces(named) != _pieces(start.tokenizer):
            return [
                f"data.tokenizer {named.path} is another vocabulary than that of init_from, "
                f"{start.tokenizer.path}: the word embeddings would be those of other pieces"
            ]
        return []
    if start.tokenizer is None:
        note = f" ({start.vocabulary_note})" if start.vocabulary_note else ""
        return [
            f"there is no vocabulary beside init_from, {path}{note}; name it with "
            "--config.data.tokenizer"
        ]
    problems = []
    for field in ("lower_case", "strip_accents"):
        theirs = getattr(start.tokenizer, field)
        if getattr(data, field) != theirs:
            problems.append(
                f"data.{field} is {not theirs} and that of init_from, {path}, {theirs}; set "
                f"--config.data.{field}={theirs}, or name data.tokenizer to have it your way"
            )
    return problems


def taught_vocabulary_problems(config, tokenizer: Tokenizer | None, teacher: Weights) -> list[str]:
    """Why a teacher does not know the pieces of a run's vocabulary, a sentence each."""
    path = config.distillation.teacher
    if teacher.tokenizer is None:
        note = f" ({teacher.vocabulary_note})" if teacher.vocabulary_note else ""
        return [
            f"there is no vocabulary beside distillation.teacher, {path}{note}, so that nobody "
            f"knows whether its pieces are the run's; put its {VOCABULARY} there"
        ]
    assert tokenizer is not None
    if _pieces(tokenizer) != _pieces(teacher.tokenizer):
        return [
            f"distillation.teacher, {path}, has another vocabulary, {teacher.tokenizer.path}, than "
            f"the run, {tokenizer.path}: its ids are those of other pieces. Train the student with "
            "the teacher's: name that file with --config.data.tokenizer"
        ]
    return [
        f"data.{field} is {getattr(tokenizer, field)} and that of distillation.teacher, {path}, "
        f"{getattr(teacher.tokenizer, field)}: it has learned other text; set --config.data."
        f"{field}={getattr(teacher.tokenizer, field)}"
        for field in ("lower_case", "strip_accents")
        if getattr(tokenizer, field) != getattr(teacher.tokenizer, field)
    ]


def tokenizer_of(config, workdir: Path, saved: dict | None, start: Weights | None) -> Tokenizer:
    """The vocabulary of a run: its own copy, the one that the config names, or that of the model
    to start from. Raises VocabularyError."""
    if saved is None and start and start.tokenizer and not config.data.tokenizer:
        return start.tokenizer
    path = workdir / VOCABULARY if saved is not None else place(config.data.tokenizer)
    return open_tokenizer(path, config.data, config.model.vocab_size, padded=True)


def vocabulary_of(tokenizer: Tokenizer | None) -> Tokenizer:
    """The vocabulary of a run that is evaluated; raises VocabularyError where its folder has none.
    Of other models `Task.evaluation_problems` tells it."""
    if tokenizer is None:
        raise VocabularyError(
            f"The run's folder has no {VOCABULARY}: copy it there, or evaluate with "
            "--model=WORKDIR/checkpoints/STEP and --config.data.tokenizer=FILE."
        )
    return tokenizer


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return tokenizer.pieces(range(tokenizer.vocab_size))
