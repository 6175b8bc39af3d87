"""Semantic search: sentences with their lines, the index, what is refused, and the service."""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("usearch", reason="needs pip install -r requirements-search.txt")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="needs pip install -r requirements-serve.txt")

from albert.checkpoints import CheckpointError
from albert.data.sources import text_files
from albert.data.sources.base import SourceError
from albert.export import export
from albert.interop.weights import PRETRAINED
from albert.search import SearchError
from albert.search.index import Index, Vectors, build
from albert.search.sentences import Sentence, open_source, sentences_of
from albert.serving.app import make_app
from albert.serving.jax_backend import JaxBackend
from albert.serving.onnx_backend import OnnxBackend
from albert.serving.vectors import encoder, vectors_of
from services import LIMITS, ask, made, serving
from texts import write_text

ROOT = Path(__file__).resolve().parent.parent


# Sentences and their places.


def read(spec, **options):
    values = {"language": "en", "max_bad_share": 0.0} | options
    return list(sentences_of(open_source(str(spec), "text"), **values))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_sentence_has_the_line_that_it_stands_in(ending, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_files, "PART_BYTES", 300)  # several ranges of one file
    lines = [f"Line {n} of the file." if n % 5 else "" for n in range(1, 120)]
    opener = gzip.open if suffix else open
    for name in ("a", "b"):
        with opener(tmp_path / f"{name}.txt{suffix}", "wb") as file:
            file.write(b"\xef\xbb\xbf" + ending.join(lines).encode())
    assert bool(suffix) or len(open_source(str(tmp_path), "text").parts()) > 3
    found = read(tmp_path)
    expected = [n for n in range(1, 120) if n % 5]
    for name in ("a", "b"):
        of_file = [s for s in found if s.file == str(tmp_path / f"{name}.txt{suffix}")]
        assert [s.line for s in of_file] == expected
        assert [s.text for s in of_file] == [f"Line {n} of the file." for n in expected]


def test_paragraphs_are_split_and_json_lines_counted(tmp_path):
    (tmp_path / "p.txt").write_text("One is here. Two is there.\n\nThree, of Mr. Smith.\n")
    assert read(f"text:{tmp_path / 'p.txt'}") == [
        Sentence("One is here.", str(tmp_path / "p.txt"), 1),
        Sentence("Two is there.", str(tmp_path / "p.txt"), 1),
        Sentence("Three, of Mr. Smith.", str(tmp_path / "p.txt"), 3),
    ]
    records = [json.dumps({"text": "One is here.\nTwo."}), "", "{", json.dumps({"text": "Last."})]
    (tmp_path / "j.jsonl").write_text("\n".join(records))
    found = read(tmp_path / "j.jsonl", max_bad_share=0.5)
    assert [(s.text, s.line) for s in found] == [("One is here.", 1), ("Two.", 1), ("Last.", 4)]
    with pytest.raises(SourceError, match="1 of 3 records are bad"):
        read(tmp_path / "j.jsonl")
    with pytest.raises(SourceError, match="made of text files and JSON lines alone"):
        open_source("python-docs", "text")


# The index.

WIDTH = 16
VECTORS = Vectors("digest", "mean", WIDTH, "model", None)


def drawn(text):
    """A vector of a text, near to those of texts that begin alike."""
    group = np.random.default_rng(len(text.split()[0])).normal(size=WIDTH)
    return group + 0.3 * np.random.default_rng(int(text.split()[1])).normal(size=WIDTH)


def encode(texts):
    return np.array([drawn(text) for text in texts], np.float32)


def numbered(count):
    return [Sentence(f"{'x' * (n % 7 + 1)} {n} é", f"file{n % 3}", n + 1) for n in range(count)]


@pytest.mark.parametrize(
    ("precision", "least", "tolerance"),
    [("float32", 1.0, 1e-5), ("float16", 0.98, 2e-3), ("int8", 0.9, 2e-2)],
)
def test_an_index_finds_what_is_nearest(precision, least, tolerance, tmp_path):
    sentences = numbered(3000)  # more than are computed at once
    told = []
    count = build(tmp_path / "i", iter(sentences), encode, VECTORS, precision, told.append)
    assert count == sum(told) == 3000
    index = Index(tmp_path / "i")
    assert len(index) == 3000
    whole = encode([sentence.text for sentence in sentences])
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    exact_hits = approximate_hits = 0
    for number in range(0, 3000, 100):
        scores = unit @ unit[number]
        best = np.argsort(-scores)[:10]
        wanted = {sentences[n].text for n in best}
        for exact in (True, False):
            found = index.search(5 * whole[number], 10, exact)
            assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
            if exact:  # the graph, built by several threads, may miss even the sentence itself
                assert Sentence(*found[0][:3]) == sentences[number]
                assert found[0].score == pytest.approx(1, abs=tolerance)
            hits = len(wanted & {f.text for f in found})
            exact_hits, approximate_hits = (
                exact_hits + hits * exact,
                approximate_hits + hits * (not exact),
            )
    assert exact_hits >= least * 300
    assert approximate_hits >= (least - 0.03) * 300
    assert len(index.search(whole[0], 5000, exact=True)) == 3000


