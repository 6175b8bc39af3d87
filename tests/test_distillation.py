"""Learning from a teacher: losses by second routes, where its weights lie, and what is refused."""

import dataclasses
import json
import re
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.interop.weights import Weights, parameter_shapes
from albert.models import lean
from albert.models.encoder import Albert, abstract_params, init_params
from albert.models.layers import row_keys
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks.classification import OwnTexts
from albert.tasks.distillation import (
    Distillation,
    DistillationConfig,
    relation_terms,
    soft_terms,
    visible_keys,
)
from albert.tasks.pretraining import apply_model
from albert.train.config import check, from_json
from albert.train.cost import describe
from albert.train.loop import train
from albert.train.optimizers import make_optimizer
from albert.train.sharding import batch_sharding, make_mesh, mesh_over, put_batch
from albert.train.step import (
    abstract_teacher,
    make_gradient,
    make_train_step,
    new_state,
    shard_training,
)
from albert.train.teacher import learn_from, read_teacher
from configs.finetune import squad as squad_config
from configs.finetune import texts as texts_config
from faults import killed_at
from models import random_rows
from optimizers import LAMB
from runs import assert_bit_equal, final_params, records
from steps import PLAIN, configured, loss_and_metrics, pretraining_of, random_batch
from test_packing import batches  # noqa: F401
from texts import _WORDS, VOCABULARY

# Wider, deeper and not shared.
TEACHER = dataclasses.replace(
    PLAIN, hidden_size=24, num_attention_heads=3, num_hidden_layers=4, sharing="none"
)


def taught(student=PLAIN, teacher=TEACHER, share=0.3, temperature=2.0, relations=0.7, parts=4):
    """Pretraining that learns from a teacher, and the parameters of both."""
    task = pretraining_of(student)
    model = Albert(teacher, ("mlm",))
    task.distillation = Distillation(model, share, temperature, relations, parts)

    return task, *drawn(task.model, model)


def drawn(*models):
    """Parameters of models, larger than new ones, so that these say different things."""

    def draw():
        return [init_params(model, jax.random.key(n)) for n, model in enumerate(models)]

    return jax.tree.map(lambda x: 8 * x, nn.meta.unbox(jax.jit(draw)()))


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_soft_labels_by_numpy_and_what_is_theirs_alone_is_their_entropy():
    rng = np.random.default_rng(0)
    ours, theirs = (rng.normal(0, 3, (2, 5, 7)).astype(np.float32) for _ in range(2))
    p, q = softmax(theirs / 2.5), softmax(ours / 2.5)
    expected = -(p * np.log(q)).sum(-1)
    np.testing.assert_allclose(lean.soft_cross_entropy(ours, theirs, 2.5), expected, rtol=1e-5)
    entropy = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(lean.soft_cross_entropy(theirs, theirs, 2.5), entropy, rtol=1e-5)
    gradients = jax.grad(
        lambda a, b: lean.soft_cross_entropy(a, b, 2.5).sum(), argnums=(0, 1), allow_int=True
    )(ours, theirs)
    np.testing.assert_allclose(gradients[0], (q - p) / 2.5, atol=1e-6)
    assert not np.asarray(gradients[1]).any()
    np.testing.assert_allclose(soft_terms("classes", ours, theirs, 2.5), 6.25 * expected, rtol=1e-5)
    # What is in neither, such as an option that a question does not have, is finite and nothing.
    absent = [
        np.concatenate([x, np.full((2, 5, 1), -1e30, np.float32)], -1) for x in (ours, theirs)
    ]
    np.testing.assert_allclose(lean.soft_cross_entropy(*absent, 2.5), expected, rtol=1e-5)
    p, q = 1 / (1 + np.exp(-theirs / 2.5)), 1 / (1 + np.exp(-ours / 2.5))
    several = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(-1)
    np.testing.assert_allclose(soft_terms("several", ours, theirs, 2.5), 6.25 * several, rtol=1e-5)
    number = (ours[..., :1] - theirs[..., :1])[..., 0] ** 2
    np.testing.assert_allclose(soft_terms("number", ours[..., :1], theirs[..., :1], 2.5), number)


