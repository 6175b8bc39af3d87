"""The service: batches, limits, mistakes, and stopping."""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

WHY = "needs pip install -r requirements-serve.txt"
pytest.importorskip("fastapi", reason=WHY)
pytest.importorskip("uvicorn", reason=WHY)
parser = pytest.importorskip("prometheus_client.parser", reason=WHY)

from fastapi.openapi.models import OpenAPI

from albert.data.tokenizer import Tokenizer
from albert.inference import Pretrained
from albert.interop import formats
from albert.interop.weights import PRETRAINED
from albert.runtime import RunError
from albert.serving import server
from albert.serving.abilities import Limits, abilities_of
from albert.serving.backend import Card, Shapes, row_of
from albert.serving.batching import Batcher, QueueFull
from albert.serving.guard import is_loopback
from albert.serving.jax_backend import JaxBackend
from models import TINY, random_weights
from services import (
    HEADS,
    LIMITS,
    SIZES,
    TEXTS,
    WAIT,
    ask,
    assert_alike,
    backend_of,
    cases,
    made,
    measured,
    serving,
    wait_until,
)

ROOT = Path(__file__).resolve().parent.parent

# Models.


@pytest.fixture(scope="module")
def model(vocabulary):
    return made(vocabulary, PRETRAINED)


@pytest.fixture(scope="module")
def tuned(vocabulary):
    return made(vocabulary, HEADS)


@pytest.fixture(scope="module")
def choosing(vocabulary):
    return made(vocabulary, {"classifier": {"labels": 1, "kind": "choice"}})


@pytest.fixture(scope="module")
def service(model):
    with serving(backend_of(model)) as (port, _):
        yield port


class Gated:
    """A backend that computes a row's length, when it may."""

    def __init__(self, full=4):
        self.card = Card(
            "gated", ("encode",), None, "", 40, 96, 2, "classes", (), 0.0, ("mean",), "mean"
        )
        self.shapes = Shapes((1, full), (16, 40))
        self.open = threading.Event()
        self.taken = 0  # rows
        self.batches = []
        self.error = None

    def compute(self, ability, rows, shape):
        self.taken += len(rows)
        assert self.open.wait(WAIT)
        self.batches.append(([len(row.ids) for row in rows], shape))
        if self.error:
            raise self.error
        return [{"mean": np.full(2, len(row.ids), np.float32)} for row in rows]


@pytest.fixture
def gated():
    backend = Gated()
    yield backend
    backend.open.set()


def rows(*lengths):
    return [row_of([2] * length, [0] * length) for length in lengths]


# Batches.


def test_rows_of_alike_lengths_are_computed_together_and_the_oldest_first(gated):
    batcher = Batcher(gated, 0, 100)
    first = batcher.submit("encode", rows(3))
    wait_until(lambda: not batcher.waiting)  # it is being computed, and what follows waits
    futures = [batcher.submit("encode", rows(*lengths)) for lengths in ((20, 5), (6,), (7, 8, 9))]
    other = batcher.submit("tag", rows(4))
    gated.open.set()
    found = [[int(each["mean"][0]) for each in f.result(WAIT)] for f in (first, *futures, other)]
    assert found == [[3], [20, 5], [6], [7, 8, 9], [4]]
    assert gated.batches == [
        ([3], (1, 16)),
        ([20], (1, 40)),
        ([5, 6, 7, 8], (4, 16)),
        ([9], (1, 16)),
        ([4], (1, 16)),
    ]
    batcher.close()


def test_a_row_waits_for_others_until_a_batch_is_full_or_the_window_over(gated):
    gated.open.set()
    batcher = Batcher(gated, 30, 100)
    begin = time.monotonic()
    full = [batcher.submit("encode", rows(n)) for n in (3, 4, 5, 6)]
    for future in full:
        future.result(WAIT)
    assert time.monotonic() - begin < 20
    late = batcher.submit("encode", rows(7))
    batcher.close()  # waits for nothing any more
    assert late.done()
    assert [lengths for lengths, _ in gated.batches] == [[3, 4, 5, 6], [7]]
    with pytest.raises(RuntimeError, match="no more rows are taken"):
        batcher.submit("encode", rows(1))
    batcher = Batcher(gated, 0.1, 100)
    begin = time.monotonic()
    batcher.submit("encode", rows(3)).result(WAIT)
    assert time.monotonic() - begin >= 0.1
    assert batcher.submit("encode", []).result(0) == []
    batcher.close()