def test_an_index_is_whole_or_not_there(tmp_path):
    def broken():
        yield from numbered(5000)
        raise SourceError("the text ends")

    with pytest.raises(SourceError):
        build(tmp_path / "i", broken(), encode, VECTORS, "float32")
    with pytest.raises(SearchError, match="There is no sentence"):
        build(tmp_path / "i", [], encode, VECTORS, "float32")
    with pytest.raises(SearchError, match=r"file1, line 2: the model gives no vector .*'xx 1 é'"):
        build(
            tmp_path / "i",
            numbered(3),
            lambda texts: np.array([[1.0] * WIDTH, [0.0] * WIDTH, [np.nan] * WIDTH], np.float32),
            VECTORS,
            "float32",
        )
    assert not list(tmp_path.iterdir())
    build(tmp_path / "i", numbered(3), encode, VECTORS, "float32")
    with pytest.raises(CheckpointError, match="is there already"):
        build(tmp_path / "i", numbered(3), encode, VECTORS, "float32")


def test_what_is_no_index_or_damaged_or_of_another_model_is_refused(tmp_path):
    with pytest.raises(SearchError, match=r"is no index: it holds no manifest.json"):
        Index(tmp_path)
    build(tmp_path / "i", numbered(30), encode, VECTORS, "float16")
    index = Index(tmp_path / "i")
    index.check("digest", "model")
    with pytest.raises(SearchError, match="holds vectors of another model than other"):
        index.check("other digest", "other")
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    for values, words in (
        ({"kind": "a model"}, "something else than an index"),
        ({"version": 9}, "version 9; this program reads 1"),
        ({"vectors": {"digest": "digest"}}, "manifest.json is damaged"),
        ({"bytes_and_sha256": {}}, "manifest.json is damaged"),
    ):
        (tmp_path / "i" / "manifest.json").write_text(json.dumps(manifest | values))
        with pytest.raises(SearchError, match=words):
            Index(tmp_path / "i")
    (tmp_path / "i" / "manifest.json").write_text("{")
    with pytest.raises(SearchError, match="is not a JSON file"):
        Index(tmp_path / "i")
    (tmp_path / "i" / "manifest.json").write_text(json.dumps(manifest))
    for name in ("texts.bin", "vectors.usearch"):
        content = (tmp_path / "i" / name).read_bytes()
        (tmp_path / "i" / name).write_bytes(content[:-1])
        with pytest.raises(SearchError, match=f"{name} is missing, damaged or cut off"):
            Index(tmp_path / "i")
        (tmp_path / "i" / name).write_bytes(content)
    assert len(Index(tmp_path / "i")) == 30


# With a model: the program and the service.


@pytest.fixture(scope="module")
def exported(vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "vectors"
    weights = made(vocabulary, PRETRAINED)._weights()
    export(weights, folder, "onnx", ("hidden",), ("float32", "int8"), least_cosine=0.9)
    return folder


def call(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools/search_index.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    text = write_text(folder / "text.txt", 60)
    done = call(
        f"--model={exported}", f"--input={text}", f"--output={folder / 'i'}", "--precision=float32"
    )
    assert done.returncode == 0, done.stderr
    return folder / "i"


def opened(exported, precision="float32", abilities=None):
    return OnnxBackend(exported, "tiny", (1, 4), (), LIMITS.top, abilities, precision)


def test_the_program_builds_an_index_and_asks_it(built, exported):
    lines = (built.parent / "text.txt").read_text().split("\n")
    index = Index(built)
    assert len(index) == sum(bool(line) for line in lines)
    done = call(f"--output={built}", f"--ask={lines[3]}", "--exact", "--top=3")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(\S+)  (\S+):(\d+)  (.*)$", done.stdout, re.M)
    assert len(found) == 3
    assert float(found[0][0]) == pytest.approx(1, abs=2e-3)
    for _, file, line, text in found:
        assert file == str(built.parent / "text.txt")
        assert lines[int(line) - 1] == text
    done = call(f"--output={built}", "--ask=a", f"--model={exported}", "--precision=int8")
    assert done.returncode == 2
    assert "of another precision" in done.stderr
    assert "vectors as float32. Ask with that one" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model: needed to make an index"),
        (("--ask= ",), "--ask: the query is empty"),
        (("--ask=a", "--language=de"), "--language: only read when an index is made"),
        (("--model=m", "--input=x.txt", "--top=3"), "--top: only read with --ask"),
        (("--model=m", "--input=x.txt", "--language=english"), "did you mean 'en'"),
        (("--model=m", "--input=nowhere.txt"), "There is no file nowhere.txt"),
        (("--ask=a",), "is no index"),
    ],
)
def test_mistakes_are_sentences(arguments, words, tmp_path):
    done = call(f"--output={tmp_path / 'i'}", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "i").exists()