def test_relations_by_hand_token_by_token():
    """Of padded and of packed rows; nothing between a model and itself."""
    rng = np.random.default_rng(1)
    ours, theirs = (rng.normal(0, 1, (2, 6, w)).astype(np.float32) for w in (8, 12))
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 0, 0]], np.int32)
    for numbers in (None, segments):
        visible = visible_keys(mask, numbers)
        found = np.asarray(relation_terms(ours, theirs, visible, 2))
        for row in range(2):
            for token in np.flatnonzero(mask[row]):
                same = mask[row] if numbers is None else numbers[row] == numbers[row, token]
                seen = np.flatnonzero(same & (mask[row] > 0))
                each = []
                for part in range(2):
                    a, b = (
                        softmax(x[row, seen][:, cut] @ x[row, token, cut] / np.sqrt(width))
                        for x, width in ((ours, 4), (theirs, 6))
                        for cut in [slice(part * width, (part + 1) * width)]
                    )
                    each.append((b * np.log(b / a)).sum())
                np.testing.assert_allclose(found[row, token], np.mean(each), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(relation_terms(theirs, theirs, visible, 2), 0, atol=1e-6)
        gradient = jax.grad(lambda x, v=visible: (relation_terms(x, theirs, v, 2) * mask).sum())(
            ours
        )
        assert np.asarray(gradient)[0].any()
        assert not np.asarray(gradient)[1, 4:].any()


def second_route(task, params, teacher, batch):
    """The loss from the outputs of both models by other formulas, differentiated by jax."""
    of = task.distillation
    ours, theirs = (
        apply_model(m, p, batch) for m, p in ((task.model, params), (of.model, teacher))
    )
    weights, order = batch["mlm_weights"], batch["sop_labels"]
    log_q = jax.nn.log_softmax(ours.mlm_logits)
    hard = -(jax.nn.one_hot(batch["mlm_labels"], log_q.shape[-1]) * log_q).sum(-1)
    p = jax.nn.softmax(theirs.mlm_logits / of.temperature)
    soft = -(p * jax.nn.log_softmax(ours.mlm_logits / of.temperature)).sum(-1)
    words = (1 - of.share) * hard + of.share * of.temperature**2 * soft
    loss = (words * weights).sum() / (weights.sum() + 1e-5)
    log_order = jax.nn.log_softmax(ours.sop_logits)
    loss -= jnp.take_along_axis(log_order, order[:, None], 1).mean()
    mask = batch["attention_mask"]

    def log_relations(hidden):
        parts = jnp.stack(jnp.split(hidden, of.parts, -1), 1)
        scores = parts @ parts.swapaxes(-1, -2) / np.sqrt(parts.shape[-1])
        return jax.nn.log_softmax(jnp.where(mask[:, None, None] > 0, scores, -1e9))

    a, b = (log_relations(x.last_hidden_state) for x in (ours, theirs))
    divergence = (jnp.exp(b) * (b - a)).sum(-1).mean(1)
    return loss + of.relations * (divergence * mask).sum() / mask.sum()


def assert_close(gradient, other):
    """Tensor by tensor, to what float32 rounds of sums."""
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        distance = float(jnp.linalg.norm(a - b))
        assert distance <= 1e-4 * float(jnp.linalg.norm(a)) + 1e-5


def padded_batch():
    batch = random_batch()
    batch["attention_mask"][:3, 9:] = 0
    return batch


def gradient_of(parts):
    """Of the same rows whenever it is asked: task, loss, sums and gradient."""
    task, params, teacher = taught()
    batch, function = padded_batch(), make_gradient(task, parts)
    keys = row_keys(jax.random.key(0), 8)
    of_batch = jax.jit(lambda p, t: function(p, batch, keys, task.denominators(batch), t))
    (loss, sums), gradient = of_batch(params, teacher)
    return (task, params, teacher, batch), loss, sums, gradient


@pytest.fixture(scope="module")
def whole():
    return gradient_of(1)


def test_loss_and_gradient_by_a_second_route(whole):
    (task, params, teacher, batch), loss, sums, gradient = whole
    expected = jax.jit(jax.value_and_grad(lambda p, t: second_route(task, p, t, batch)))
    expected_loss, expected_gradient = expected(params, teacher)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert_close(gradient, expected_gradient)
    metrics = task.metrics(sums, task.denominators(batch))
    words = 0.7 * metrics["mlm_loss"] + 0.3 * metrics["soft_loss"] + metrics["sop_loss"]
    np.testing.assert_allclose(loss, words + 0.7 * metrics["relation_loss"], rtol=1e-5)
    hard = metrics["mlm_loss"] + metrics["sop_loss"]
    np.testing.assert_allclose(metrics["hard_loss"], hard, rtol=1e-6)
    # Without a teacher the same model has the same hard loss: figures compare.
    plain = jax.jit(lambda p: loss_and_metrics(pretraining_of(PLAIN), p, batch)[0])
    np.testing.assert_allclose(plain(params), hard, rtol=1e-6)


def test_parts_of_a_batch_add_up(whole):
    _, exact_loss, exact_sums, exact = whole
    _, loss, sums, added = gradient_of(4)
    # Relations are what is left of large scores, whose products XLA sums in another order for
    # another number of rows: on AVX-512 they differ by 1.5e-6.
    bounds = dict.fromkeys(exact_sums, 1e-6) | {"relations": 3e-6}
    for name, bound in bounds.items():
        np.testing.assert_allclose(sums[name], exact_sums[name], rtol=bound, err_msg=name)
    np.testing.assert_allclose(loss, exact_loss, rtol=bounds["relations"])
    assert_close(exact, added)


@pytest.mark.slow
def test_padding_counts_for_nothing():
    task, params, teacher = taught()
    batch = random_batch(length=8)
    longer = dict(batch)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        longer[name] = np.pad(batch[name], ((0, 0), (0, 4)))
    run = jax.jit(
        jax.value_and_grad(lambda p, b: loss_and_metrics(task, p, task.taught(b, teacher))[0])
    )
    (loss, gradient), (padded, other) = run(params, batch), run(params, longer)
    # Float32 sums in another order: 1.4e-6 apart with AVX2.
    np.testing.assert_allclose(loss, padded, rtol=3e-6)
    assert_close(gradient, other)


@pytest.mark.slow
def test_packed_rows_learn_what_unpacked_ones_do(batches):  # noqa: F811
    sizes = {"vocab_size": 96, "max_position_embeddings": 32}
    task, params, teacher = taught(*(dataclasses.replace(c, **sizes) for c in (PLAIN, TEACHER)))
    run = jax.jit(lambda b: loss_and_metrics(task, params, task.taught(b, teacher)))
    (loss, alone), (packed, together) = map(run, batches)
    np.testing.assert_allclose(loss, packed, rtol=1e-5)
    for name in ("soft_loss", "relation_loss", "hard_loss"):
        np.testing.assert_allclose(alone[name], together[name], rtol=1e-4, err_msg=name)


def three_steps(config, mesh):
    """Losses of three steps, the teacher after them, and the compiled program."""
    teacher_sizes = dataclasses.replace(
        config.model,
        hidden_size=64,
        num_hidden_layers=2,
        sharing="none",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    task, _, teacher = taught(config.model, teacher_sizes)
    optimizer, schedule = make_optimizer(config.optimizer, 20)
    _, create, step = shard_training(
        task, optimizer, schedule, config.train.accumulation, 0, mesh, config.sharding
    )
    like = abstract_teacher(task.distillation.model, mesh, config.sharding)
    placed = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), teacher, like)
    rows, state, found = batch_sharding(mesh, config.sharding), create(), []
    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        made = [
            put_batch(random_batch(rows=16, length=32, predictions=6, vocab=96, seed=n), rows)
            for n in range(3)
        ]
        compiled = step.lower(state, made[0], placed).compile()
        for batch in made:
            state, metrics = compiled(state, batch, placed)
            found.append([float(metrics[n]) for n in ("loss", "soft_loss", "relation_loss")])
    assert_bit_equal(jax.device_get(placed), jax.device_get(teacher))
    return np.array(found), placed, compiled.as_text()


