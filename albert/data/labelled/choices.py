"""Questions with options as rows: [CLS] context [SEP] question with option [SEP], for each option.

Source: `race_utils.py` of google-research/albert. Never imports jax.
"""

from collections.abc import Sequence

from albert.data.labelled.sequences import Cut, Sequences, make_sequences
from albert.data.tokenizer import Tokenizer, normalise

_BLANK = "_"
MAX_QUESTION = 128  # pieces of a question with an option: the last ones are kept


def filled(question: str, option: str) -> str:
    """The question with the option in every blank; one without a blank, and the option behind."""
    if _BLANK in question:
        return question.replace(_BLANK, option)
    return f"{question} {option}"


def choice_pairs(
    questions: Sequence[tuple[str, str, Sequence[str]]], tokenizer: Tokenizer, count: int
) -> list[tuple[str, str | None]]:
    """(context, question with option) for each of `count` options of (context, question, options);
    those that a question lacks are empty."""

    def plain(text: str) -> str:
        return normalise(text, tokenizer.lower_case, tokenizer.strip_accents)

    pairs: list[tuple[str, str | None]] = []
    for context, question, options in questions:
        asked = [filled(plain(question), plain(option)) for option in options]
        pairs += [(context, text) for text in asked]
        pairs += [("", None)] * (count - len(asked))
    return pairs


def keep_the_question(max_question: int) -> Cut:
    """A cut: of the question with its option the last pieces stay, of the context the first."""

    def cut(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
        b = b[-min(max_question, room) :]
        return a[: room - len(b)], b

    return cut


def choice_sequences(
    questions: Sequence[tuple[str, str, Sequence[str]]],
    tokenizer: Tokenizer,
    seq_length: int,
    max_question: int = MAX_QUESTION,
) -> Sequences:
    """A row for every option of (context, question, options); all questions get as many rows as the
    one with the most options."""
    count = max(len(options) for _, _, options in questions)
    pairs = choice_pairs(questions, tokenizer, count)
    return make_sequences(pairs, tokenizer, seq_length, cut=keep_the_question(max_question))