def test_the_queue_is_bounded_and_what_is_given_up_leaves_it(gated):
    batcher = Batcher(gated, 0, 5)
    computing = batcher.submit("encode", rows(1))
    wait_until(lambda: not batcher.waiting)
    kept = batcher.submit("encode", rows(2, 3, 30))
    with pytest.raises(QueueFull) as told:
        batcher.submit("encode", rows(4, 5, 6))
    assert told.value.retry_after >= 1
    assert batcher.waiting == 3
    given_up = batcher.submit("encode", rows(7, 31))
    assert batcher.waiting == 5
    assert given_up.cancel()
    assert batcher.waiting == 3
    assert computing.cancel()  # too late to save the work, in time to forget the outcome
    gated.open.set()
    assert len(kept.result(WAIT)) == 3
    batcher.close()
    assert sorted(n for lengths, _ in gated.batches for n in lengths) == [1, 2, 3, 30]


def test_rows_that_would_wait_for_too_long_are_refused_although_there_is_room(gated):
    batcher = Batcher(gated, 0, 1000, patience=1.0)
    slow = batcher.submit("encode", rows(1))
    time.sleep(0.2)  # which is taken for what a row takes
    gated.open.set()
    slow.result(WAIT)
    gated.open.clear()
    batcher.submit("encode", rows(1))
    wait_until(lambda: not batcher.waiting)
    batcher.submit("encode", rows(*[2] * 10))
    with pytest.raises(QueueFull) as told:
        batcher.submit("encode", rows(3))
    assert told.value.waiting == 10
    assert 2 <= told.value.retry_after <= 60
    gated.open.set()
    batcher.close()


def test_an_error_is_that_of_its_batch_alone(gated):
    batcher = Batcher(gated, 0, 100)
    gated.error = MemoryError("no room")
    failed = batcher.submit("encode", rows(1, 2, 3, 4, 5, 30))
    gated.open.set()
    with pytest.raises(MemoryError):
        failed.result(WAIT)
    wait_until(lambda: not batcher.waiting)  # the request's other rows are not waited for
    gated.error = None
    assert batcher.submit("encode", rows(9)).result(WAIT)[0]["mean"][0] == 9
    batcher.close()


# Answers.


@pytest.mark.parametrize(
    "kind",
    [
        *("fill_mask", "encode", "classes", "tag", "span"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("choose", "number", "several", "conditional_span")
        ),
    ],
)
def test_answers_given_at_once_are_those_that_the_model_gives_alone(
    kind, vocabulary, model, tuned, choosing
):
    other, asked = cases(kind, vocabulary, model, tuned, choosing)
    asked = asked * (1 + 8 // len(asked))
    with serving(backend_of(other), window=0.05) as (port, _):
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda each: ask(port, each[0], each[1]), asked))
        for (status, content, _), (_, _, expected) in zip(found, asked, strict=True):
            assert status == 200, content
            assert_alike(content, expected)
        counted = measured(port)
        batches = sum(v for k, v in counted.items() if k[0] == "albert_batch_rows_count")
        computed = sum(v for k, v in counted.items() if k[0] == "albert_batch_rows_sum")
        assert computed > batches


def test_ids_can_be_given_in_place_of_texts(service, model):
    made_rows = model.tokenize("the [MASK] moves", "a [MASK]")
    ids, types = made_rows["input_ids"].tolist(), made_rows["token_type_ids"].tolist()
    expected = model.compute("encode", made_rows)["mean"][0]
    status, content, _ = ask(service, "/embed", {"ids": ids, "types": types})
    assert status == 200
    np.testing.assert_allclose(content["results"][0], expected, atol=1e-5)
    status, content, _ = ask(service, "/fill-mask", {"ids": ids, "types": types, "top": 2})
    assert [len(place) for place in content["results"][0]] == [2, 2]