def test_no_weight_of_the_teacher_is_a_constant_of_the_step():
    """Nor given back by it; all that its logits follow from come behind the batch."""
    sizes = dataclasses.replace(TEACHER, hidden_size=64, num_attention_heads=4)
    task = pretraining_of(PLAIN)
    task.distillation = Distillation(Albert(sizes, ("mlm",)), 0.5, 2.0, 1.0, 4)
    teacher = nn.meta.unbox(abstract_params(task.distillation.model))
    optimizer, schedule = make_optimizer(LAMB, 20)
    state = jax.eval_shape(
        lambda: nn.meta.unbox(new_state(partial(task.init, task.model), optimizer, 0))
    )
    step = jax.jit(make_train_step(task, optimizer, schedule, 2, 0))
    lowered = step.lower(state, random_batch(), teacher)
    text = lowered.as_text()
    shapes = re.findall(r"constant dense<[\"\[].*> : tensor<([\dx]+)x\w+>", text)
    assert all(np.prod([int(n) for n in shape.split("x")]) < 100 for shape in shapes)
    signature = re.search(r"@main\((.*?)\) ->", text, re.S).group(1)
    assert signature.count("tensor<4x64x32xf32>") == 1  # its feed-forward kernels
    assert signature.count("tensor<4x64x4x16xf32>") == 3  # queries, keys and values
    given = jax.tree.map(lambda x: x.shape, lowered.out_info[0])
    assert given == jax.tree.map(lambda x: x.shape, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "mesh"),
    [(2, {"data": 2, "fsdp": 2, "tensor": 2}), (1, {"data": 1, "fsdp": 8})],
)
def test_eight_devices_learn_what_one_does(tiny, parts, mesh):
    one = mesh_over(jax.devices()[:1], (1, 1, 1, 1))
    alone, teacher, text = three_steps(configured(tiny, parts), one)
    constants = re.findall(r"= \w+\[([\d,]*)\]\S* constant\(", text)
    sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in constants]
    kernel = teacher["encoder"]["layers"]["intermediate"]["kernel"]
    assert len(sizes) > 10
    assert max(sizes) < 1000 < kernel.size
    config = configured(tiny, parts, **mesh)
    spread, teacher, _ = three_steps(config, make_mesh(config.sharding))
    np.testing.assert_allclose(spread, alone, rtol=2e-5)
    kernel = teacher["encoder"]["layers"]["intermediate"]["kernel"]
    cut = mesh["fsdp"] * mesh.get("tensor", 1)
    assert kernel.addressable_shards[0].data.size * cut == kernel.size


