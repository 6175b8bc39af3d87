"""Folders for other programs: ONNX graphs and StableHLO beside the model in JAX, what they weigh,
and what is refused."""

import itertools
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import albert
from albert.checkpoints import CheckpointError
from albert.export import check, export, interface, stablehlo
from albert.export import onnx as onnx_format
from albert.export.quantised import quantised
from albert.interop import exported, formats, saturation
from albert.interop.exported import CONDITIONAL
from albert.interop.folders import open_vocabulary
from albert.interop.saturation import saturates
from albert.interop.weights import Weights, stacked
from albert.models.encoder import Albert
from albert.models.heads import BEAMS, outside_of_paragraph
from albert.train.evaluate_program import in_place_of
from exports import HEADS, SHARINGS, SIZES, VARIANTS, by_jax, read_lines, rows, tuned
from models import random_weights
from runs import ROOT
from texts import VOCABULARY

onnx = pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
from albert.export.onnx.model import build  # noqa: E402
from albert.export.onnx.products import Float32, Int4, Int8  # noqa: E402


def written(model, products, tmp_path, fused=False):
    """The graph and a function that runs it."""
    graph = build(model, products, fused, {})
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return graph, onnx_format.runner(path, threads=1)


@pytest.mark.parametrize("fused", [False, True], ids=["standard", "fused"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_graph_computes_what_the_model_does(changes, fused, tmp_path):
    model = interface.asked(
        random_weights(**{**SIZES, **changes}), ("mlm", "sop", "hidden", "sentence")
    )
    _, run = written(model, Float32(), tmp_path, fused)
    whole = rows(9, 64)
    compute, params = jax.jit(interface.function(model)), unflatten_dict(model.params, sep="/")
    for count, length in ((9, 64), (1, 64), (4, 17), (1, 1)):
        # JAX gets all of it, what is cut from the graph's input as padding: compiled once.
        padded = [whole[0], whole[1] * (np.arange(64) < length), whole[2]]
        wanted = compute(params, *padded)
        cut = [row[:count, :length] for row in whole]
        real = cut[1].astype(bool)
        for name, value in run(*cut).items():
            ours = np.asarray(wanted[name])[:count]
            if ours.ndim == 3:  # what stands at padding, nobody uses
                ours, value = ours[:, :length][real], value[real]
            np.testing.assert_allclose(value, ours, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("depth", [2, 12, 24, 48])
@pytest.mark.parametrize("changes", SHARINGS, ids=str)
def test_every_weight_is_in_the_file_once(changes, depth, tmp_path):
    if changes["sharing"] in ("sandwich", "cycle_reversed:3") and depth < 3:
        pytest.skip("needs three layers")
    sizes = {"hidden_size": 32, "intermediate_size": 128, "vocab_size": 500}
    weights = random_weights(num_hidden_layers=depth, **sizes, **changes)
    model = interface.asked(weights, ("mlm",))
    parameters = sum(value.nbytes for value in model.params.values())
    whole, quarter = (build(model, products, False, {}) for products in (Float32(), Int8()))
    names = [tensor.name for tensor in whole.graph.initializer]
    assert len(set(names)) == len(names)
    size = sum(len(tensor.raw_data) for tensor in whole.graph.initializer)
    assert parameters < size <= 1.01 * parameters
    # Nothing in the body, where runtimes keep a second copy.
    (loop,) = (node for node in whole.graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    assert not body.initializer
    # A node for each operator of one layer, however deep the model is.
    assert len(whole.graph.node) + len(body.node) < 130
    size = sum(len(tensor.raw_data) for tensor in quarter.graph.initializer)
    assert size < 0.4 * parameters


@pytest.mark.parametrize(
    ("products", "least"),
    [(Int8(bits=8), 0.997), (Int8(8, per_token=True), 0.997), (Int8(), 0.99)],
    ids=["tensor", "token", "7 bits"],
)
def test_rounded_models_are_near(products, least, tmp_path):
    if products.bits == 8 and saturates():
        pytest.skip(saturation.WHY)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "embedding_size": 32, **SIZES}
    weights = random_weights(**sizes, sharing="groups:2")
    model = interface.asked(weights, ("hidden", "mlm"))
    _, run = written(model, products, tmp_path)
    report = check.compare(model, run, [rows(4, 40)])
    assert report.cosine > least
    assert report.difference > 1e-4  # it is another program than float32's


def test_it_is_known_where_sums_of_8_bits_are_cut_off():
    from onnx import TensorProto, helper

    def graph(rows, inner, columns):
        kinds = ("a", TensorProto.UINT8, [rows, inner]), ("b", TensorProto.INT8, [inner, columns])
        product = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
            "g",
            [helper.make_tensor_value_info(*kind) for kind in kinds],
            [helper.make_tensor_value_info("c", TensorProto.INT32, [rows, columns])],
        )
        opset = [helper.make_opsetid("", 10)]
        return helper.make_model(product, opset_imports=opset, ir_version=8).SerializeToString()

    assert graph(1, 2, 1) == saturation._GRAPH
    # What products of a model's size come to on this CPU.
    rng = np.random.default_rng(0)
    session = pytest.importorskip("onnxruntime").InferenceSession(graph(9, 64, 33))
    a = rng.integers(200, 256, (9, 64)).astype(np.uint8)
    for most in (63, 127):
        b = rng.integers(most - 20, most + 1, (64, 33)).astype(np.int8)
        right = np.array_equal(
            session.run(None, {"a": a, "b": b})[0], a.astype(int) @ b.astype(int)
        )
        assert right == (most == 63 or not saturates())


def test_where_8_bits_are_cut_off_they_are_refused(with_vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    with pytest.raises(CheckpointError, match="cannot be checked here: this CPU has no VNNI"):
        export(with_vocabulary, tmp_path / "out", "onnx", (), ("int8",), weight_bits=8)
    assert not list(tmp_path.iterdir())
    manifest = export(with_vocabulary, tmp_path / "out", "onnx", (), ("float32", "int8"))
    assert manifest["weight_bits"] == 7
    exported.read(tmp_path / "out").program("int8")
    # Folders of another machine, and of before the field was there.
    for older in (
        {**manifest, "weight_bits": 8},
        {k: manifest[k] for k in manifest if k != "weight_bits"},
    ):
        (tmp_path / "out/manifest.json").write_text(json.dumps(older))
        found = exported.read(tmp_path / "out")
        found.program("float32")
        with pytest.raises(CheckpointError, match="have 8 bits; this CPU has no VNNI"):
            found.program("int8")
    monkeypatch.setattr(saturation, "saturates", lambda: False)
    found.program("int8")


def test_a_folder_of_8_bits_says_where_it_is_right(with_vocabulary, tmp_path):
    if saturates():
        pytest.skip(saturation.WHY)
    export(with_vocabulary, tmp_path / "out", "onnx", (), ("int8",), weight_bits=8)
    assert "right on ARM and on x86 with VNNI" in (tmp_path / "out/README.md").read_text()


def test_int8_of_each_column_by_itself():
    """A column that is small beside the others keeps its digits."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(1, 64, 8)).astype(np.float32) * 10.0 ** np.arange(-6, 2)
    for bits in (7, 8):
        whole, scale = quantised(stack, 1, bits)
        most = 2 ** (bits - 1) - 1
        assert whole.dtype == np.int8
        assert (np.abs(whole).max(1) == most).all()
        assert (np.abs(whole * scale[:, None] - stack) <= scale[:, None] * 0.5001).all()
    zeros, scale = quantised(np.zeros((1, 4, 2), np.float32), 1)
    assert not zeros.any()
    assert (scale == 1).all()


def of_4_bits(stack):
    """What MatMulNBits makes of the numbers of a stack, [S, K, N], read by hand."""
    packed, scale = Int4()._packed(stack)
    sets, rows, columns = stack.shape
    found = np.zeros_like(stack)
    for s, n, k in itertools.product(range(sets), range(columns), range(rows)):
        block, at = divmod(k, 32)
        number = int(packed[s, n, block, at // 2]) >> 4 * (at % 2) & 15
        found[s, k, n] = scale[s, n * packed.shape[2] + block] * (number - 8)
    return found


def test_int4_of_blocks_of_a_column():
    """Two sets of kernels whose height is no multiple of a block, and a column of zeros."""
    stack = np.random.default_rng(0).normal(size=(2, 80, 5)).astype(np.float32)
    stack[1, :, 2] = 0
    packed, scale = Int4()._packed(stack)
    assert (packed.dtype, packed.shape, scale.shape) == (np.uint8, (2, 5, 3, 16), (2, 15))
    assert (packed[1, 2] == 0x88).all()
    steps = np.abs(scale).reshape(2, 5, 3).repeat(32, 2)[:, :, :80].transpose(0, 2, 1)
    off = np.abs(of_4_bits(stack) - stack)
    # Only what lies over 7 steps, on the side that is not the furthest, is cut off.
    assert (off <= np.maximum(0.5001 * steps, np.abs(stack) - 6.9999 * steps)).all()
    assert off.max() > 0.01


def test_int4_computes_what_its_numbers_say(tmp_path):
    class Unpacked(Int8):
        def product(self, graph, x, name, stack, pick):
            return Float32().product(graph, x, name, of_4_bits(stack), pick)

    sizes = {"hidden_size": 64, "intermediate_size": 256, "embedding_size": 32, **SIZES}
    model = interface.asked(random_weights(**sizes, sharing="groups:2"), ("hidden",))
    inputs = rows(4, 40)
    states = []
    for products in (Int4(), Unpacked()):
        _, run = written(model, products, tmp_path)
        states.append(run(*inputs)["last_hidden_state"][inputs[1].astype(bool)])
    norms = [np.linalg.norm(x, axis=-1) for x in states]
    assert ((states[0] * states[1]).sum(-1) / (norms[0] * norms[1])).min() > 0.999
    assert (norms[0] != norms[1]).any()


@pytest.mark.parametrize(("fields", "head"), HEADS, ids=str)
@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_heads_of_fine_tuned_models(fields, head, format, tmp_path):
    manifest = export(tuned(fields), tmp_path / "out", format)
    assert list(manifest["heads"]) == [head]
    (report,) = (checks["float32"] for checks in manifest["checks"].values())
    assert report["difference"] < 1e-5
    assert report["tokens"] > 500
    names = {"span": ["start_logits", "end_logits"], "conditional_span": [*CONDITIONAL]}
    assert manifest["outputs"] == names.get(head, ["logits"])


@pytest.mark.parametrize(("fields", "head"), HEADS, ids=str)
def test_a_program_stands_in_for_the_model_of_a_task(fields, head, tmp_path):
    weights = tuned(fields, sharing="groups:2")
    _, run = written(interface.asked(weights), Float32(), tmp_path)
    albert_ = Albert(weights.config, tuple(fields), fields)
    batch = dict(zip(interface.INPUTS, rows(5, 20), strict=True))
    stands_in = in_place_of(SimpleNamespace(model=albert_), run)
    found = jax.jit(stands_in)(batch)[head]
    params = unflatten_dict(stacked(weights.config, weights.params), sep="/")
    mask = outside_of_paragraph(batch["attention_mask"], batch["token_type_ids"])
    inputs = {"conditional_span": {"mask": mask}}
    wanted = albert_.apply({"params": params}, *batch.values(), head_inputs=inputs).logits[head]
    if head == "conditional_span":
        assert found.keys() == wanted.keys()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        real = batch["attention_mask"].astype(bool) if theirs.ndim == 3 else slice(None)
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


EXITS = [
    ("patience:2", "classes", {"num_hidden_layers": 9}),
    ("patience:1", "classes", {"sharing": "none"}),
    ("confidence:0.7", "classes", {"sharing": "groups:2", "per_layer_norm": True}),
    ("depth:3", "classes", {}),
    ("patience:1", "several", {}),
    ("confidence:0.6", "several", {}),
    ("patience:1:0.5", "number", {}),
]


@pytest.mark.parametrize(("exit", "kind", "changes"), EXITS, ids=str)
def test_rows_leave_a_graph_where_they_leave_the_model(exit, kind, changes, tmp_path):
    labels = 1 if kind == "number" else 3
    fields = {"classifier": {"labels": labels, "kind": kind}, "exits": {"labels": labels}}
    model = interface.asked(tuned(fields, spread=0.6, **changes), exit=exit)
    assert model.outputs == ("logits", "exit_depth")
    inputs = rows(12, 30)
    wanted = by_jax(model, inputs)
    for fused in (False, True):
        graph, run = written(model, Float32(), tmp_path, fused)
        onnx.checker.check_model(graph, full_check=not fused)
        found = run(*inputs)
        # Large weights, so that depths differ; they enlarge rounding too.
        np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4, rtol=1e-4)
        assert found["exit_depth"].tolist() == wanted["exit_depth"].tolist()
    assert len({*found["exit_depth"].tolist()}) > (exit != "depth:3")
    # A call with one row gives what a row among others gets.
    alone = run(*(row[5:6] for row in inputs))
    np.testing.assert_allclose(alone["logits"], wanted["logits"][5:6], atol=1e-4, rtol=1e-4)
    size = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    assert size <= 1.01 * sum(value.nbytes for value in model.params.values()) + 200


@pytest.fixture
def with_vocabulary(vocabulary) -> Weights:
    weights = random_weights(vocab_size=VOCABULARY, **SIZES)
    weights.tokenizer = open_vocabulary(vocabulary)
    return weights


def test_a_folder_is_all_that_a_program_needs(with_vocabulary, tmp_path):
    folder = tmp_path / "out"
    manifest = export(with_vocabulary, folder, "onnx", (), ("float32", "int8"))
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        "README.md",
        "config.json",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name, facts in manifest["files"].items():
        assert (folder / name).stat().st_size == facts["bytes"]
        assert (folder / name).stat().st_mode & 0o044 == 0o044  # others may read it
    options = json.loads((folder / "tokenizer_config.json").read_text())
    # Under another name transformers.js drops the token types of pairs.
    assert options["tokenizer_class"] == "AlbertTokenizer"
    # A graph keeps who may be predicted.
    assert manifest["outputs"] == ["logits"]
    onnx.checker.check_model(str(folder / "onnx/model.onnx"), full_check=True)


def ran_by_its_readme(folder, more):
    """What the README's lines of Python print in the folder, with `more` behind them."""
    without = "import sys\nassert not {'flax', 'albert'} & {*sys.modules}, sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", f"{read_lines(folder)}\n{more}\n{without}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_the_lines_of_the_readme_run(format, with_vocabulary, tmp_path):
    pytest.importorskip("tokenizers", reason="pip install tokenizers")
    folder = tmp_path / "out"
    export(with_vocabulary, folder, format, ("mlm",))
    more = "print(logits.shape)" if format == "onnx" else "print(outputs['logits'].shape)"
    assert re.search(rf"\(1, \d+, {VOCABULARY}\)", ran_by_its_readme(folder, more))


def test_the_lines_run_where_a_row_may_not_be_short(tmp_path):
    weights = tuned({"conditional_span": {"dropout": 0.0, "threshold": 0.0}}, spread=0.02)
    export(weights, tmp_path / "out", "stablehlo")
    text = (tmp_path / "out/README.md").read_text()
    assert f"L from {BEAMS} to 64" in text
    assert "(1, 5" in ran_by_its_readme(
        tmp_path / "out", "print({k: v.shape for k, v in outputs.items()})"
    )


def test_javascript_is_shown_where_a_pipeline_gives_what_the_model_means():
    def shown(weights, *heads):
        return onnx_format.usage(
            interface.asked(weights, heads), {"float32": "onnx/model.onnx"}, interface.Options()
        )

    fields = {"labels": 1, "dropout": 0.0}
    assert "javascript" not in shown(tuned({"classifier": {**fields, "kind": "choice"}}))
    number = shown(tuned({"classifier": {**fields, "kind": "number"}}))
    assert "pipeline" not in number
    assert "console.log(logits.data)" in number
    assert "text-classification" in shown(tuned({"classifier": {**fields, "labels": 3}}, "abc"))
    for pooling in ("mean", "cls"):
        vectors = shown(tuned({"sentence": {"pooling": pooling}}), "hidden")
        assert f'pooling: "{pooling}", normalize: true' in vectors
    assert "javascript" not in shown(tuned({"sentence": {"pooling": "pooled"}}), "hidden")


def test_stablehlo_is_small_and_free_in_batch_and_length(tmp_path):
    sizes = []
    for depth in (2, 24):
        weights = random_weights(num_hidden_layers=depth, max_position_embeddings=64)
        folder = tmp_path / str(depth)
        manifest = export(weights, folder, "stablehlo", ("mlm",))
        sizes.append(manifest["files"][stablehlo.PROGRAM]["bytes"])
    assert max(sizes) < 65536
    assert abs(sizes[0] - sizes[1]) < 1000
    exported = jax.export.deserialize(bytearray((folder / stablehlo.PROGRAM).read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    model, run = interface.asked(weights, ("mlm",)), stablehlo.runner(folder / stablehlo.PROGRAM)
    inputs = rows(2, 30)
    np.testing.assert_array_equal(run(*inputs)["logits"], by_jax(model, inputs)["logits"])


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_a_folder_of_a_model_that_is_left_early(format, tmp_path):
    fields = {"classifier": {"labels": 2, "kind": "classes"}, "exits": {"labels": 2}}
    weights = tuned(fields, labels=("no", "yes"))
    precisions = ("float32", "int8") if format == "onnx" else ("float32",)
    manifest = export(weights, tmp_path / "out", format, (), precisions, exit="patience:1")
    assert manifest["outputs"] == ["logits", "exit_depth"]
    assert manifest["exit"] == "patience:1"
    report = next(iter(manifest["checks"].values()))["float32"]
    assert report["difference"] < 1e-5
    assert report["tokens"] > 500
    assert "A row leaves early, by patience:1" in (tmp_path / "out/README.md").read_text()
    if format == "stablehlo":
        model = interface.asked(weights, exit="patience:1")
        inputs = rows(5, 20)
        found = stablehlo.runner(tmp_path / "out" / stablehlo.PROGRAM)(*inputs)
        wanted = by_jax(model, inputs)
        np.testing.assert_array_equal(found["exit_depth"], wanted["exit_depth"])
        np.testing.assert_array_equal(found["logits"], wanted["logits"])
        assert manifest["files"][stablehlo.PROGRAM]["bytes"] < 65536
        return
    with pytest.raises(CheckpointError, match="Ask for --heads=classifier alone"):
        interface.asked(weights, ("classifier", "sentence"), exit="patience:1")
    with pytest.raises(CheckpointError, match="the patience must be from 1 to 3"):
        interface.asked(weights, exit="patience:4")
    with pytest.raises(CheckpointError, match="it must be patience:K"):
        interface.asked(weights, exit="soon")


BAD = [
    ({"exit": "patience:1"}, "no classifiers on the depths before the last"),
    ({"heads": ("classifier",)}, "has no classifier_head"),
    ({"heads": ("nothing",)}, "no head 'nothing'; there is hidden, sentence, mlm"),
    ({"heads": ("hidden", "hidden")}, "name an output alike, last_hidden_state"),
    ({"format": "tflite"}, "no format 'tflite'; there is onnx, stablehlo, litert"),
    ({"precisions": ("int3",)}, "no precision 'int3'; it has float32, int8, int4"),
    ({"format": "stablehlo", "precisions": ("int8",)}, "no precision 'int8'"),
    ({"format": "stablehlo", "fused": True}, "stablehlo has no fused; it has no options"),
    ({"lengths": (32,)}, "onnx has no lengths; it has fused, per_token, weight_bits"),
    ({"per_token": True}, "per_token is an option of int8, which is not asked for"),
    ({"precisions": ("int8",), "weight_bits": 3}, "weight_bits is 3"),
    ({"precisions": ("int8",), "least_cosine": 0.9999999}, "With per_token (--per_token)"),
    ({"check_text": "missing"}, "cannot be read"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[m for _, m in BAD])
def test_what_cannot_be_written_leaves_nothing(changes, message, tmp_path):
    arguments = {"format": "onnx", **changes}
    if "check_text" in arguments:
        arguments["check_text"] = tmp_path / "missing.txt"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        export(random_weights(**SIZES), tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        export(random_weights(**SIZES), tmp_path / "out", "onnx")


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooled"])
def test_sentence_vectors_are_of_what_was_trained(pooling, tmp_path):
    heads = {"sentence": {"pooling": pooling, "projection": True}}
    weights = tuned(heads)
    model = interface.asked(weights)
    assert model.heads == ("sentence",)
    assert not any("sentence_head" in path for path in model.params)  # of training alone
    _, run = written(model, Float32(), tmp_path)
    inputs = rows(3, 12)
    np.testing.assert_allclose(
        run(*inputs)["sentence_embedding"], by_jax(model, inputs)["sentence_embedding"], atol=1e-5
    )


@pytest.mark.parametrize("length", [3, 5, 30])
@pytest.mark.parametrize("products", [Float32(), Int8()], ids=lambda p: type(p).__name__)
def test_beams_of_squad_2(length, products, tmp_path):
    """Of rows shorter than there are beams too; places where no answer may be are never among the
    likely ones, and in int8 the likeliest start stays where nothing comes near it."""
    model = interface.asked(tuned({"conditional_span": {}}, spread=0.5))
    inputs = rows(6, length)
    _, run = written(model, products, tmp_path)
    found, wanted = run(*inputs), by_jax(model, inputs)
    many = min(5, length)
    assert found["start_top_index"].shape == (6, many)
    assert found["end_top_index"].shape == (6, many * many)
    if isinstance(products, Float32):
        for name in CONDITIONAL:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-4, rtol=1e-4)
    first, second = wanted["start_top_log_probs"][:, :2].T
    clear = first - second > 1
    np.testing.assert_array_equal(
        found["start_top_index"][clear, 0], np.asarray(wanted["start_top_index"])[clear, 0]
    )
    mask = outside_of_paragraph(*inputs[1:])
    likely = found["start_top_log_probs"] > -1e29
    assert not np.take_along_axis(mask, found["start_top_index"], 1)[likely].any()


def test_a_program_that_computes_something_else_is_found():
    weights = random_weights(**SIZES)
    model = interface.asked(weights, ("hidden",))
    other = interface.asked(random_weights(seed=1, **SIZES), ("hidden",))
    report = check.compare(model, lambda *r: by_jax(other, r), [rows(2, 9)])
    assert report.difference > 0.1
    assert report.cosine < 0.9
    with pytest.raises(CheckpointError, match="gives last_hidden_state the shape"):
        check.compare(model, lambda *r: {"last_hidden_state": np.zeros(3)}, [rows(2, 9)])


def test_the_command(with_vocabulary, tmp_path):
    formats.write(with_vocabulary, tmp_path / "model", "albert")
    command = [
        sys.executable,
        str(ROOT / "tools" / "export.py"),
        f"--input={tmp_path / 'model'}",
        "--output=out",
        "--format=onnx",
        "--heads=sentence,mlm",
        "--int8",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/onnx/model_quantized.onnx").is_file()
    assert not (tmp_path / "out/onnx/model.onnx").exists()
    assert "int8: " in done.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_a_loaded_model_exports_itself(with_vocabulary, tmp_path):
    formats.write(with_vocabulary, tmp_path / "model", "huggingface")
    model = albert.load(tmp_path / "model")
    model.export(tmp_path / "out", heads=("sentence",))
    run = onnx_format.runner(tmp_path / "out/onnx/model.onnx")
    texts = ["one two three", "four"]
    vectors = model.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    inputs = model.tokenize(texts)
    found = run(*(inputs[name] for name in interface.INPUTS))["sentence_embedding"]
    np.testing.assert_allclose(found, vectors, atol=1e-5)