def test_a_model_without_vocabulary_takes_ids(model):
    backend = backend_of(model)
    backend.card = dataclasses.replace(backend.card, tokenizer=None)
    with serving(backend) as (port, _):
        status, content, _ = ask(port, "/embed", {"texts": ["a"]})
        assert status == 409
        assert "no vocabulary, so it takes ids" in content["error"]
        assert ask(port, "/embed", {"ids": [[2, 20, 3]]})[0] == 200
        filled = ask(port, "/fill-mask", {"ids": [[2, 4, 3]], "top": 1})[1]["results"][0][0]
        assert filled[0]["text"] == ""
        assert 0 <= filled[0]["id"] < 96


@pytest.mark.parametrize(
    ("name", "body", "outputs", "cut"),
    [
        ("tag", {"texts": ["a", "river" * 60]}, np.zeros((2, 24, 3)), [1]),
        ("classify", {"texts": ["river " * 60, "a"]}, np.zeros((2, 3)), [0]),
        (
            "choose",
            {"context": "a", "question": "b", "options": ["a", "river " * 60]},
            np.zeros((2, 1)),
            [1],
        ),
        (
            "answer",
            {"question": "river " * 60, "context": "a"},
            np.zeros((1, 24, 2)),
            ["question"],
        ),
        ("encode", {"texts": ["a", "river " * 60]}, [{"mean": np.zeros(2)}] * 2, [1]),
    ],
)
def test_what_is_cut_is_told(tuned, choosing, name, body, outputs, cut):
    card = backend_of(choosing if name == "choose" else tuned).card
    (ability,) = (each for each in abilities_of(card, LIMITS) if each.name == name)
    prepared = ability.prepare(ability.request(**body), card)
    assert len(prepared.rows) == len(outputs)
    assert prepared.answer(list(outputs)).cut == cut


# Mistakes.


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/embed", b'{"texts": ', 400, "The body is not JSON: Expecting value at character"),
        ("/embed", b'{"texts": ["\xff"]}', 400, "cannot be read as JSON in UTF-8"),
        ("/embed", b"[" * 15000, 400, "cannot be read as JSON"),
        ("/embed", b"", 422, "the body must be a JSON object"),
        ("/embed", [1], 422, "the body must be a JSON object"),
        ("/embed", {}, 422, "either texts or ids"),
        ("/embed", {"texts": ["a"], "ids": [[2]]}, 422, "either texts or ids"),
        ("/embed", {"texts": []}, 422, "texts: list should have at least 1 item"),
        ("/embed", {"texts": ["a"] * 9}, 422, "texts: list should have at most 8 items"),
        ("/embed", {"texts": "a"}, 422, "texts: input should be a valid list"),
        ("/embed", {"texts": ["a", 5]}, 422, "texts 1: input should be a valid string"),
        ("/embed", {"texts": [None] * 8}, 422, "and 5 more"),
        ("/embed", {"texts": ["x" * 1001]}, 422, "at most 1000 characters"),
        ("/embed", b'{"texts": ["\\ud800"]}', 422, "texts 0: .*unicode"),
        ("/embed", {"texts": ["a"], "poolin": "cls"}, 422, "there is no field poolin"),
        ("/embed", {"texts": ["a"], "pooling": "max"}, 422, "'mean', 'pooled' or 'cls'"),
        ("/embed", {"texts": ["a"], "types": [[0]]}, 422, "types belong to ids"),
        ("/embed", {"ids": [[]]}, 422, "ids 0: list should have at least 1 item"),
        ("/embed", {"ids": [[2] * 25]}, 422, "ids 0: list should have at most 24 items"),
        ("/embed", {"ids": [[2, 96]]}, 422, "ids 0 holds 96; the model knows 0 to 95"),
        ("/embed", {"ids": [[2], [2, -1]]}, 422, "ids 1 holds -1"),
        ("/embed", {"ids": [[10**30]]}, 422, "the model knows 0 to 95"),
        ("/embed", {"ids": [[2.0, True, "2"]]}, 422, "ids 0 0: .*; ids 0 1: .*; ids 0 2: "),
        ("/embed", {"ids": [[2]], "types": [[2]]}, 422, "types 0 holds 2; the model knows 0 to 1"),
        ("/embed", {"ids": [[2]], "types": [[0, 0]]}, 422, "as many rows as ids"),
        ("/fill-mask", {"texts": ["a [MASK]", "a"]}, 422, r"no \[MASK\] in texts 1"),
        ("/fill-mask", {"texts": ["river " * 50 + "[MASK]"]}, 422, "the model 24 positions"),
        ("/fill-mask", {"texts": ["[MASK]"], "top": 11}, 422, "top: .* less than or equal to 10"),
        ("/fill-mask", {"texts": ["[MASK]"], "top": True}, 422, "top: .* valid integer"),
        (
            "/classify",
            {"texts": ["a"]},
            409,
            "not trained for /classify; it has /fill-mask, /embed",
        ),
        ("/answer", {}, 409, "not trained for /answer"),
        ("/nothing", {}, 404, "There is no /nothing; there are POST /fill-mask, POST /embed"),
        ("/health", {}, 405, "/health takes GET and not POST"),
    ],
)
def test_mistakes_are_told_in_a_sentence(service, path, body, status, words):
    found = ask(service, path, body)
    assert found[0] == status, found
    assert found[1].keys() == {"error"}
    assert re.search(words, found[1]["error"]), found[1]["error"]