@pytest.fixture
def student(run, tiny):
    """A config of a smaller model that learns from the finished run."""
    tiny.model.hidden_size, tiny.model.num_attention_heads = 16, 2
    tiny.model.intermediate_size = 32
    tiny.distillation.teacher = str(run)
    tiny.distillation.relations, tiny.distillation.relation_heads = 0.5, 4
    return tiny


@pytest.mark.slow
def test_a_run_learns_dies_and_ends_bit_equal_and_knows_its_teacher(student, run, tmp_path, capsys):
    whole = train(check(student), tmp_path / "whole")
    printed = capsys.readouterr().out
    assert re.search(r"Learning from .*, [\d,]+ parameters: soft labels at temperature 2", printed)
    line = records(tmp_path / "whole")[-1]
    words = 0.5 * line["mlm_loss"] + 0.5 * line["soft_loss"] + line["sop_loss"]
    np.testing.assert_allclose(line["loss"], words + 0.5 * line["relation_loss"], rtol=1e-5)
    # The checkpoint is the student alone, judged as any other.
    shapes = [x.shape for x in jax.tree.leaves(final_params(tmp_path / "whole", 8))]
    assert shapes == [x.shape for x in jax.tree.leaves(whole.state.params)]
    assert records(tmp_path / "whole", "valid")[-1].keys() == records(run, "valid")[-1].keys()

    with pytest.raises(MemoryError):
        train(check(student), tmp_path / "parts", watch=killed_at("log", 6))
    # Another teacher, and none, are refused; other weights of its loss are told.
    student.distillation.teacher = str(run / "checkpoints" / "4")
    with pytest.raises(
        RunError, match=r"distillation\.teacher: digest of what is used of its weights: \w+ -> \w"
    ):
        train(check(student), tmp_path / "parts")
    student.distillation.update({"teacher": "", "relations": None, "relation_heads": None})
    with pytest.raises(RunError, match=r"of its weights: \w+ -> none"):
        train(check(student), tmp_path / "parts")
    student.distillation.update({"relations": 0.5, "relation_heads": 4})
    # The same weights elsewhere are the same teacher.
    student.distillation.teacher = str(run / "checkpoints" / "8")
    capsys.readouterr()
    train(check(student), tmp_path / "parts")
    printed = capsys.readouterr().out
    assert "learns or is judged otherwise" not in printed
    assert "distillation.teacher: " in printed
    assert_bit_equal(final_params(tmp_path / "parts", 8), final_params(tmp_path / "whole", 8))


