"""What may be asked of an index of sentences."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from albert.search import SearchError
from albert.search.index import Index
from albert.serving.abilities import Ability, Limits, Prepared, request_model, vocabulary_of
from albert.serving.backend import Backend, Card, rows_of_texts
from albert.serving.vectors import vectors_of

_TOP = 10  # by default


class Hit(BaseModel):
    text: str
    file: str
    line: int = Field(description="From 1.")
    score: float = Field(description="Cosine of its vector with the query's.")


class Hits(BaseModel):
    results: list[Hit] = Field(description="The nearest sentences, the nearest first.")
    cut: list[str] = Field(
        description='"query" where it was longer than the model has positions; else empty.'
    )


def _written(name: str) -> str:
    """A file's name as UTF-8, with escapes for bytes that are none."""
    return name.encode("utf-8", "backslashreplace").decode()


def search_ability(index: Index, backend: Backend, limits: Limits) -> Ability:
    """What is asked of an index; raises SearchError where it is of another model."""
    card = backend.card
    if "encode" not in card.abilities:
        raise SearchError(
            f"{index.folder} is searched with vectors, which {card.name} is not asked for: it has "
            f"{', '.join(card.abilities)}."
        )
    index.check(vectors_of(backend, card.name).digest, card.name)
    text = Annotated[str, Field(min_length=1, max_length=limits.characters)]
    top = Field(
        min(_TOP, limits.top), ge=1, le=limits.top, description="How many are found at most."
    )

    def prepare(request: Any, card: Card) -> Prepared:
        rows, cut = rows_of_texts(vocabulary_of(card), [request.query], card.positions)

        def answer(outputs: list[Any]) -> Hits:
            found = index.search(outputs[0][card.pooling], request.top, request.exact)
            # A file's name need not be UTF-8.
            hits = [Hit(**each._replace(file=_written(each.file))._asdict()) for each in found]
            return Hits(results=hits, cut=["query"] if cut else [])

        return Prepared(rows, answer)

    return Ability(
        "encode",
        "/search",
        f"Find sentences like a query, among {len(index):,} of an index.",
        request_model(
            "Search",
            query=(text, Field(description="What is looked for.")),
            top=(int, top),
            exact=(
                bool,
                Field(
                    False,
                    description="Look at every sentence; else the index is followed, which is "
                    "faster and misses a few.",
                ),
            ),
        ),
        Hits,
        {"query": "A river in winter.", "top": 3},
        prepare,
    )