def test_mistakes_of_some_abilities_are_told(tuned, choosing):
    with serving(backend_of(tuned)) as (port, _), serving(backend_of(choosing)) as (other, _):
        for asked, path, body, words in (
            (port, "/classify", {"texts": ["a"], "pairs": ["b", "c"]}, "are 1 texts and 2 pairs"),
            (port, "/classify", {"ids": [[2]], "pairs": ["b"]}, "pairs belong to texts"),
            (port, "/answer", {"question": "a"}, "context is missing"),
            (port, "/answer", {"question": "a", "context": " "}, "context is empty"),
            (port, "/answer", {"question": "a", "context": "\u0301"}, "context has no text"),
            (other, "/choose", {"context": "a", "question": "b", "options": ["a"]}, "at least 2"),
        ):
            status, content, _ = ask(asked, path, body)
            assert status == 422
            assert words in content["error"]


def test_bodies_that_are_too_large_or_of_another_kind_are_refused(service):
    large = json.dumps({"texts": ["a " * 5_000_000]}).encode()
    assert len(large) > 10_000_000
    status, content, _ = ask(service, "/embed", large)
    assert status == 413
    assert "10,000,015 bytes, and 20,000 is the most" in content["error"]
    status, content, _ = ask(service, "/embed", large, Expect="100-continue")
    assert status == 413
    # Without saying how long it is.
    connection = http.client.HTTPConnection("127.0.0.1", service, timeout=WAIT)
    parts = (large[i : i + 2**16] for i in range(0, len(large), 2**16))
    with contextlib.closing(connection):
        connection.request(
            "POST", "/embed", parts, {"Content-Type": "application/json"}, encode_chunked=True
        )
        answer = connection.getresponse()
        assert answer.status == 413
        assert "20,000 is the most" in json.loads(answer.read())["error"]
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, content, _ = ask(service, "/embed", {"texts": ["a"]}, Content_Type=kind)
        assert status == 415
        assert "send Content-Type: application/json" in content["error"]
    assert ask(service, "/embed", {"texts": ["a"]})[0] == 200


def test_without_a_token_only_names_of_this_machine_are_answered(service):
    for host in ("127.0.0.1", "localhost:8000", "[::1]:80", "LOCALHOST", "127.0.0.2:9"):
        assert ask(service, "/health", Host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::2]", "localhost@evil.example"):
        status, content, _ = ask(service, "/embed", {"texts": ["a"]}, Host=host)
        assert status == 403
        assert "on this machine alone" in content["error"]


