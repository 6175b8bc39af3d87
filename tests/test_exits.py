"""A classifier on every depth: what is learned, what a row gets that leaves early, and what is
refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

import albert
from albert.data.sources.base import SourceError
from albert.inference import Pretrained
from albert.interop import formats
from albert.interop.reshare import reshare
from albert.interop.weights import Weights, parameter_shapes, stacked
from albert.models import exits
from albert.models.encoder import Albert, init_params
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks import exits as exit_curve
from albert.tasks.classification import OwnTexts
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_run
from albert.train.evaluate_program import evaluate_program
from albert.train.loop import train
from albert.train.pictures import png_of
from configs.finetune import texts as texts_config
from faults import killed_at
from models import TINY, random_rows
from runs import ROOT, assert_bit_equal, final_params, records
from steps import PLAIN
from texts import _WORDS, VOCABULARY

SHARINGS = ({}, {"sharing": "none"}, {"sharing": "cycle_reversed:2", "inner_group_num": 2})


def heads_of(kind="classes", labels=3):
    return {"classifier": {"labels": labels, "kind": kind}, "exits": {"labels": labels}}


def weights_of(heads, seed=4, **changes) -> Weights:
    """Large random weights, so that depths differ in what they say."""
    config = dataclasses.replace(TINY, **{"num_hidden_layers": 5, **changes})
    rng = np.random.default_rng(seed)
    params = {
        path: rng.normal(path.endswith("scale"), 0.5, shape).astype(np.float32)
        for path, shape in parameter_shapes(config, heads).items()
    }
    return Weights(config, params, heads=heads)


def module_of(weights):
    return Albert(weights.config, tuple(weights.heads), weights.heads)


def every_depth(weights, rows):
    """Logits of all depths by all hidden states and the weights alone: [B, N, labels]."""
    params = unflatten_dict(stacked(weights.config, weights.params), sep="/")
    found = jax.jit(
        lambda p: module_of(weights).apply({"params": p}, *rows, output_hidden_states=True)
    )(params)
    pooler, last = params["pooler"], params["classifier_head"]
    pooled = np.tanh(found.hidden_states[1:, :, 0] @ pooler["kernel"] + pooler["bias"])
    heads = [params["exits_head"][f"depth_{n}"] for n in range(1, weights.config.depth)]
    logits = [
        x @ head["kernel"] + head["bias"] for x, head in zip(pooled, [*heads, last], strict=True)
    ]
    return np.stack(logits, 1), found.logits


def walked(row, text, kind):
    """One row, [N, labels], through its depths by hand: (logits, layers)."""
    rule, *numbers = text.split(":")
    answer = confidence = None
    same, before = 0, None
    for depth, logits in enumerate(row, 1):
        if kind == "several":
            answer, shares = tuple(logits > 0), 1 / (1 + np.exp(-np.abs(logits)))
            confidence = min(shares)
        elif kind == "classes":
            answer = int(np.argmax(logits))
            confidence = float(np.exp(logits.max()) / np.exp(logits).sum())
        if depth > 1:
            if kind == "number" and rule == "patience":
                agrees = abs(logits[0] - row[depth - 2][0]) < float(numbers[1])
            else:
                agrees = answer == before
            same = same + 1 if agrees else 0
        before = answer
        if rule == "patience":
            enough = same >= int(numbers[0])
        elif rule == "confidence":
            enough = confidence >= float(numbers[0])
        else:
            enough = depth >= int(numbers[0])
        if enough:
            break
    return logits, depth


@pytest.mark.parametrize("changes", SHARINGS, ids=str)
def test_all_depths_are_pooled_and_classified_and_the_last_is_as_it_was(changes):
    weights, rows = weights_of(heads_of(), **changes), random_rows(6)
    by_hand, logits = every_depth(weights, rows)
    np.testing.assert_allclose(logits["exits"], by_hand[:, :-1], atol=1e-5)
    np.testing.assert_allclose(logits["classifier"], by_hand[:, -1], atol=1e-5)
    # Without exits the same parameters give the same bits.
    plain = {path: v for path, v in weights.params.items() if "exits" not in path}
    before = Weights(weights.config, plain, heads={"classifier": weights.heads["classifier"]})
    found = jax.jit(lambda p: module_of(before).apply({"params": p}, *rows))(before.tree)
    np.testing.assert_array_equal(found.logits["classifier"], logits["classifier"])


RULES = {
    "classes": ("patience:1", "patience:3", "confidence:0.6", "confidence:1", "depth:2", "depth:5"),
    "several": ("patience:1", "patience:2", "confidence:0.55", "depth:3"),
    "number": ("patience:1:0.2", "patience:2:0.5", "depth:1"),
}


@pytest.mark.parametrize("changes", SHARINGS, ids=str)
@pytest.mark.parametrize("kind", RULES)
def test_rows_that_leave_early_get_what_their_depth_gave(kind, changes):
    if changes and kind != "classes":
        pytest.skip("sharing does not know the kind")
    labels = 1 if kind == "number" else 3
    weights = weights_of(heads_of(kind, labels), **changes)
    rows = random_rows(9)
    logits, _ = every_depth(weights, rows)
    spread = set()
    leave = jax.jit(
        lambda p, rows, real, rule: module_of(weights).apply(
            {"params": p}, *rows, rule, real, method="leave"
        ),
        static_argnums=3,
    )
    for text in RULES[kind] if not changes else ("patience:2",):
        wanted = [walked(row, text, kind) for row in logits]
        rule = exits.parse(text)
        assert exits.problem(rule, kind, weights.config.depth) is None
        for found in (
            leave(weights.tree, rows, np.ones(9, bool), rule),
            exits.leave(rule, kind, jnp.asarray(logits)),
        ):
            assert found[1].tolist() == [depth for _, depth in wanted], text
            np.testing.assert_allclose(found[0], [row for row, _ in wanted], atol=1e-5)
        spread |= set(found[1].tolist())
    assert len(spread) > (1 if changes else 2)


def test_nobody_waits_for_padding():
    """Layers are counted by what is left of the loop: as many as the slowest real row took."""
    weights, rows = weights_of(heads_of()), random_rows(8)
    logits, _ = every_depth(weights, rows)
    depths = np.asarray(exits.leave(exits.parse("patience:1"), "classes", jnp.asarray(logits))[1])
    slowest = depths == depths.max()
    assert not slowest.all()
    real = ~slowest
    ran = []

    def run(p, rows, real):
        module = module_of(weights)

        def look(*arguments, real_look=exits.look):
            jax.debug.callback(lambda: ran.append(1))
            return real_look(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exits, "look", look)
            return module.apply(
                {"params": p}, *rows, exits.parse("patience:1"), real, method="leave"
            )

    found = jax.jit(run)(weights.tree, rows, real)
    jax.effects_barrier()
    assert len(ran) == depths[real].max() < depths.max()
    assert np.asarray(found[1])[real].tolist() == depths[real].tolist()


def task_of(learned="together", kind="classes", **changes):
    """A task without data."""
    data = SimpleNamespace(exits=learned, dropout=0.0, kind=kind)
    config = SimpleNamespace(model=dataclasses.replace(PLAIN, **changes), data=data)
    task = OwnTexts.__new__(OwnTexts)
    task._config, task.kind, task.labels = config, kind, ("a", "b", "c")
    task.model = OwnTexts._model(config, 1 if kind == "number" else 3, kind)
    return task


def batch_of(kind="classes"):
    ids, mask, types = random_rows(6)
    labels = {
        "classes": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "number": np.linspace(-1, 1, 6, dtype=np.float32),
        "several": np.eye(6, 3, dtype=np.float32),
    }[kind]
    rows = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {**rows, "labels": labels, "weights": np.linspace(0.5, 1.5, 6, dtype=np.float32)}


@pytest.mark.parametrize("kind", RULES)
def test_the_loss_weighs_depths_by_their_number(kind):
    task, batch = task_of(kind=kind), batch_of(kind)
    params = meta.unbox(jax.jit(lambda: init_params(task.model, jax.random.key(0)))())

    def loss(params):
        return task.loss(task.sums(params, batch, None), task.denominators(batch))

    def second(params):
        """From the hidden states, depth by depth, by other formulas."""
        rows = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
        found = task.model.apply({"params": params}, *rows, output_hidden_states=True)
        depth, total = task.model.config.depth, 0.0
        for n in range(1, depth + 1):
            last = params["classifier_head"]
            head = params["exits_head"][f"depth_{n}"] if n < depth else last
            first = found.hidden_states[n][:, 0]
            pooled = jnp.tanh(first @ params["pooler"]["kernel"] + params["pooler"]["bias"])
            logits = pooled @ head["kernel"] + head["bias"]
            if kind == "classes":
                chosen = jnp.eye(3)[batch["labels"]]
                each = jax.nn.logsumexp(logits, -1) - (chosen * logits).sum(-1)
            elif kind == "number":
                each = (logits[:, 0] - batch["labels"]) ** 2
            else:
                p = jax.nn.sigmoid(logits)
                on = batch["labels"]
                each = -(on * jnp.log(p) + (1 - on) * jnp.log(1 - p)).mean(-1)
            total += n * (each * batch["weights"]).sum() / batch["weights"].sum()
        return total / (depth * (depth + 1) / 2)

    ours, theirs = (jax.jit(jax.value_and_grad(f))(params) for f in (loss, second))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    norms = {}
    for path, value in flatten_dict(ours[1], sep="/").items():
        other = flatten_dict(theirs[1], sep="/")[path]
        np.testing.assert_allclose(value, other, atol=1e-6, rtol=1e-3, err_msg=path)
        norms[path] = float(jnp.abs(value).max())
    assert all(norms[f"exits_head/depth_{n}/kernel"] > 1e-5 for n in (1, 2))


def test_behind_a_frozen_encoder_only_the_exits_learn():
    task, batch = task_of("frozen"), batch_of()
    params = meta.unbox(jax.jit(lambda: init_params(task.model, jax.random.key(0)))())
    gradient = jax.jit(jax.grad(lambda p: task.loss(task.sums(p, batch, None), {"weight": 1.0})))
    moved = {
        path.split("/")[0]
        for path, value in flatten_dict(gradient(params), sep="/").items()
        if np.asarray(value).any()
    }
    assert moved == {"exits_head"}


def write_texts(path):
    """Texts of two kinds of words; which kind is the label."""
    rng = np.random.default_rng(0)
    halves = _WORDS[::2], _WORDS[1::2]
    rows = ["text\tlabel"]
    for number in range(80):
        words = rng.choice(halves[number % 2], rng.integers(3, 9))
        rows.append(f"{' '.join(words)}\t{'ab'[number % 2]}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exits")


@pytest.fixture
def config(folder, vocabulary):
    """A config that learns two kinds of texts with exits, from random weights."""
    config = texts_config.get_config("tiny")
    config.init_model = False
    sizes = dataclasses.asdict(TINY) | {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
    config.model.update(sizes | {"initializer_range": 0.3})
    data = config.data
    data.exits, data.tokenizer, data.seq_length, data.workers = "together", str(vocabulary), 32, 0
    data.train, data.folder = (str(write_texts(folder / "texts.tsv")),), str(folder / "prepared")
    config.optimizer.learning_rate = 1e-2
    return config


@pytest.fixture
def learned(config, folder):
    """A run with exits; made once, to be read only."""
    if not (folder / "run").exists():
        train(check(config), folder / "run")
    return folder / "run"


def test_a_run_that_was_killed_ends_bit_equal(config, learned, tmp_path):
    with pytest.raises(MemoryError):
        train(check(config), tmp_path / "run", watch=killed_at("log", 15))
    train(check(config), tmp_path / "run")
    assert_bit_equal(final_params(tmp_path / "run", 20), final_params(learned, 20))
    assert records(tmp_path / "run", "dev") == records(learned, "dev")
    config.data.exits, config.train.num_steps = "none", 30
    with pytest.raises(RunError, match=r"the classifiers of the depths \(data.exits\): together"):
        train(check(config), tmp_path / "run")


@pytest.mark.slow
def test_an_exported_program_is_judged_beside_its_run(learned, tmp_path):
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    shutil.copytree(learned, tmp_path / "run")
    model = albert.load(learned)
    model.export(tmp_path / "onnx", precisions=("float32", "int8"), least_cosine=0.9)
    judged = evaluate_program(tmp_path / "run", None, tmp_path / "onnx", Options())
    (written,) = (tmp_path / "run").glob("eval_*_program-onnx.json")
    assert json.loads(written.read_text()) == {"step": 10, **judged}
    losses = {name: figures["dev"]["loss"] for name, figures in judged.items()}
    assert losses["float32"] == pytest.approx(losses["model"], abs=1e-5)
    # A program of its own, which is near.
    assert 1e-6 < abs(losses["int8"] - losses["model"]) < 0.2
    with pytest.raises(ConfigError, match="a program is of one checkpoint"):
        evaluate_program(tmp_path / "run", "all", tmp_path / "onnx", Options())
    model.export(tmp_path / "states", heads=("hidden",))
    with pytest.raises(ConfigError, match=r"gives hidden and .* is judged by classifier"):
        evaluate_program(tmp_path / "run", None, tmp_path / "states", Options())
    manifest = json.loads((tmp_path / "onnx/manifest.json").read_text())
    manifest["labels"] = ["b", "a"]
    (tmp_path / "onnx/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="it is of another model"):
        evaluate_program(tmp_path / "run", None, tmp_path / "onnx", Options())


TEXTS = ["the river", "a small bright winter", "letter", "the long river and the hill"]


def test_a_loaded_model_leaves_early(learned, tmp_path):
    model = albert.load(learned)
    whole = model.classify(TEXTS)
    assert all(each.depth is None for each in whole)
    last = model.classify(TEXTS, exit="depth:3")
    for one, other in zip(whole, last, strict=True):
        assert (one.label, 3) == (other.label, other.depth)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    alone = [model.classify(text, exit="patience:1") for text in TEXTS]
    for batch_size in (1, 3):  # of 4 texts in 3: one of the second batch, without padding
        found = model.classify(TEXTS, exit="patience:1", batch_size=batch_size)
        assert [(a.label, a.depth) for a in found] == [(a.label, a.depth) for a in alone]
    assert {a.depth for a in model.classify(TEXTS, exit="depth:1")} == {1}
    model.save(tmp_path / "saved")
    again = albert.load(tmp_path / "saved").classify(TEXTS, exit="patience:1")
    assert [a.depth for a in again] == [a.depth for a in alone]


def test_other_programs_get_the_last_classifier_and_it_is_told(learned, tmp_path, capsys):
    model = albert.load(learned)
    model.save(tmp_path / "hf", "huggingface")
    assert "has the last of the model's 3 classifiers alone" in capsys.readouterr().out
    other = albert.load(tmp_path / "hf")
    assert "exits" not in other.heads
    assert [a.label for a in other.classify(TEXTS)] == [a.label for a in model.classify(TEXTS)]


@pytest.mark.slow
def test_exits_are_learned_behind_a_model_that_stays_as_it_is(config, learned, tmp_path):
    config.init_from, config.init_model = str(learned), True
    config.data.exits, config.data.tokenizer = "frozen", ""
    config.train.num_steps = config.train.eval_every = config.train.checkpoint_every = 4
    train(check(config), tmp_path / "run")
    before, after = formats.read(learned), formats.read(tmp_path / "run")
    assert set(after.params) == set(before.params)
    changed = {p for p, v in before.params.items() if v.tobytes() != after.params[p].tobytes()}
    assert changed == {
        f"exits_head/depth_{n}/{leaf}" for n in (1, 2) for leaf in ("kernel", "bias")
    }
    assert albert.load(learned).classify(TEXTS) == albert.load(tmp_path / "run").classify(TEXTS)


def test_a_model_of_another_depth_leaves_them_behind():
    weights = weights_of(heads_of())
    deeper = reshare(weights, dataclasses.replace(weights.config, num_hidden_layers=7))
    assert "exits" not in deeper.heads
    assert not any(path.startswith("exits_head") for path in deeper.params)
    assert "the classifiers of the depths before the last are left out" in deeper.notes
    same = reshare(weights, dataclasses.replace(weights.config, sharing="none"))
    assert "exits" in same.heads
    rows = random_rows(3)
    for a, b in zip(every_depth(weights, rows)[0], every_depth(same, rows)[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


BAD = [
    ("patience", "must be patience:K"),
    ("patience:1.5", "must be patience:K"),
    ("confidence:high", "must be patience:K"),
    ("speed:3", "must be patience:K"),
    ("depth:2:1", "must be patience:K"),
    ("patience:inf", "must be patience:K"),
    ("patience:0", "the patience must be from 1 to 2"),
    ("patience:3", "the patience must be from 1 to 2"),
    ("depth:0", "the model has the depths 1 to 3"),
    ("depth:4", "the model has the depths 1 to 3"),
    ("confidence:1.1", "must be over 0 and at most 1"),
    ("confidence:0", "must be over 0 and at most 1"),
    ("patience:1:0.1", "a tolerance is for models that give a number"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text for text, _ in BAD])
def test_what_is_no_way_to_leave_is_refused(text, message):
    model = Pretrained(weights_of(heads_of(), num_hidden_layers=3))
    with pytest.raises(ValueError, match=message):
        model.classify("the river", exit=text)


def test_a_number_needs_a_tolerance_and_has_no_probability():
    assert "such as patience:2:0.1" in exits.problem(exits.parse("patience:2"), "number", 3)
    assert "no probability" in exits.problem(exits.parse("confidence:0.9"), "number", 3)
    assert exits.problem(exits.parse("patience:2:0.1"), "number", 3) is None


def test_a_model_without_exits_says_what_to_do():
    model = Pretrained(weights_of({"classifier": {"labels": 2, "kind": "classes"}}))
    with pytest.raises(ValueError, match=r"one classifier, behind its last layer: .*data\.exits"):
        model.classify("the river", exit="patience:1")


def test_what_cannot_be_learned_is_told(config, tmp_path):
    config.data.exits = "some"
    with pytest.raises(ConfigError, match="exits is 'some'; it must be one of none, together, fro"):
        check(config)
    config.data.exits = "frozen"
    with pytest.raises(ConfigError, match="'frozen' and init_from is empty"):
        check(config)
    config.data.exits, config.model.num_hidden_layers = "together", 1
    with pytest.raises(ConfigError, match="'together' and the model has one layer"):
        check(config)
    start = weights_of({"mlm": {}})
    config.data.exits, config.model.num_hidden_layers = "frozen", 3
    (told,) = OwnTexts.start_problems(check(config, needs_text=False), start)[-1:]
    assert "has no classifier: fine-tune it first" in told
    (told,) = OwnTexts.start_problems(
        check(config, needs_text=False), weights_of({"mlm": {}}, num_hidden_layers=1)
    )[-2:-1]
    assert "has one layer" in told


def test_a_classifier_of_other_labels_is_not_frozen(config, learned, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text(write_texts(tmp_path / "texts.tsv").read_text().replace("\ta", "\tc"))
    config.init_from, config.init_model = str(learned), True
    config.data.exits, config.data.train = "frozen", (str(other),)
    with pytest.raises(SourceError, match=r"tells other things apart \(a, b\) than .* \(b, c\)"):
        train(check(config), tmp_path / "run")


@pytest.mark.parametrize("kind", RULES)
def test_the_curve_is_what_rows_get(kind):
    rng = np.random.default_rng(0)
    labels = 1 if kind == "number" else 3
    logits = rng.normal(0, 0.4, (40, 5, labels)).cumsum(1).astype(np.float32)
    found = exit_curve.points(kind, logits, lambda left: {"sum": float(left.sum())})
    assert len(found) == 5 + 4 + (0 if kind == "number" else 6)
    for point in found:
        walks = [walked(row, point.exit, kind) for row in logits]
        assert point.mean_depth == np.mean([depth for _, depth in walks])
        assert point.figures["sum"] == pytest.approx(sum(row.sum() for row, _ in walks), abs=1e-3)
    lines = exit_curve.table(found, {"ms": [1.5] * len(found)})
    assert lines[0] == "| exit | layers, mean | sum, % | ms |"
    assert lines[2].startswith("| depth:1 | 1.00 | ")
    assert lines[2].endswith(" | 1.5 |")
    assert png_of(exit_curve.draw(found, "sum")).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_curve_of_a_run(learned, tmp_path):
    def tool(*flags):
        command = [sys.executable, str(ROOT / "tools" / "exits.py"), *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    shutil.copytree(learned, tmp_path / "run")
    done = tool("--workdir=run", "--step=latest", "--latency", "--texts=3", "--repeats=2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "exits_20.json").read_text())
    assert len(found["points"]) == len(found["ms"]) == 3 + 2 + 6
    # The last depth is what the run's evaluation says.
    (last,) = (point for point in found["points"] if point["exit"] == "depth:3")
    assert last["figures"]["accuracy"] == records(learned, "dev")[-1]["accuracy"]
    assert f"{100 * last['figures']['accuracy']:.1f}" in done.stdout
    for name in ("exits_20.png", "exits_20_ms.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    evaluate_run(tmp_path / "run", "latest", Options())
    assert (tmp_path / "run" / "pictures_20" / "dev_exits.png").is_file()
    assert tool("--workdir=nowhere").returncode == 2