def test_flags_are_named_as_the_program_has_them(exported, tmp_path):
    (tmp_path / "j.jsonl").write_text('{"body": "a"}\n')
    done = call(
        f"--model={exported}", f"--input={tmp_path / 'j.jsonl'}", f"--output={tmp_path / 'i'}"
    )
    assert done.returncode == 2
    assert "name the field that holds it with --text_field" in done.stderr
    assert "1 of 1 records are bad, which is more than --max_bad_share 0 allows" in done.stderr
    assert "or raise --max_bad_share to leave" in done.stderr
    assert not (tmp_path / "i").exists()


def test_its_benchmark_runs(built, tmp_path):
    text = write_text(tmp_path / "other.txt", 5, seed=9)
    done = subprocess.run(
        [sys.executable, "benchmarks/search.py", f"--index={built}", f"--input={text}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recall"] > 0.9
    assert found["milliseconds"].keys() == {"vector", "approximate", "exact"}


def test_the_name_of_a_file_need_not_be_utf8(exported, tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / "in" / name).write_text("The river runs.\n")
    folder = tmp_path / "index"
    arguments = (
        f"--model={exported}",
        f"--input={tmp_path / 'in'}",
        f"--output={folder}",
        "--precision=float32",
    )
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    with serving(opened(exported), index=Index(folder)) as (port, _):
        status, content, _ = ask(port, "/search", {"query": "river", "top": 1})
    assert status == 200, content
    assert content["results"][0]["file"].endswith(r"caf\udce9.txt")


def test_the_service_searches_an_index(built, exported):
    backend = opened(exported)
    index = Index(built)
    with serving(backend, index=index) as (port, _):
        query = (built.parent / "text.txt").read_text().split("\n")[0]
        for exact in (True, False):
            status, content, _ = ask(port, "/search", {"query": query, "exact": exact, "top": 4})
            assert status == 200, content
            wanted = index.search(encoder(backend)([query])[0], 4, exact)
            assert [each["text"] for each in content["results"]] == [f.text for f in wanted]
            assert content["results"][0]["text"] == query
            assert content["results"][0]["line"] == 1
            assert content["cut"] == []
        assert ask(port, "/search", {"query": "river " * 40})[1]["cut"] == ["query"]
        for body, words in (
            ({}, "query is missing"),
            ({"query": ""}, "at least 1 character"),
            ({"query": "a", "top": 0}, "greater than or equal to 1"),
            ({"query": "a", "exact": "yes"}, "valid boolean"),
        ):
            status, content, _ = ask(port, "/search", body)
            assert status == 422
            assert words in content["error"]
        page = ask(port, "/search")
        assert page[0] == 200
        assert b'type="search"' in page[1]
        assert b'id="token"' not in page[1]
        assert not re.search(rb"(src|href)=\"?(https?:)?//", page[1])
        assert page[2]["Content-Security-Policy"].startswith("default-src 'none'")
        assert b'href="search"' in ask(port, "/")[1]
        assert b"POST /search" in ask(port, "/docs")[1]
    with serving(backend) as (port, _):
        assert ask(port, "/search", {"query": "a"})[0] == 404
        assert b'href="search"' not in ask(port, "/")[1]


def test_a_page_needs_no_token_and_a_query_does(built, exported):
    with serving(opened(exported), token="a-secret", index=Index(built)) as (port, _):
        status, page, _ = ask(port, "/search")
        assert status == 200
        assert b'id="token"' in page
        assert ask(port, "/search", {"query": "a"})[0] == 401
        right = {"Authorization": "Bearer a-secret"}
        assert ask(port, "/search", {"query": "a"}, **right)[0] == 200


def test_vectors_of_a_model_in_jax(vocabulary):
    model = made(vocabulary, PRETRAINED)
    backend = JaxBackend(model, "tiny", (4,), (), 5)
    texts = ["the river", "a small bright garden", "wheel", "river " * 40, "the bridge"]
    cut: list[int] = []
    with pytest.warns(UserWarning, match="1 of 5 texts are cut"):
        expected = model.encode(texts)
    np.testing.assert_allclose(encoder(backend, cut.append)(texts), expected, atol=1e-5)
    assert cut == [1]
    told = vectors_of(backend, "here")
    assert told._replace(digest="") == Vectors("", "mean", 16, "here", None)
    other = JaxBackend(made(vocabulary, PRETRAINED), "other", (1,), (16,), 5)
    assert other.digest() == backend.digest()
    kernel = other.model.params["encoder"]["layers"]["output"]["kernel"]
    other.model.params["encoder"]["layers"]["output"]["kernel"] = kernel.at[0, 0, 0].add(1e-6)
    assert other.digest() != backend.digest()
    other.card = dataclasses.replace(other.card, tokenizer=None)
    with pytest.raises(SearchError, match="other has no vocabulary"):
        vectors_of(other, "here")


def test_a_service_of_another_model_refuses_the_index(built, exported):
    with pytest.raises(SearchError, match="vectors of another model than tiny"):
        make_app(opened(exported, "int8"), LIMITS, index=Index(built))
    backend = opened(exported)
    assert vectors_of(backend, "x").digest == Index(built).vectors.digest
    backend.card = backend.card.__class__(**vars(backend.card) | {"abilities": ("fill_mask",)})
    with pytest.raises(SearchError, match="which tiny is not asked for: it has fill_mask"):
        make_app(backend, LIMITS, index=Index(built))