def test_a_token_is_needed_where_one_is_set(gated):
    gated.open.set()
    with serving(gated, token="a-secret") as (port, _):
        body = {"ids": [[2]]}
        for header in ({}, *({"Authorization": v} for v in ("Bearer x", "a-secret", "Basic é"))):
            status, content, headers = ask(port, "/embed", body, **header)
            assert status == 401
            assert "send the header Authorization: Bearer TOKEN" in content["error"]
            assert headers["WWW-Authenticate"] == "Bearer"
        assert ask(port, "/metrics")[0] == 401
        for page in ("/", "/docs", "/openapi.json", "/health"):
            assert ask(port, page, Host="any.example")[0] == 200
        right = {"Authorization": "Bearer a-secret"}
        assert ask(port, "/embed", body, **right)[0] == 200
        assert ask(port, "/metrics", **right)[0] == 200
        assert b"Authorization: Bearer $TOKEN" in ask(port, "/")[1]


# Much to do, and the end.


def asking(port, count, body):
    """As many requests at once; their futures, and the pool."""
    pool = ThreadPoolExecutor(count)
    return pool, [pool.submit(ask, port, "/embed", body) for _ in range(count)]


def test_what_the_queue_has_no_room_for_is_refused_with_the_time_to_come_again(gated):
    limits = Limits(**vars(LIMITS) | {"queue": 6})
    with serving(gated, limits, window=0) as (port, _):
        pool, futures = asking(port, 40, {"ids": [[2, 3]]})
        # A batch is computed, six rows wait; the others are told at once.
        wait_until(lambda: sum(f.done() for f in futures) >= 40 - 6 - gated.shapes.full)
        assert ask(port, "/health")[1]["waiting"] <= 6
        gated.open.set()
        found = [future.result(WAIT) for future in futures]
        pool.shutdown()
        statuses = [status for status, _, _ in found]
        assert statuses.count(200) + statuses.count(429) == 40
        assert 7 <= statuses.count(200) <= 6 + gated.shapes.full
        for status, content, headers in found:
            if status == 429:
                assert int(headers["Retry-After"]) >= 1
                assert re.search(
                    "no more can be answered in time|no more are taken", content["error"]
                )
        assert ask(port, "/embed", {"ids": [[2]]})[0] == 200
        counted = measured(port)
        assert counted["albert_queue_rows",] == 0
        assert counted["albert_queue_limit",] == 6
        key = "albert_requests_total", ("endpoint", "/embed"), ("status", "429")
        assert counted[key] == statuses.count(429)
        status, content, _ = ask(port, "/embed", {"ids": [[2]] * 7})
        assert status == 422
        assert "needs 7 rows of the model, and 6 is the most" in content["error"]


def test_what_a_client_has_given_up_is_not_computed(gated):
    with serving(gated, window=0) as (port, _):
        pool, futures = asking(port, 1, {"ids": [[2]]})
        wait_until(lambda: gated.taken == 1)
        body = b'{"ids": [[2, 3, 4]]}'
        head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: ask(port, "/health")[1]["waiting"] == 1)
        wait_until(lambda: ask(port, "/health")[1]["waiting"] == 0)
        gated.open.set()
        assert futures[0].result(WAIT)[0] == 200
        pool.shutdown()
        assert [lengths for lengths, _ in gated.batches] == [[1]]
        key = "albert_requests_total", ("endpoint", "/embed"), ("status", "499")
        wait_until(lambda: measured(port).get(key) == 1)