@pytest.mark.slow
def test_a_student_starts_from_a_model_and_learns_from_another(student, run, tiny, tmp_path):
    tiny.model.hidden_size, tiny.model.num_attention_heads, tiny.model.intermediate_size = 32, 4, 64
    tiny.init_from = str(run / "checkpoints" / "4")
    tiny.model.num_hidden_layers = 2
    tiny.distillation.logits = 0
    train(check(tiny), tmp_path / "run")
    line = records(tmp_path / "run")[-1]
    assert "soft_loss" not in line
    hard = line["mlm_loss"] + line["sop_loss"]
    np.testing.assert_allclose(line["loss"], hard + 0.5 * line["relation_loss"], rtol=1e-5)


def test_what_a_teacher_costs_is_described(student, run):
    config = check(student)
    without = dataclasses.replace(
        config, distillation=DistillationConfig("", None, None, None, None)
    )
    facts = describe(config, read_teacher(config))
    teacher_run = from_json(json.loads((run / "config.json").read_text())["config"])
    whole, alone = describe(teacher_run), describe(without)
    sop = 32 * 2 + 2
    assert facts["teacher_parameters"] == whole["parameters"] - sop
    assert facts["state_bytes"]["teacher"] == 4 * facts["teacher_parameters"]
    more = facts["flops_per_token"] - alone["flops_per_token"]
    np.testing.assert_allclose(more, whole["flops_per_token"] / 3, rtol=1e-6)


def test_a_run_of_before_had_no_teacher(tiny):
    values = json.loads(json.dumps(dataclasses.asdict(check(tiny))))
    del values["distillation"]
    assert from_json(values) == check(tiny)


def test_what_is_not_read_or_not_offered_is_told_before_anything_is_read(tiny):
    section = tiny.distillation
    section.temperature = 4.0
    with pytest.raises(
        ConfigError, match=r"distillation\.temperature is 4\.0 and teacher is empty"
    ):
        check(tiny)
    for fields, words in (
        ({"logits": 1.5}, r"logits is 1\.5; it must be from 0 to 1"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it must be positive"),
        ({"relations": -1.0}, r"relations is -1\.0; it must not be negative"),
        ({"relations": 1.0, "relation_heads": 0}, "relation_heads is 0; it must be at least 1"),
        ({"logits": 0.0}, "logits and relations are 0: nothing is learned"),
        ({"relation_heads": 4}, "relation_heads is 4 and relations 0: nothing reads it"),
        (
            {"logits": 0.0, "relations": 1.0, "temperature": 2.0},
            r"temperature is 2\.0 and logits 0: nothing reads it",
        ),
    ):
        unset = {"logits": None, "temperature": None, "relations": None, "relation_heads": None}
        section.update(unset | {"teacher": "somewhere"} | fields)
        with pytest.raises(ConfigError, match=words):
            check(tiny)
    config = squad_config.get_config("2.0,tiny")
    config.distillation.teacher = "somewhere"
    with pytest.raises(ConfigError, match="task squad learns from no teacher; pretraining, glue,"):
        check(config, needs_text=False)
    config = texts_config.get_config("tiny")
    config.distillation.teacher, config.data.exits = "somewhere", "together"
    with pytest.raises(ConfigError, match="a teacher teaches the last depth alone"):
        check(config, needs_text=False)


def test_a_teacher_that_does_not_fit_is_told(student, run, tmp_path, monkeypatch):
    weights = formats.read(run)
    student.distillation.teacher = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"^distillation\.teacher: There is no .*nowhere"):
        read_teacher(check(student))
    monkeypatch.setattr(formats, "read", lambda path: weights)
    student.distillation.relation_heads = 5
    with pytest.raises(ConfigError) as told:
        read_teacher(check(student))
    assert "model.hidden_size is 16, which is no multiple of distillation.relation_heads, 5" in str(
        told.value
    )
    assert "is 32, which is no multiple" in str(told.value)
    student.distillation.relation_heads = 4
    weights.config = dataclasses.replace(weights.config, max_position_embeddings=16)
    for path in [path for path in weights.params if path.startswith("mlm_head")]:
        del weights.params[path]
    with pytest.raises(ConfigError) as told:
        read_teacher(check(student))
    assert "has 16 positions; set --config.data.seq_length=16" in str(told.value)
    assert "has no head mlm, whose logits are to be learned; name a model that was pre" in str(
        told.value
    )


