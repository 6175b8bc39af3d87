"""Services on free ports of this process, their clients, models to serve, and what to ask."""

import contextlib
import http.client
import json
import threading
import time

import numpy as np
import pytest
from prometheus_client import parser

from albert.data.tokenizer import Tokenizer
from albert.inference import Pretrained
from albert.interop.weights import Weights, parameter_shapes
from albert.serving import server
from albert.serving.abilities import Limits
from albert.serving.app import make_app
from albert.serving.jax_backend import JaxBackend
from models import random_weights

SIZES = {"vocab_size": 96, "max_position_embeddings": 24}
LIMITS = Limits(body_bytes=20_000, texts=8, characters=1000, top=10, queue=64, seconds=60)
WAIT = 60  # seconds that a test waits for anything before it fails


# A service on a free port of this process, and a client.


@contextlib.contextmanager
def serving(backend, limits=LIMITS, window=0.005, token=None):
    """Yields (port, server); when it ends, the server is stopped and has answered."""
    claimed = server.claim("127.0.0.1", 0)
    app = make_app(backend, limits, window, token)
    running = server.make_server(app, WAIT)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [claimed]})
    thread.start()
    try:
        wait_until(lambda: running.started)
        yield claimed.getsockname()[1], running
    finally:
        running.should_exit = True
        thread.join(WAIT)
        claimed.close()
        assert not thread.is_alive()


def wait_until(is_so):
    end = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.005)


def ask(port, path, body=None, method=None, **headers):
    """(status, content, headers) of a request; `body`: JSON, or bytes as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        named = {"Content-Type": "application/json"} | named
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        if answer.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return answer.status, content, answer.headers


def measured(port):
    """Samples of /metrics by name and labels."""
    status, text, _ = ask(port, "/metrics")
    assert status == 200
    families = parser.text_string_to_metric_families(text.decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


# Fine-tuned for several things at once, so that few programs serve many tests.
HEADS = {"classifier": {"labels": 3}, "tokens": {"labels": 3}, "span": {}}


def made(vocabulary, heads, labels=("a", "b", "c")):
    config = random_weights(**SIZES).config
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(path.endswith("scale"), 0.2, shape).astype(np.float32)
        for path, shape in parameter_shapes(config, heads).items()
    }
    weights = Weights(config, params, heads=heads, labels=labels)
    weights.tokenizer = Tokenizer(vocabulary)
    return Pretrained(weights)


def backend_of(model, batches=(1, 4), lengths=()):
    return JaxBackend(model, "tiny", batches, lengths, LIMITS.top)


TEXTS = [
    "the river",
    "A small bright garden under the bridge",
    "wheel, 1920",
    "the ancient village " * 3,
]


def classified(found):
    return [{"label": each.label, "probabilities": each.probabilities} for each in found]


def cases(kind, vocabulary, model, tuned, choosing):
    """(model, [(path, request, what the model itself says of each text alone)])."""
    many = [TEXTS[:1], TEXTS, TEXTS[2:], TEXTS[1:3]]
    if kind == "fill_mask":
        texts = [f"{'[MASK] ' * count}river the [MASK]" for count in range(6)]
        found = [[[g._asdict() for g in p] for p in model.fill_mask(t, top=3)] for t in texts]
        return model, [
            ("/fill-mask", {"texts": [t], "top": 3}, {"results": [f], "cut": []})
            for t, f in zip(texts, found, strict=True)
        ] + [("/fill-mask", {"texts": texts, "top": 3}, {"results": found, "cut": []})]
    if kind == "encode":
        asked = [
            ("/embed", {"texts": t, "pooling": p}, model.encode(t, p, batch_size=1).tolist())
            for t in many
            for p in ("mean", "cls", "pooled")
        ]
        return model, [(path, body, {"results": f, "cut": []}) for path, body, f in asked]
    if kind in ("classes", "number", "several"):
        fields = {"labels": 1 if kind == "number" else 3, "kind": kind}
        other = tuned if kind == "classes" else made(vocabulary, {"classifier": fields})
        pairs = [*((t, None) for t in many), (TEXTS[:2], TEXTS[1:3])]
        return other, [
            (
                "/classify",
                {"texts": t} if p is None else {"texts": t, "pairs": p},
                {"results": classified(other.classify(t, p, batch_size=1)), "cut": []},
            )
            for t, p in pairs
        ]
    if kind == "choose":
        other = choosing
        asked = [("the river", "what _", ["a", "the bridge", "wheel", "the river"])]
        return other, [
            (
                "/choose",
                {"context": c, "question": q, "options": o},
                {**other.choose(c, q, o)._asdict(), "cut": []},
            )
            for c, q, o in asked
        ]
    if kind == "tag":
        other = tuned
        texts = [*TEXTS, "the captain slowly " * 9, ""]
        found = [[tag._asdict() for tag in other.tag(text)] for text in texts]
        return other, [
            ("/tag", {"texts": [t]}, {"results": [f], "cut": []})
            for t, f in zip(texts, found, strict=True)
        ] + [("/tag", {"texts": texts}, {"results": found, "cut": []})]
    other = tuned if kind == "span" else made(vocabulary, {kind: {}})
    # In one window, and in several of them.
    contexts = [TEXTS[0], "The letter was written by the captain in winter, and read in the city."]
    asked = []
    for context in contexts:
        found = other.answer("who?", context, 10)._asdict()
        found["answer"] = found.pop("text")
        body = {"question": "who?", "context": context, "max_answer": 10}
        asked.append(("/answer", body, {**found, "cut": []}))
    return other, asked


def assert_alike(found, expected):
    """Equal but for the rounding of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list | tuple) and not isinstance(expected, str):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-4)
    else:
        assert found == expected