def test_what_takes_too_long_is_given_up_and_told(gated):
    limits = Limits(**vars(LIMITS) | {"seconds": 0.3})
    with serving(gated, limits, window=0) as (port, _):
        pool, futures = asking(port, 6, {"ids": [[2]]})
        for future in futures:
            status, content, _ = future.result(WAIT)
            assert status == 504
            assert "no answer within 0.3 s" in content["error"]
        pool.shutdown()
        assert ask(port, "/health")[1]["waiting"] == 0
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client:
            client.sendall(
                b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert client.recv(2**16).startswith(b"HTTP/1.1 408 ")
        gated.open.set()


def test_a_failure_is_told_and_the_next_request_answered(gated, capfd):
    gated.open.set()
    gated.error = MemoryError("no room")
    with serving(gated) as (port, _):
        status, content, _ = ask(port, "/embed", {"ids": [[2]]})
        assert status == 500
        assert content["error"].startswith("The service failed with MemoryError")
        gated.error = None
        assert ask(port, "/embed", {"ids": [[2]]})[0] == 200
    assert "MemoryError: no room" in capfd.readouterr().err


def test_when_it_is_stopped_what_has_come_is_answered_and_nothing_new_taken(gated):
    with serving(gated, window=0) as (port, running):
        pool, futures = asking(port, 10, {"ids": [[2]]})
        wait_until(lambda: ask(port, "/health")[1]["waiting"] + gated.taken == 10)
        running.should_exit = True
        wait_until(lambda: not listens(port))
        gated.open.set()
        assert [future.result(WAIT)[0] for future in futures] == [200] * 10
        pool.shutdown()


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


# What it says of itself.


def test_the_schema_is_valid_its_examples_are_answered_and_the_pages_load_nothing(model, tuned):
    for other, count in ((model, 2), (tuned, 4)):
        with serving(backend_of(other)) as (port, _):
            status, schema, _ = ask(port, "/openapi.json")
            OpenAPI.model_validate(schema)
            calls = {path: of["post"] for path, of in schema["paths"].items() if "post" in of}
            assert len(calls) == count
            page = ask(port, "/docs")[1].decode()
            first = ask(port, "/")[1].decode()
            for path, call in calls.items():
                content = call["requestBody"]["content"]["application/json"]
                status, answer, _ = ask(port, path, content["example"])
                assert status == 200, answer
                assert f"POST {path}" in page
                assert f"127.0.0.1:{port}{path} " in first
                name = content["schema"]["$ref"].rpartition("/")[2]
                for field in schema["components"]["schemas"][name]["properties"]:
                    assert f"<td>{field}" in page
            for text in (page, first):
                assert not re.search(r"(src|href)=\"?(https?:)?//", text)
                assert "@import" not in text
            policy = ask(port, "/docs")[2]["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'")


def test_metrics_count_what_was_asked(model):
    with serving(backend_of(model), window=0) as (port, _):
        for path, body in (("/embed", {"texts": TEXTS}), ("/embed", {}), ("/x", {})):
            ask(port, path, body)
        counted = measured(port)

    def requests(endpoint, status):
        return counted["albert_requests_total", ("endpoint", endpoint), ("status", status)]

    assert requests("/embed", "200") == requests("/embed", "422") == requests("other", "404") == 1
    assert counted["albert_request_seconds_count", ("endpoint", "/embed")] == 2
    assert counted["albert_batch_rows_sum", ("ability", "encode")] == len(TEXTS)
    assert counted["process_resident_memory_bytes",] > 1e6


# Compiled ahead.


def test_what_is_warm_is_not_compiled_again(vocabulary):
    model = made(vocabulary, PRETRAINED)
    told = []
    programs = model.warm_up((10, 20, 400), (1, 3), ["encode"], on_program=told.append)
    assert told == programs
    shapes = [(made.ability, made.rows, made.length) for made in programs]
    assert shapes == [("encode", count, length) for count in (1, 3) for length in (16, 24)]
    assert all(made.seconds > 0 for made in programs)
    assert [made.ability for made in model.warm_up((10,), (1,))] == ["fill_mask", "encode"]
    before = model._likeliest._cache_size(), model._sentence_vectors._cache_size()
    assert before == (1, 4)
    model.fill_mask("a [MASK]")
    for count in (1, 3):
        for words in (1, 15, 33):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of texts that are cut
                model.encode(["river " * words] * count, "cls")
    assert (model._likeliest._cache_size(), model._sentence_vectors._cache_size()) == before
    rows = model.tokenize("a river")
    for ability, words in (("tag", "cannot 'tag'"), ("fill_mask", "positions has shape")):
        with pytest.raises(ValueError, match=words):
            model.compute(ability, rows)
    for arguments, words in (
        (((10,), (1,), ["tag"]), "cannot 'tag'; it can fill_mask, encode"),
        (((0,), (1,)), "lengths is 0"),
        (((10,), (-1,)), "batches is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            model.warm_up(*arguments)


def test_a_warm_service_compiles_nothing(vocabulary):
    model = made(vocabulary, PRETRAINED)
    backend = backend_of(model, batches=(1, 2))
    assert backend.shapes == Shapes((1, 2), (24,))
    assert backend_of(model, (5, 1), (3, 17, 500)).shapes == Shapes((1, 6), (16, 24))
    lines = []
    backend.warm_up(lines.append)
    assert len(lines) == 4
    assert re.fullmatch(r"fill_mask: 1 x 24, \d+\.\d s", lines[0])
    with serving(backend) as (port, _):
        for count in (1, 2, 5):
            texts = [f"{'[MASK] ' * count}{'river ' * count}"] * count
            assert ask(port, "/fill-mask", {"texts": texts, "top": count})[0] == 200
            assert ask(port, "/embed", {"texts": texts, "pooling": "pooled"})[0] == 200
    assert model._likeliest._cache_size() == model._sentence_vectors._cache_size() == 2


def test_abilities_follow_from_the_heads(model, tuned, choosing):
    assert model.abilities == ("fill_mask", "encode")
    assert tuned.abilities == ("encode", "classify", "tag", "answer")
    assert choosing.abilities == ("encode", "choose")
    lacking = Pretrained(random_weights(lacking=["mlm_head", "pooler"]))
    assert lacking.abilities == ("encode",)
    assert backend_of(lacking).card.poolings == ("mean", "cls")
    with pytest.raises(ValueError, match="cannot tag; it can encode"):
        JaxBackend(lacking, "x", (1,), (16,), 5, ["tag"])
    with pytest.raises(ValueError, match="batches is"):
        JaxBackend(lacking, "x", (0,), (16,), 5)
    assert TINY.max_position_embeddings == backend_of(lacking).shapes.lengths[-1]


# The program.


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "tools/serve.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "token", "words"),
    [
        (("--host=0.0.0.0",), None, "reached by other machines, so requests must bear a token"),
        (("--host=0.0.0.0",), " ", "--token: it must be of ASCII letters, not empty"),
        (("--host=0.0.0.0",), "secret ", "and without spaces at its ends"),
        (("--batches=1,0",), None, "--batches: '1,0' must be whole numbers of at least 1"),
    ],
)
def test_mistakes_on_the_command_line_are_sentences(arguments, token, words):
    done = call("--model=nowhere", *arguments, **({} if token is None else {"ALBERT_TOKEN": token}))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told():
    with contextlib.closing(server.claim("127.0.0.1", 0)) as taken:
        taken.listen()
        with pytest.raises(RunError, match="cannot be listened on: Address already in use"):
            server.claim("127.0.0.1", taken.getsockname()[1])
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "x")] == [
        *[True] * 3,
        *[False] * 2,
    ]


@pytest.mark.slow
def test_the_program_serves_until_sigterm_and_leaves_with_0(tmp_path, vocabulary):
    weights = random_weights(**SIZES)
    weights.tokenizer = Tokenizer(vocabulary)
    formats.write(weights, tmp_path / "m", "huggingface")
    arguments = ("--port=0", "--batches=1,2", "--lengths=16", "--abilities=encode")
    with subprocess.Popen(
        [sys.executable, "tools/serve.py", f"--model={tmp_path / 'm'}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.match(r"http://127\.0\.0\.1:(\d+) says", line):
                    break
            assert sum("compiled encode" in line for line in lines) == 4
            port = int(found[1])
            pool, futures = asking(port, 8, {"texts": ["river " * 20] * 16})
            wait_until(lambda: futures[0].done())
            process.send_signal(signal.SIGTERM)
            # A connection that was not accepted yet is closed by the system.
            answered = [f.result(WAIT)[0] for f in futures if f.exception(WAIT) is None]
            assert set(answered) == {200}
            pool.shutdown()
            assert process.wait(WAIT) == 0
            assert process.stdout.read() == "Stopped.\n"
        finally:
            process.kill()
            process.wait()