def test_a_classifier_without_its_pooler_teaches_nobody(monkeypatch):
    """Its logits would be those of zeros."""
    heads = {"classifier": {"labels": 2, "kind": "classes", "dropout": 0.0}}
    config = dataclasses.replace(PLAIN, max_position_embeddings=64)
    shapes = parameter_shapes(config, heads)
    params = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    weights = Weights(config, params, heads=heads, labels=("a", "b"))
    monkeypatch.setattr(formats, "read", lambda path: weights)
    own = texts_config.get_config("tiny")
    own.init_model, own.distillation.teacher = False, "somewhere"
    assert read_teacher(check(own, needs_text=False)) is weights
    for path in [path for path in params if path.startswith("pooler/")]:
        del params[path]
    with pytest.raises(ConfigError, match="has no pooler, on which its classifier stands"):
        read_teacher(check(own, needs_text=False))


def test_a_teacher_of_other_words_or_labels_is_told(student, run, tokenizer):
    config = check(student)
    teacher = read_teacher(config)
    task = pretraining_of(config.model)
    task.tokenizer = tokenizer
    learn_from(teacher, config, task, 1)
    of = task.distillation
    assert (of.share, of.temperature, of.relations, of.parts) == (0.5, 2.0, 0.5, 4)
    assert of.digest
    said = dataclasses.replace(config.distillation, logits=0.2, temperature=3.0)
    learn_from(teacher, dataclasses.replace(config, distillation=said), task, 1)
    assert (task.distillation.share, task.distillation.temperature) == (0.2, 3.0)
    strange = SimpleNamespace(
        path="strange.model",
        vocab_size=96,
        pieces=lambda ids: [f"x{n}" for n in ids],
        lower_case=True,
        strip_accents=True,
    )
    teacher.tokenizer = strange
    with pytest.raises(ConfigError, match=r"another vocabulary, strange\.model, than the run"):
        learn_from(teacher, config, task, 1)
    teacher.tokenizer = None
    with pytest.raises(ConfigError, match="there is no vocabulary beside"):
        learn_from(teacher, config, task, 1)
    strange.pieces, strange.lower_case = tokenizer.pieces, False
    teacher.tokenizer = strange
    with pytest.raises(ConfigError, match=r"set --config\.data\.lower_case=False"):
        learn_from(teacher, config, task, 1)

    texts = own_texts("classes")
    texts.tokenizer, teacher.tokenizer = tokenizer, tokenizer
    teacher.heads = {"classifier": {"labels": 3, "kind": "classes"}}
    teacher.labels = ("a", "b", "c")
    assert texts.teacher_problems(config, teacher) == []
    teacher.labels = ("b", "a", "c")
    (told,) = texts.teacher_problems(config, teacher)
    assert "are b, a, c and those of the data a, b, c: they must be the same" in told
    teacher.heads["classifier"]["kind"] = "several"
    (told,) = texts.teacher_problems(config, teacher)
    assert "tells several and the data classes: fine-tune the teacher" in told
    number = own_texts("number")
    number.tokenizer, teacher.heads["classifier"]["kind"] = tokenizer, "number"
    hot = dataclasses.replace(
        config, distillation=dataclasses.replace(config.distillation, temperature=3.0)
    )
    (told,) = number.teacher_problems(hot, teacher)
    assert "a number, which has none" in told


