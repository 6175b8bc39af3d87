"""How fast an index answers, and how much of what is nearest it finds.

  python benchmarks/search.py --index=books-index --input=other.txt
  python benchmarks/search.py --index=books-index --input=other.txt --url=http://127.0.0.1:8000

Queries are sentences of a text that is not in the index, spread evenly over its first --of. Recall
is the share of the --top nearest, by looking at every sentence, that are found by following the
index; ties count for either. With --truth it is of the texts that are nearest there.

Times are those of making a query's vector, of both ways to search with it, and, with --url, of
whole requests to a service over the same index, one after the other. Prints a table; the last line
is JSON. Needs pip install -r requirements-search.txt.
"""

import json
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_INDEX = flags.DEFINE_string("index", None, "Of tools/search_index.py.", required=True)
_INPUT = flags.DEFINE_string("input", None, "Text with queries.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Default: where it was when the index was made.")
_QUERIES = flags.DEFINE_integer("queries", 500, "How many.", lower_bound=1)
_OF = flags.DEFINE_integer("of", 10_000, "Sentences that they are taken from.", lower_bound=1)
_TOP = flags.DEFINE_integer("top", 10, "How many are looked for.", lower_bound=1)
_TRUTH = flags.DEFINE_string(
    "truth", None, "Another index of the same sentences, as float32, whose nearest are looked for."
)
_URL = flags.DEFINE_string("url", None, "A service over the same index.")
_TIE = 1e-6  # of cosines


def main() -> None:
    from albert.data.sources.base import SourceError
    from albert.search.index import Index
    from albert.search.sentences import open_source, sentences_of
    from albert.serving.loading import open_backend
    from albert.serving.vectors import encoder, vectors_of

    index = Index(Path(_INDEX.value))
    model = _MODEL.value or index.vectors.model
    precision = None if _MODEL.value else index.vectors.precision
    backend = open_backend(model, [1], [32, 64, 128], abilities=["encode"], precision=precision)
    index.check(vectors_of(backend, model).digest, model)
    texts = [
        s.text
        for s in islice(sentences_of(open_source(_INPUT.value, "text"), "en", 0.0), _OF.value)
    ]
    if not texts:
        raise SourceError(f"{_INPUT.value} holds no sentence.")
    queries = texts[:: max(1, len(texts) // _QUERIES.value)][: _QUERIES.value]
    truth = Index(Path(_TRUTH.value)) if _TRUTH.value else None
    encode = encoder(backend)
    encode(queries[:1])
    seconds: dict[str, list[float]] = {"vector": [], "approximate": [], "exact": []}
    recalls = []
    for query in queries:
        vector = _timed(seconds["vector"], encode, [query])[0]
        near = _timed(seconds["approximate"], index.search, vector, _TOP.value)
        exact = _timed(seconds["exact"], index.search, vector, _TOP.value, True)
        if truth is None:
            last = exact[-1].score - _TIE
            recalls.append(sum(found.score >= last for found in near) / len(exact))
        else:
            nearest = {found.text for found in truth.search(vector, _TOP.value, True)}
            recalls.append(len(nearest & {found.text for found in near}) / len(nearest))
    if _URL.value:
        _ask_service(queries, seconds)
    print(f"{len(index):,} sentences as {index.precision}, {len(queries)} queries, in ms:\n")
    print("| | median | 95 % | 99 % | most |\n|---|---|---|---|---|")
    figures = {}
    for name, values in seconds.items():
        found = [1000 * float(np.quantile(values, q)) for q in (0.5, 0.95, 0.99, 1)]
        figures[name] = dict(zip(("median", "p95", "p99", "most"), found, strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in found) + " |")
    recall = float(np.mean(recalls))
    print(f"\nRecall at {_TOP.value}: {recall:.4f}; of the worst query {min(recalls):.2f}")
    print(json.dumps({"sentences": len(index), "recall": recall, "milliseconds": figures}))


def _timed(to: list[float], function, *given):
    begin = time.perf_counter()
    found = function(*given)
    to.append(time.perf_counter() - begin)
    return found


def _ask_service(queries: list[str], seconds: dict[str, list[float]]) -> None:
    import http.client
    import urllib.parse

    from albert.runtime import RunError

    connection = http.client.HTTPConnection(urllib.parse.urlsplit(_URL.value).netloc)

    def ask(query: str, exact: bool) -> None:
        body = json.dumps({"query": query, "top": _TOP.value, "exact": exact})
        connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RunError(f"{_URL.value} answers {answer.status}: {content.decode()}")

    for exact in (False, True):
        name = "request, exact" if exact else "request, approximate"
        seconds[name] = []
        for query in queries:
            _timed(seconds[name], ask, query, exact)


if __name__ == "__main__":
    cli.run(main)
