"""LiteRT files beside the model in JAX: what they compute, what they weigh, and what is refused."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import albert
from albert.checkpoints import CheckpointError
from albert.export import check, export, interface, litert
from albert.interop import formats
from albert.interop.folders import open_vocabulary
from exports import HEADS, SHARINGS, SIZES, VARIANTS, by_jax, read_lines, rows, tuned
from models import random_weights
from runs import ROOT
from texts import VOCABULARY

schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="pip install -r requirements-litert.txt"
)
from albert.export.litert.model import build  # noqa: E402


def written(model, tmp_path, precision="float32", lengths=(64,), batch=1):
    """The file of a model, and a function that runs it."""
    options = interface.Options(lengths=lengths, batch=batch)
    path = litert.write(model, tmp_path, precision, options)
    return path, litert.runner(path, threads=1)


def hold(model, run, inputs, atol=1e-5, cuts=()):
    """Outputs are JAX's, but where there is padding; so they are where rows and places are cut."""
    whole = by_jax(model, inputs)
    for count, length in ((*inputs[0].shape,), *cuts):
        cut = [row[:count, :length] for row in inputs]
        real = cut[1].astype(bool)
        for name, value in run(*cut).items():
            ours = np.asarray(whole[name])[:count]
            if ours.ndim == 3:
                assert value.shape == (count, length, ours.shape[2])
                ours, value = ours[:, :length][real], value[real]
            np.testing.assert_allclose(value, ours, atol=atol, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("changes", [v for v in VARIANTS if "positions" not in v], ids=str)
def test_a_file_computes_what_the_model_does(changes, tmp_path):
    model = interface.asked(
        random_weights(**{**SIZES, **changes}), ("mlm", "sop", "hidden", "sentence")
    )
    _, run = written(model, tmp_path, lengths=(16, 64))
    inputs = rows(5, 64)
    inputs[1][:3, 9:] = 0
    # What is shorter is padded to the next length, and cut again.
    hold(model, run, inputs, cuts=((3, 9), (1, 16), (2, 17)))


@pytest.mark.parametrize("depth", [2, 12, 48])
@pytest.mark.parametrize("changes", SHARINGS, ids=str)
def test_every_weight_is_in_the_file_once(changes, depth):
    if changes["sharing"] in ("sandwich", "cycle_reversed:3") and depth < 3:
        pytest.skip("needs three layers")
    sizes = {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 500}
    weights = random_weights(num_hidden_layers=depth, **sizes, **changes)
    model = interface.asked(weights, ("mlm",))
    parameters = sum(value.nbytes for value in model.params.values())
    lengths = (8, 16, 32)
    whole, quarter = (build(model, is_int8, 1, lengths) for is_int8 in (False, True))
    # A model, a condition and a body for each length, as many operators however deep it is.
    assert len(whole.graphs) == 9
    assert sum(len(graph.subgraph.operators) for graph in whole.graphs) < 3 * 130
    assert parameters < whole.weight_bytes < parameters + 2000
    assert quarter.weight_bytes < 0.6 * parameters
    for file in (whole, quarter):
        assert len(file.written({})) < file.weight_bytes + 3 * 20000


def test_numbers_lie_at_addresses_that_runtimes_ask_for(tmp_path):
    model = interface.asked(random_weights(**SIZES), ("mlm",))
    for precision in litert.PRECISIONS:
        path, _ = written(model, tmp_path, precision)
        file = schema.Model.GetRootAs(path.read_bytes())
        tables = (file.Buffers(n)._tab for n in range(file.BuffersLength()))
        begins = [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]
        assert len(begins) > 20
        assert not any(begin % 16 for begin in begins)


@pytest.mark.parametrize("sharing", ["all", "groups:2", "none"])
def test_int8_is_near(sharing, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "embedding_size": 32, **SIZES}
    model = interface.asked(random_weights(**sizes, sharing=sharing), ("hidden", "mlm"))
    _, run = written(model, tmp_path, "int8")
    report = check.compare(model, run, [rows(4, 40)])
    assert report.cosine > 0.997
    assert report.difference > 1e-4  # it is another program than float32's


@pytest.mark.parametrize(("fields", "head"), HEADS, ids=str)
def test_heads_of_fine_tuned_models(fields, head, tmp_path):
    weights = tuned(fields)
    if fields.get("classifier", {}).get("kind") == "choice":
        with pytest.raises(CheckpointError, match="chooses among options, whose number"):
            export(weights, tmp_path / "out", "litert")
        assert not list(tmp_path.iterdir())
        return
    if head == "span":
        rotary = random_weights(positions="rotary", **SIZES)
        with pytest.raises(CheckpointError, match="positions are rotary, which litert does not"):
            export(rotary, tmp_path / "out", "litert")
    if head == "conditional_span":
        with pytest.raises(CheckpointError, match="follows the likeliest starts"):
            export(weights, tmp_path / "out", "litert")
        return
    manifest = export(weights, tmp_path / "out", "litert", lengths=(16, 64))
    assert list(manifest["heads"]) == [head]
    report = manifest["checks"]["model.tflite"]["float32"]
    assert report["difference"] < 1e-5
    assert report["tokens"] > 500


@pytest.mark.parametrize("exit", ["depth:2", "depth:4"])
def test_a_fixed_depth_has_a_shorter_loop(exit, tmp_path):
    fields = {"classifier": {"labels": 3, "kind": "classes"}, "exits": {"labels": 3}}
    model = interface.asked(tuned(fields, spread=0.6), exit=exit)
    _, run = written(model, tmp_path, batch=3)
    inputs = rows(5, 30)
    hold(model, run, inputs, atol=1e-4)
    assert run(*inputs)["exit_depth"].tolist() == [int(exit[-1])] * 5
    with pytest.raises(CheckpointError, match="litert holds an exit at a fixed depth"):
        export(tuned(fields), tmp_path / "out", "litert", exit="patience:2")


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooled"])
def test_sentence_vectors_are_of_what_was_trained(pooling, tmp_path):
    model = interface.asked(tuned({"sentence": {"pooling": pooling, "projection": True}}))
    _, run = written(model, tmp_path, batch=2)
    hold(model, run, rows(3, 12))


@pytest.fixture
def with_vocabulary(vocabulary):
    weights = random_weights(vocab_size=VOCABULARY, **SIZES)
    weights.tokenizer = open_vocabulary(vocabulary)
    return weights


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_lines_of_the_readme_run(batch, with_vocabulary, tmp_path):
    pytest.importorskip("tokenizers", reason="pip install tokenizers")
    folder = tmp_path / "out"
    manifest = export(with_vocabulary, folder, "litert", ("mlm",), ("float32", "int8"), batch=batch)
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert manifest["shapes"] == {"batch": batch, "lengths": [32, 64]}
    assert {"model.tflite", "model_int8.tflite", "tokenizer.json"} < set(manifest["files"])
    code = read_lines(folder)
    assert "model_int8.tflite" in code
    more = "print(outputs['logits'].shape)"
    without = "import sys\nassert not {'jax', 'flax', 'albert'} & {*sys.modules}, sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\n{more}\n{without}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert f"({batch}, 32, {VOCABULARY})" in found.stdout


BAD = [
    ({"lengths": (16, 65)}, "lengths is 16,65; the model has 64 positions"),
    ({"lengths": (32, 16)}, "lengths is 32,16; they must be from 3 on, each over the one before"),
    ({"lengths": (16, 16)}, "each over the one before"),
    ({"lengths": (2,)}, "lengths is 2; they must be from 3 on"),
    ({"batch": 0}, "batch is 0; a call has at least one row"),
    ({"fused": True}, "litert has no fused; it has lengths, batch"),
    ({"precisions": ("int4",)}, "no precision 'int4'; it has float32, int8"),
    ({"precisions": ("int8",), "least_cosine": 0.9999999}, "does not compute what the model does"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "message"), BAD, ids=[m for _, m in BAD])
def test_what_cannot_be_written_leaves_nothing(changes, message, tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        export(random_weights(**SIZES), tmp_path / "out", "litert", **changes)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name, *more: None if name == "ai_edge_litert" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(CheckpointError, match=r"pip install -r requirements-litert\.txt"):
        export(random_weights(**SIZES), tmp_path / "out", "litert")
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_be_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(litert, "_MOST_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="holds less than 2 GiB"):
        export(random_weights(**SIZES), tmp_path / "out", "litert")
    assert not list(tmp_path.iterdir())


def test_a_row_that_is_too_long_is_refused(tmp_path):
    model = interface.asked(random_weights(**SIZES), ("hidden",))
    _, run = written(model, tmp_path, lengths=(8, 16))
    with pytest.raises(CheckpointError, match="has no length of 17; its longest: 16"):
        run(*rows(1, 17))


@pytest.mark.slow
def test_the_command(with_vocabulary, tmp_path):
    formats.write(with_vocabulary, tmp_path / "model", "albert")
    command = [
        sys.executable,
        str(ROOT / "tools" / "export.py"),
        f"--input={tmp_path / 'model'}",
        "--output=out",
        "--format=litert",
        "--heads=sentence",
        "--int8",
    ]

    def called(*flags):
        return subprocess.run(
            [*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    wrong = called("--lengths=16,many")
    assert wrong.returncode == 2
    assert "--lengths: 'many' is no number" in wrong.stderr
    done = called("--lengths=16,48", "--batch=2")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["shapes"] == {"batch": 2, "lengths": [16, 48]}
    assert manifest["programs"] == {"int8": "model_int8.tflite"}


def test_a_loaded_model_exports_itself(with_vocabulary, tmp_path):
    formats.write(with_vocabulary, tmp_path / "model", "huggingface")
    model = albert.load(tmp_path / "model")
    model.export(tmp_path / "out", "litert", heads=("sentence",), lengths=(64,))
    run = litert.runner(tmp_path / "out/model.tflite")
    texts = ["one two three", "four"]
    vectors = model.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    inputs = model.tokenize(texts)
    found = run(*(inputs[name] for name in interface.INPUTS))["sentence_embedding"]
    np.testing.assert_allclose(found, vectors, atol=1e-5)