def own_texts(kind, distillation=None):
    """A task on labelled texts without data."""
    task = OwnTexts.__new__(OwnTexts)
    data = SimpleNamespace(exits="none", dropout=0.1)
    task._config = SimpleNamespace(model=PLAIN, data=data)
    task.kind, task.labels = kind, () if kind == "number" else ("a", "b", "c")
    task.model = OwnTexts._model(task._config, len(task.labels) or 1, kind)
    task.distillation = distillation
    return task


@pytest.mark.parametrize(
    "kind", ["classes", *(pytest.param(k, marks=pytest.mark.slow) for k in ("number", "several"))]
)
def test_a_classifier_learns_by_its_kind(kind):
    labels = 1 if kind == "number" else 3
    fields = {"classifier": {"labels": labels, "kind": kind}}
    teacher_model = Albert(TEACHER, ("classifier",), fields)
    task = own_texts(kind, Distillation(teacher_model, 0.4, 2.0, 0.5, 4))
    params, teacher = drawn(task.model, teacher_model)
    ids, mask, types = random_rows(6)
    targets = {
        "classes": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "number": np.linspace(-1, 1, 6, dtype=np.float32),
        "several": np.eye(6, 3, dtype=np.float32),
    }[kind]
    weights = np.linspace(0.5, 1.5, 6, dtype=np.float32)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    batch |= {"labels": targets, "weights": weights}
    loss, metrics = jax.jit(lambda p, t: loss_and_metrics(task, p, task.taught(batch, t)))(
        params, teacher
    )
    ours, theirs = jax.jit(
        lambda p, t: (task._logits(p, batch), task._seen(t, batch, model=teacher_model).logits)
    )(params, teacher)
    terms = soft_terms(kind, ours, theirs, 2.0)
    soft = float((terms * weights).sum() / weights.sum())
    np.testing.assert_allclose(metrics["soft_loss"], soft, rtol=1e-4)
    total = 0.6 * metrics["hard_loss"] + 0.4 * soft + 0.5 * metrics["relation_loss"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert metrics["relation_loss"] > 1e-4


@pytest.fixture
def classified(tmp_path, vocabulary):
    """A config that learns two kinds of texts from random weights."""
    config = texts_config.get_config("tiny")
    config.init_model = False
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
    config.model.update(dataclasses.asdict(PLAIN) | sizes)
    rows = [f"{_WORDS[n % 2]} {_WORDS[2 + n % 5]}\t{'ab'[n % 2]}" for n in range(60)]
    (tmp_path / "texts.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    data = config.data
    data.tokenizer, data.seq_length, data.workers = str(vocabulary), 32, 0
    data.train, data.folder = (str(tmp_path / "texts.tsv"),), str(tmp_path / "prepared")
    config.train.num_steps = config.train.eval_every = config.train.checkpoint_every = 4
    config.train.log_every = 2
    return config


@pytest.mark.slow
def test_a_fine_tuned_model_teaches_a_smaller_one(classified, tmp_path):
    classified.model.hidden_size, classified.model.sharing = 24, "none"
    train(check(classified), tmp_path / "teacher")
    classified.model.hidden_size, classified.model.sharing = 16, "all"
    classified.distillation.teacher = str(tmp_path / "teacher")
    classified.distillation.relations, classified.distillation.relation_heads = 1.0, 4
    classified.train.accumulation = 2
    train(check(classified), tmp_path / "student")
    line = records(tmp_path / "student")[-1]
    soft = 0.5 * line["hard_loss"] + 0.5 * line["soft_loss"]
    np.testing.assert_allclose(line["loss"], soft + line["relation_loss"], rtol=1e-5)
    assert {"accuracy", "loss"} < records(tmp_path / "student", "dev")[-1].keys()
    with pytest.raises(MemoryError):
        train(check(classified), tmp_path / "parts", watch=killed_at("log", 3))
    train(check(classified), tmp_path / "parts")
    assert_bit_equal(final_params(tmp_path / "parts", 4), final_params(tmp_path / "student", 4))
    text = (tmp_path / "texts.tsv").read_text()
    (tmp_path / "texts.tsv").write_text(text.replace("\ta\n", "\tz\n"))
    with pytest.raises(ConfigError, match="are a, b and those of the data b, z: they must be"):
        train(check(classified), tmp_path / "other")
