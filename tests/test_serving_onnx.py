"""The service over ONNX Runtime: the answers of the model in JAX, and folders that are refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason="needs pip install -r requirements-serve.txt")
for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason="needs pip install -r requirements-export.txt")

from albert.checkpoints import CheckpointError
from albert.export import export
from albert.interop import saturation
from albert.interop.weights import PRETRAINED
from albert.runtime.digests import file_digest
from albert.runtime.fields import ConfigError
from albert.serving import onnx_backend
from albert.serving.backend import Shapes, row_of
from albert.serving.jax_backend import JaxBackend
from albert.serving.loading import open_backend
from albert.serving.onnx_backend import OnnxBackend
from services import HEADS, LIMITS, WAIT, ask, assert_alike, cases, made, serving

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(vocabulary):
    return made(vocabulary, PRETRAINED)


@pytest.fixture(scope="module")
def vectors(model, tmp_path_factory):
    """A folder that gives states and vectors, in both precisions."""
    folder = tmp_path_factory.mktemp("exported") / "vectors"
    precisions = ("float32", "int8")
    export(model._weights(), folder, "onnx", ("hidden", "sentence"), precisions, least_cosine=0.9)
    return folder


def opened(folder, **options):
    return OnnxBackend(folder, "tiny", (1, 4), (), LIMITS.top, **options)


# Which head of the export answers what `cases` asks.
_HEAD = {"fill_mask": "mlm", "encode": "hidden", "tag": "tokens"}
_HEAD |= {head: head for head in ("span", "conditional_span")}


@pytest.mark.parametrize(
    "kind",
    [
        *("fill_mask", "encode", "conditional_span"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("tag", "span", "classes", "choose", "number", "several")
        ),
    ],
)
def test_answers_are_those_of_the_model_in_jax(kind, vocabulary, model, tmp_path):
    tuned = made(vocabulary, HEADS) if kind in ("classes", "tag", "span") else None
    choosing = None
    if kind == "choose":
        choosing = made(vocabulary, {"classifier": {"labels": 1, "kind": "choice"}})
    other, asked = cases(kind, vocabulary, model, tuned, choosing)
    folder = tmp_path / "exported"
    export(other._weights(), folder, "onnx", (_HEAD.get(kind, "classifier"),))
    asked = [each for each in asked if each[1].get("pooling") != "pooled"]  # is not exported
    asked = asked * (1 + 8 // len(asked))
    with serving(opened(folder), window=0.05) as (port, _):
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda each: ask(port, each[0], each[1]), asked))
        for (status, content, _), (_, _, expected) in zip(found, asked, strict=True):
            assert status == 200, content
            assert_alike(content, expected)


def test_a_card_says_what_the_program_gives(vectors, model):
    backend = opened(vectors)
    theirs = JaxBackend(model, "tiny", (1, 4), (), LIMITS.top).card
    assert backend.precision == "int8"
    assert backend.card.abilities == ("encode",)
    assert (backend.card.poolings, backend.card.pooling) == (("mean", "cls", "unit"), "mean")
    assert backend.card.tokenizer.encode("the river") == theirs.tokenizer.encode("the river")
    for name in ("name", "positions", "vocab_size", "type_vocab_size", "kind"):
        assert getattr(backend.card, name) == getattr(theirs, name)
    assert backend.shapes == Shapes((1, 4), (24,))
    rows = [row_of([2, 20, 30, 3], [0] * 4), row_of([2, 21, 3], [0] * 3)]
    whole = opened(vectors, precision="float32")
    for precise, found in zip(
        whole.compute("encode", rows, (4, 24)),
        backend.compute("encode", rows, (4, 24)),
        strict=True,
    ):
        unit = precise["mean"] / np.linalg.norm(precise["mean"])
        np.testing.assert_allclose(precise["unit"], unit, atol=1e-6)
        assert 1e-6 < np.abs(precise["unit"] - found["unit"]).max() < 0.2  # int8 is another program
    assert backend.digest() != whole.digest() == opened(vectors, precision="float32").digest()
    with serving(backend) as (port, _):
        status, content, _ = ask(port, "/embed", {"texts": ["a"], "pooling": "pooled"})
        assert status == 422
        assert "'mean', 'cls' or 'unit'" in content["error"]
        assert ask(port, "/fill-mask", {"texts": ["[MASK]"]})[0] == 409


def test_scores_of_every_piece_are_not_all_kept_at_once(model, tmp_path, monkeypatch):
    export(model._weights(), tmp_path / "mlm", "onnx", ("mlm",))
    backend = opened(tmp_path / "mlm")
    rows = [row_of([2, 4, 20 + n, 4, 3], [0] * 5, positions=(1, 3)) for n in range(4)]
    wanted = backend.compute("fill_mask", rows, (4, 24))
    runs = []
    once = backend._computed
    monkeypatch.setattr(backend, "_computed", lambda *given: runs.append(1) or once(*given))
    monkeypatch.setattr(onnx_backend, "_SCORES_BYTES", 4 * 5 * 96 * 2)
    found = backend.compute("fill_mask", rows, (4, 24))
    assert len(runs) == 2
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-4)
        np.testing.assert_array_equal(one[1], other[1])
        assert (np.diff(one[0], axis=-1) <= 0).all()


def test_vectors_are_of_the_pooling_that_was_trained(vectors, tmp_path):
    cls = opened(changed(vectors, tmp_path / "cls", pooling="cls")).card
    assert (cls.poolings, cls.pooling) == (("mean", "cls", "unit"), "cls")
    pooled = opened(changed(vectors, tmp_path / "pooled", pooling="pooled")).card
    assert (pooled.poolings, pooled.pooling) == (("unit",), "unit")


def changed(folder, copy, **values):
    """A copy of a folder with other values in its manifest."""
    shutil.copytree(folder, copy)
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    return copy


def test_folders_that_are_damaged_or_of_another_format_are_refused(vectors, model, tmp_path):
    export(model._weights(), tmp_path / "hlo", "stablehlo", ("hidden",))
    with pytest.raises(CheckpointError, match=r"as stablehlo, which is not served"):
        open_backend(str(tmp_path / "hlo"), (1,), (16,))
    older = changed(vectors, tmp_path / "older", programs=None)
    with pytest.raises(CheckpointError, match=r"has no 'programs': .*older version"):
        opened(older)
    with pytest.raises(CheckpointError, match="is damaged: its model has no vocab_size"):
        opened(changed(vectors, tmp_path / "sizes", model={}))
    with pytest.raises(CheckpointError, match="gives sop, of which nothing is served"):
        opened(changed(vectors, tmp_path / "sop", heads={"sop": ""}))
    for name, file in (
        ("cut", "onnx/model_quantized.onnx"),
        ("letters", "spiece.model"),
        ("options", "tokenizer_config.json"),
    ):
        shutil.copytree(vectors, tmp_path / name)
        path = tmp_path / name / file
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(CheckpointError, match=f"{file} is damaged or was changed"):
            opened(tmp_path / name)
    (tmp_path / "cut" / "onnx/model_quantized.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"quantized.onnx is missing; manifest.json beside"):
        opened(tmp_path / "cut")
    (tmp_path / "cut" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a JSON file"):
        open_backend(str(tmp_path / "cut"), (1,), (16,))
    files = json.loads((vectors / "manifest.json").read_text())["files"]
    size, digest = file_digest(vectors / "README.md")
    files["onnx/model_quantized.onnx"] = {"bytes": size, "sha256": digest}
    text = changed(vectors, tmp_path / "text", files=files)
    shutil.copy(vectors / "README.md", text / "onnx/model_quantized.onnx")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot run it"):
        opened(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "has no int4 program; it has float32, int8"),
        ({"abilities": ["tag"]}, "cannot tag; it can encode"),
        ({"batches": ()}, "whole numbers of at least 1"),
        ({"dtype": "bfloat16"}, "--dtype: .* is an exported program"),
    ],
)
def test_what_a_folder_cannot_is_refused(vectors, options, words):
    arguments = {"batches": (1,), "lengths": (16,)} | options
    with pytest.raises((CheckpointError, ConfigError), match=words):
        open_backend(str(vectors), **arguments)


def test_8_bits_are_not_served_where_they_are_cut_off(vectors, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(vectors, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"weight_bits": 8}))
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    with pytest.raises(CheckpointError, match="have 8 bits; this CPU has no VNNI"):
        opened(folder)
    assert opened(folder, precision="float32").precision == "float32"


def test_precision_is_of_exported_folders_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"--precision: .* is not a folder"):
        open_backend(str(tmp_path), (1,), (16,), precision="int8")


def test_a_model_without_vocabulary_is_served_by_ids(model, tmp_path):
    weights = model._weights()
    weights.tokenizer = None
    export(weights, tmp_path / "none", "onnx", ("hidden",))
    with serving(opened(tmp_path / "none")) as (port, _):
        assert ask(port, "/embed", {"ids": [[2, 20, 3]]})[0] == 200
        status, content, _ = ask(port, "/embed", {"texts": ["a"]})
        assert status == 409
        assert "no vocabulary" in content["error"]


def test_the_program_starts_without_jax(vectors):
    """Importing jax fails there."""
    code = (
        "import runpy, sys\n"
        "sys.modules['jax'] = sys.modules['flax'] = None\n"
        f"sys.argv = ['serve.py', '--model={vectors}', '--port=0']\n"
        "runpy.run_path('tools/serve.py', run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            for line in process.stdout:
                if found := re.match(r"http://127\.0\.0\.1:(\d+) says", line):
                    break
            status, content, _ = ask(int(found[1]), "/embed", {"texts": ["the river"]})
            assert status == 200
            assert len(content["results"][0]) == 16
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0
        finally:
            process.kill()
