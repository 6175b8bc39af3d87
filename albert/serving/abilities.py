"""What can be asked: a request in JSON, the rows that it needs, and the answer made of what they
give."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model

from albert import answers
from albert.data.labelled.choices import choice_sequences
from albert.data.labelled.sequences import Sequences, make_sequences
from albert.data.labelled.squad import Options, Question, make_windows
from albert.data.labelled.words import word_sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import MASK, Tokenizer
from albert.serving.backend import MASKS, Card, Row, row_of

_MAX_QUESTION = 64  # pieces of a question on a text, as `Pretrained.answer` has it
_DOC_STRIDE = 128
_POOLINGS = {
    "mean": "of the last hidden states of all pieces",
    "cls": "the last hidden state of [CLS]",
    "pooled": "the pooler's output",
    "unit": "the one that the model was trained with, or the mean, of length 1",
}


class Refused(Exception):
    """A request that cannot be answered: its HTTP status, and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may have, and the service of them.

    Attributes:
      body_bytes: of a request.
      texts: of a request, or rows of ids, or options.
      characters: of a text.
      top: guesses at a [MASK].
      queue: rows that may wait.
      seconds: that a request may take, with reading it.
    """

    body_bytes: int
    texts: int
    characters: int
    top: int
    queue: int
    seconds: float


class Prepared(NamedTuple):
    """A request as rows, and how its answer is made of what the backend finds for each."""

    rows: list[Row]
    answer: Callable[[list[Any]], BaseModel]


class Ability(NamedTuple):
    """One thing that can be asked."""

    name: str  # of `answers.ABILITIES`
    path: str
    summary: str  # what it does, in the imperative
    request: type[BaseModel]
    answer: type[BaseModel]
    example: dict[str, Any]
    prepare: Callable[[Any, Card], Prepared]


# Answers.

_CUT = (
    "What was longer than the model has positions, so that only a part of it was read; empty where "
    "all of it was. "
)


class Guess(BaseModel):
    text: str = Field(description="Empty where the model has no vocabulary.")
    probability: float
    id: int = Field(description="Of the piece in the vocabulary.")


class Filled(BaseModel):
    results: list[list[list[Guess]]] = Field(
        description="For every text, for every [MASK] in it, the likeliest pieces, best first."
    )
    cut: list[int] = Field(description="Always empty: a text that is too long is refused.")


class Class(BaseModel):
    label: str | float | list[str] = Field(
        description="A label by its name; a number; or all labels that fit, by what the model was "
        "fine-tuned for."
    )
    probabilities: dict[str, float] = Field(
        description="Of every label; empty where the answer is a number."
    )


class Classified(BaseModel):
    results: list[Class] = Field(description="For every text.")
    cut: list[int] = Field(description=_CUT + "Numbers of texts, from 0.")


class Answered(BaseModel):
    answer: str | None = Field(description="Words of the context; null: it holds no answer.")
    probability: float = Field(description="Among the best spans.")
    start: int = Field(description="Its first character in the context.")
    end: int = Field(description="The character behind its last.")
    null_odds: float | None = Field(
        description="Of a model of SQuAD 2.0: the more, the less there is an answer."
    )
    cut: list[str] = Field(
        description=_CUT + 'Only "question": a context is read in as many windows as it needs.'
    )


class Chosen(BaseModel):
    number: int = Field(description="Of the option, from 0.")
    option: str
    probabilities: list[float] = Field(description="Of every option.")
    cut: list[int] = Field(
        description=_CUT + "Numbers of options, from 0, with which context and question are read."
    )


class Tag(BaseModel):
    word: str
    label: str
    probability: float
    start: int = Field(description="Its first character in the text.")
    end: int = Field(description="The character behind its last.")


class Tagged(BaseModel):
    results: list[list[Tag]] = Field(description="For every text, for every word.")
    cut: list[int] = Field(
        description=_CUT + "Numbers of texts, from 0, with a word that is too long; a text is read "
        "in as many parts as it needs."
    )


class Embedded(BaseModel):
    results: list[list[float]] = Field(description="A vector for every text.")
    cut: list[int] = Field(description=_CUT + "Numbers of texts, from 0.")


# Requests.


def abilities_of(card: Card, limits: Limits) -> list[Ability]:
    """Everything that can be asked of any model, with the limits as part of the schema; of `card`
    the examples and what may be chosen."""
    text = Annotated[str, Field(max_length=limits.characters)]
    texts = Annotated[list[text], Field(min_length=1, max_length=limits.texts)]
    row = Annotated[list[int], Field(min_length=1, max_length=card.positions)]
    rows = Annotated[list[row], Field(min_length=1, max_length=limits.texts)]

    def request(name: str, /, **fields) -> type[BaseModel]:
        config = ConfigDict(strict=True, extra="forbid")
        return create_model(name, __config__=config, **fields)

    def optional(kind: Any, description: str) -> Any:
        return kind | None, Field(None, description=description)

    def ids(shown: str) -> dict[str, Any]:
        return {
            "ids": optional(
                rows,
                f"In place of texts: rows of ids of the vocabulary, with [CLS] and [SEP]{shown}.",
            ),
            "types": optional(rows, "Token types of the ids, 0 or 1; without them all are 0."),
        }

    poolings = card.poolings or (card.pooling,)  # of a model without vectors, which is not asked
    words = {"texts": ["Paris is the capital of France."]}
    question = {
        "question": "Who wrote the letter?",
        "context": "The letter was written by the captain in winter.",
    }
    return [
        Ability(
            "fill_mask",
            "/fill-mask",
            "Say what could stand at every [MASK] of some texts.",
            request(
                "FillMask",
                texts=optional(texts, "Texts with [MASK] in them."),
                **ids(""),
                top=(int, Field(5, ge=1, le=limits.top, description="Guesses at each [MASK].")),
            ),
            Filled,
            {"texts": ["Paris is the [MASK] of France."], "top": 3},
            _fill_mask,
        ),
        Ability(
            "classify",
            "/classify",
            "Say which label some texts, or pairs of texts, have.",
            request(
                "Classify",
                texts=optional(texts, "Texts."),
                pairs=optional(texts, "As many second texts, for a model of pairs."),
                **ids(""),
            ),
            Classified,
            words,
            _classify,
        ),
        Ability(
            "choose",
            "/choose",
            "Say which of several options answers a question on a text.",
            request(
                "Choose",
                context=(text, Field(description="A text.")),
                question=(text, Field(description='A question; an option takes the place of "_".')),
                options=(
                    Annotated[list[text], Field(min_length=2, max_length=limits.texts)],
                    Field(description="Possible answers."),
                ),
            ),
            Chosen,
            question | {"options": ["the captain", "the teacher"]},
            _choose,
        ),
        Ability(
            "tag",
            "/tag",
            "Say what every word of some texts is.",
            request("TagWords", texts=(texts, Field(description="Texts."))),
            Tagged,
            words,
            _tag,
        ),
        Ability(
            "answer",
            "/answer",
            "Find the answer to a question in a text.",
            request(
                "Answer",
                question=(text, Field(description="A question.")),
                context=(text, Field(description="The text in which the answer stands.")),
                max_answer=(
                    int,
                    Field(30, ge=1, le=card.positions, description="Pieces of an answer at most."),
                ),
            ),
            Answered,
            question,
            _answer,
        ),
        Ability(
            "encode",
            "/embed",
            "Give a vector for each of some texts.",
            request(
                "Embed",
                texts=optional(texts, "Texts."),
                **ids(""),
                pooling=(
                    cast(Any, Literal)[poolings],
                    Field(
                        card.pooling,
                        description="; ".join(f"{name}: {_POOLINGS[name]}" for name in poolings)
                        + ".",
                    ),
                ),
            ),
            Embedded,
            words,
            _embed,
        ),
    ]


# From a request to rows and to its answer.


def _fill_mask(request: Any, card: Card) -> Prepared:
    sequences = _ids_or_none(request, card)
    if sequences is None:
        tokenizer = _vocabulary(card)
        sequences = [tokenizer.encode_pair(text) for text in request.texts]
    rows: list[Row] = []
    of_text = []  # masks of each
    for number, (ids, types) in enumerate(sequences):
        if len(ids) > card.positions:
            raise Refused(
                422,
                f"texts {number} has {len(ids)} pieces and the model {card.positions} positions; "
                "give less text.",
            )
        places = np.flatnonzero(np.equal(ids, MASK)).tolist()
        if not places:
            raise Refused(422, f"There is no [MASK] in texts {number} (the first is 0).")
        of_text.append(len(places))
        rows += [
            row_of(ids, types, positions=places[begin : begin + MASKS])
            for begin in range(0, len(places), MASKS)
        ]

    def answer(outputs: list[Any]) -> Filled:
        found = iter(outputs)
        results = []
        for count in of_text:
            of_rows = [next(found) for _ in range(0, count, MASKS)]
            results.append(
                [
                    _guesses(card, *(numbers[place % MASKS] for numbers in of_rows[place // MASKS]))
                    for place in range(count)
                ]
            )
        return Filled(results=results, cut=[])

    def _guesses(card: Card, probabilities: np.ndarray, ids: np.ndarray) -> list[Guess]:
        probabilities, ids = probabilities[: request.top], ids[: request.top]
        if card.tokenizer:
            found = answers.guesses_of(card.tokenizer, probabilities, ids)
            return [Guess(**guess._asdict()) for guess in found]
        return [
            Guess(text="", probability=float(p), id=int(i))
            for p, i in zip(probabilities, ids, strict=True)
        ]

    return Prepared(rows, answer)


def _classify(request: Any, card: Card) -> Prepared:
    given = _ids_or_none(request, card)
    if given is not None:
        if request.pairs is not None:
            raise Refused(422, "pairs belong to texts; give both segments of ids in one row.")
        rows, cut = [row_of(*each) for each in given], []
    else:
        pairs = request.pairs or [None] * len(request.texts)
        if len(pairs) != len(request.texts):
            raise Refused(422, f"There are {len(request.texts)} texts and {len(pairs)} pairs.")
        tokenizer = _vocabulary(card)
        made = [
            make_sequences([pair], tokenizer, card.positions)
            for pair in zip(request.texts, pairs, strict=True)
        ]
        rows = [row for sequences in made for row in _rows_of(sequences)]
        cut = [number for number, sequences in enumerate(made) if sequences.cut]

    def answer(outputs: list[Any]) -> Classified:
        found = [answers.class_of(card.kind, card.labels, logits) for logits in outputs]
        return Classified(results=[Class(**each._asdict()) for each in found], cut=cut)

    return Prepared(rows, answer)


def _choose(request: Any, card: Card) -> Prepared:
    tokenizer = _vocabulary(card)
    made = [
        choice_sequences([(request.context, request.question, [option])], tokenizer, card.positions)
        for option in request.options
    ]

    def answer(outputs: list[Any]) -> Chosen:
        found = answers.chosen_of(request.options, np.stack(outputs))
        cut = [number for number, sequences in enumerate(made) if sequences.cut]
        return Chosen(**found._asdict(), cut=cut)

    return Prepared([row for sequences in made for row in _rows_of(sequences)], answer)


def _tag(request: Any, card: Card) -> Prepared:
    tokenizer = _vocabulary(card)
    made = [
        word_sequences([[word for word, _ in answers.words_of(text)]], tokenizer, card.positions)
        for text in request.texts
    ]

    def answer(outputs: list[Any]) -> Tagged:
        found = iter(outputs)
        results = []
        for text, rows in zip(request.texts, made, strict=True):
            logits = [next(found) for _ in range(len(rows.rows))]
            tags = answers.tags_of(text, rows, card.labels, logits)
            results.append([Tag(**tag._asdict()) for tag in tags])
        return Tagged(results=results, cut=[n for n, rows in enumerate(made) if rows.cut])

    return Prepared([row for rows in made for row in _rows_of(rows.rows)], answer)


def _answer(request: Any, card: Card) -> Prepared:
    tokenizer = _vocabulary(card)
    if not request.context.strip():
        raise Refused(422, "context is empty.")
    longest = min(_MAX_QUESTION, card.positions // 2)
    asked = Question("", request.question, request.context, (), None)
    options = Options(card.positions, _DOC_STRIDE, longest, False)
    try:
        windows = make_windows([asked], tokenizer, options, exactly=False)
    except SourceError as error:
        raise Refused(422, "context has no text that the vocabulary has a piece for.") from error
    length = int(windows.sequences.lengths.max())
    cut = ["question"] if len(tokenizer.encode(request.question)) > longest else []

    def answer(outputs: list[Any]) -> Answered:
        found = (
            {name: np.stack([each[name] for each in outputs]) for name in outputs[0]}
            if isinstance(outputs[0], dict)
            else np.stack(outputs)[:, :length]
        )
        best = answers.answer_of(asked, windows, found, request.max_answer, card.threshold)
        fields = best._asdict()
        return Answered(answer=fields.pop("text"), **fields, cut=cut)

    return Prepared(_rows_of(windows.sequences, length), answer)


def _embed(request: Any, card: Card) -> Prepared:
    sequences = _ids_or_none(request, card)
    cut = []
    if sequences is None:
        tokenizer = _vocabulary(card)
        pieces = [tokenizer.encode_special(text) for text in request.texts]
        cut = [number for number, ids in enumerate(pieces) if len(ids) + 2 > card.positions]
        sequences = [tokenizer.with_ends([ids], card.positions) for ids in pieces]

    def answer(outputs: list[Any]) -> Embedded:
        return Embedded(results=[each[request.pooling].tolist() for each in outputs], cut=cut)

    return Prepared([row_of(*each) for each in sequences], answer)


def _rows_of(sequences: Sequences, length: int = 0) -> list[Row]:
    """Each as a row of at least that length."""
    rows = []
    for number in range(len(sequences)):
        ids = sequences.ids[sequences.starts[number] : sequences.starts[number + 1]]
        types = np.arange(len(ids)) >= sequences.seconds[number]
        rows.append(row_of(ids, types, length))
    return rows


def _vocabulary(card: Card) -> Tokenizer:
    if card.tokenizer is None:
        raise Refused(
            409,
            f"This model has no vocabulary, so it takes ids and no texts. "
            f"{card.no_vocabulary.rstrip('.')}; start the service with --tokenizer=FILE.model.",
        )
    return card.tokenizer


def _ids_or_none(request: Any, card: Card) -> list[tuple[Sequence[int], Sequence[int]]] | None:
    """Ids and token types that were given in place of texts; raises Refused."""
    if (request.texts is None) == (request.ids is None):
        raise Refused(422, "Give either texts or ids.")
    if request.ids is None:
        if request.types is not None:
            raise Refused(422, "types belong to ids; of texts they follow from the segments.")
        return None
    types = request.types or [[0] * len(row) for row in request.ids]
    if [len(row) for row in types] != [len(row) for row in request.ids]:
        raise Refused(422, "types must have as many rows as ids, each as long as its ids.")
    for name, values, bound in (
        ("ids", request.ids, card.vocab_size),
        ("types", types, card.type_vocab_size),
    ):
        for number, row in enumerate(values):
            if wrong := [value for value in row if not 0 <= value < bound]:
                raise Refused(
                    422, f"{name} {number} holds {wrong[0]}; the model knows 0 to {bound - 1}."
                )
    return list(zip(request.ids, types, strict=True))
