"""Checkpoints of the released program, read and written with TensorFlow itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import albert
import original as golden
from albert.checkpoints import CheckpointError
from albert.data.tokenizer import Tokenizer
from albert.interop import formats, original
from albert.interop.weights import entries, stacked, unstacked
from albert.models.encoder import Albert
from exports import tuned
from models import assert_same, random_weights
from test_fidelity import assert_golden, released_training

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tf():
    return original._tensorflow()


@pytest.fixture(params=golden.RUNS)
def run(request):
    return request.param


def tensors_of(tf, prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def save(tf, prefix, tensors):
    names = sorted(tensors)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tensors[name] for name in names],
    )


@pytest.fixture
def trained(run, tmp_path):
    """A folder with a checkpoint that the released program wrote after 8 steps."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for name in ("trained.ckpt.index", "trained.ckpt.data-00000-of-00001", "albert_config.json"):
        shutil.copy(golden.GOLDEN / run / name, folder)
    return folder


def test_what_it_wrote_reads_here(run, trained, tf):
    stored = tensors_of(tf, trained / "trained.ckpt")
    after = golden.load_arrays(run, "params_after_8.npz")
    for path in (trained, trained / "trained.ckpt", trained / "trained.ckpt.index"):
        weights = formats.read(path, with_moments=True)
        assert weights.step == 8
        assert not weights.missing
        assert not weights.left_over
        found = {e.name: e for e in entries(weights.config, original.name_of)}
        assert found.keys() == after.keys()
        for name, entry in found.items():
            for values, key in (
                (weights.params, name),
                (weights.mu, f"{name}/adam_m"),
                (weights.nu, f"{name}/adam_v"),
            ):
                np.testing.assert_array_equal(entry.write(values[entry.path]), stored[key])
            np.testing.assert_array_equal(entry.write(weights.params[entry.path]), after[name])
    assert len(stored) == 3 * len(after) + 1


def test_what_we_write_is_what_it_would(trained, tf, tmp_path):
    weights = formats.read(trained, with_moments=True)
    formats.write(weights, tmp_path / "ours", "original")
    ours = tensors_of(tf, tmp_path / "ours" / "model.ckpt-8")
    theirs = tensors_of(tf, trained / "trained.ckpt")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.asarray(ours[name]).dtype == np.asarray(value).dtype
        assert np.asarray(ours[name]).tobytes() == np.asarray(value).tobytes(), name
    assert tf.train.latest_checkpoint(str(tmp_path / "ours")).endswith("model.ckpt-8")
    written = json.loads((tmp_path / "ours" / "albert_config.json").read_text())
    known = json.loads((trained / "albert_config.json").read_text())
    assert written == {k: v for k, v in known.items() if k in written}


def test_once_round_every_format_is_bit_equal(trained, tf, tmp_path):
    formats.write(formats.read(trained, with_moments=True), tmp_path / "a", "albert")
    formats.write(formats.read(tmp_path / "a"), tmp_path / "b", "huggingface")
    formats.write(formats.read(tmp_path / "b"), tmp_path / "c", "albert")
    formats.write(formats.read(tmp_path / "c"), tmp_path / "d", "original")
    last = tensors_of(tf, tmp_path / "d" / "model.ckpt-0")
    first = tensors_of(tf, trained / "trained.ckpt")
    variables = {k for k in first if not k.endswith(("/adam_m", "/adam_v", "global_step"))}
    assert last.keys() == variables
    for name in variables:
        assert last[name].tobytes() == first[name].tobytes(), name
    # The optimizer goes along where the format can hold it.
    formats.write(formats.read(tmp_path / "a", with_moments=True), tmp_path / "e", "original")
    again = tensors_of(tf, tmp_path / "e" / "model.ckpt-8")
    assert all(np.array_equal(again[name], value) for name, value in first.items())


def test_a_run_is_continued_from_the_step_it_reached(run, tf, tmp_path):
    """Three updates here, through a TensorFlow checkpoint, five more: the golden eighth."""
    config = golden.load_config(run)
    optimizer, schedule, step = released_training(run, Albert(config))
    tree = golden.our_tree(golden.load_arrays(run, "initial.npz"), config)
    params = jax.tree.map(jnp.asarray, tree)
    opt_state = optimizer.init(params)
    for _ in range(3):
        params, opt_state, _ = step(params, opt_state)
    weights = random_weights()
    weights.config, weights.step = config, 3
    weights.params, weights.mu, weights.nu = (
        unstacked(config, {k: np.asarray(v) for k, v in flatten_dict(t, sep="/").items()})
        for t in (params, optax.tree.get(opt_state, "mu"), optax.tree.get(opt_state, "nu"))
    )
    formats.write(weights, tmp_path / "three", "original")
    weights = formats.read(tmp_path / "three", with_moments=True)
    params = jax.tree.map(jnp.asarray, weights.tree)
    opt_state = optax.tree.set(
        optimizer.init(params),
        mu=unflatten_dict(stacked(config, weights.mu), sep="/"),
        nu=unflatten_dict(stacked(config, weights.nu), sep="/"),
        count=jnp.asarray(weights.step, jnp.int32),
    )
    for _ in range(5):
        params, opt_state, _ = step(params, opt_state)
    assert_golden(run, 8, params, config)
    # And its slots are the released program's.
    shutil.copy(golden.GOLDEN / run / "albert_config.json", tmp_path)
    for name in ("trained.ckpt.index", "trained.ckpt.data-00000-of-00001"):
        shutil.copy(golden.GOLDEN / run / name, tmp_path)
    trained = formats.read(tmp_path / "trained.ckpt", with_moments=True)
    for name, values in (("mu", trained.mu), ("nu", trained.nu)):
        ours = unstacked(config, flatten_dict(optax.tree.get(opt_state, name), sep="/"))
        for path, value in values.items():
            scale = np.abs(value).max()
            # A key bias has a gradient of exactly 0 in theory: only noise there.
            np.testing.assert_allclose(
                ours[path], value, atol=1e-4 * scale + 1e-8, rtol=0, err_msg=path
            )
    facts = golden.load_run(run)
    ninth = facts["learning_rate"] * (1 - 9 / facts["num_train_steps"])
    np.testing.assert_allclose(schedule(trained.step), ninth, rtol=1e-6)


def test_exports_for_a_hub_are_read(trained, tf, tmp_path, vocabulary):
    stored = tensors_of(tf, trained / "trained.ckpt")
    hub = {f"module/{k}": v for k, v in stored.items() if not k.endswith(("adam_m", "adam_v"))}
    hub["global_step"] = hub.pop("module/global_step")
    hub = {k: v for k, v in hub.items() if "seq_relationship" not in k}
    save(tf, tmp_path / "hub" / "variables" / "variables", hub)
    (tmp_path / "hub" / "assets").mkdir()
    shutil.copy(trained / "albert_config.json", tmp_path / "hub" / "assets")
    shutil.copy(vocabulary, tmp_path / "hub" / "assets" / "30k-clean.model")
    with pytest.raises(CheckpointError, match=r"30k-clean\.model has 96 pieces .* 211"):
        formats.read(tmp_path / "hub")
    (tmp_path / "hub" / "assets" / "30k-clean.model").unlink()
    weights = formats.read(tmp_path / "hub", with_moments=True)
    assert weights.missing == ["sop_head"]
    assert weights.step == 8
    assert weights.mu is None
    assert weights.notes == ["no optimizer slots"]
    assert weights.names["pooler/bias"] == "module/bert/pooler/dense/bias"
    whole = formats.read(trained)
    for path, value in weights.params.items():
        np.testing.assert_array_equal(value, whole.params[path])
    assert albert.load(tmp_path / "hub")([[2, 5, 3]]).sop_logits is None


def test_missing_slots_and_foreign_variables_are_reported(trained, tf):
    stored = tensors_of(tf, trained / "trained.ckpt")
    stored.pop("bert/pooler/dense/bias/adam_v")
    stored["output_weights"] = np.ones((3, 32), np.float32)
    save(tf, trained / "trained.ckpt", stored)
    weights = formats.read(trained, with_moments=True)
    assert weights.mu is None
    assert "1 of" in weights.notes[0]
    assert "bert/pooler/dense/bias/adam_v among them" in weights.notes[0]
    assert "output_weights" in weights.left_over


def test_groups_and_random_models_go_there_and_back(tmp_path, tf):
    for number, changes in enumerate(
        [{}, {"sharing": "none", "inner_group_num": 2}, {"embedding_size": 16}]
    ):
        weights = random_weights(moments=True, **changes)
        formats.write(weights, tmp_path / str(number), "original")
        again = formats.read(tmp_path / str(number), with_moments=True)
        assert_same(again, weights)
        assert again.step == 7


@pytest.mark.parametrize(
    "heads",
    [
        {"classifier": {"labels": 3, "kind": "several"}},
        {"classifier": {"labels": 1, "kind": "choice"}},
        {"conditional_span": {"threshold": 1.5}},
    ],
)
def test_what_a_head_means_travels_too(heads, tmp_path, tf):
    formats.write(tuned(heads), tmp_path / "m", "original")
    assert formats.read(tmp_path / "m").heads == heads


@pytest.mark.parametrize("flags", [(True, True), (False, False)])
def test_the_vocabulary_travels_with_its_options(tmp_path, tf, vocabulary, flags):
    weights = random_weights(vocab_size=96)
    weights.tokenizer = Tokenizer(vocabulary, *flags)
    formats.write(weights, tmp_path / "m", "original")
    again = formats.read(tmp_path / "m").tokenizer
    assert again.fingerprint == weights.tokenizer.fingerprint
    assert (again.lower_case, again.strip_accents) == flags
    shutil.copy(vocabulary, tmp_path / "m" / "another.model")
    with pytest.raises(CheckpointError, match=r"several vocabularies beside .*another\.model, "):
        formats.read(tmp_path / "m")
    named = formats.read(tmp_path / "m", vocabulary=vocabulary).tokenizer
    assert named.lower_case == flags[0]


def test_of_several_checkpoints_the_state_file_chooses(tmp_path, tf):
    weights = random_weights(moments=True)
    formats.write(weights, tmp_path / "m", "original")
    weights.step = 9
    formats.write(weights, tmp_path / "n", "original")
    for file in (tmp_path / "n").glob("model.ckpt-9.*"):
        shutil.copy(file, tmp_path / "m")
    assert formats.read(tmp_path / "m").step == 7
    assert formats.read(tmp_path / "m" / "model.ckpt-9").step == 9
    (tmp_path / "m" / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"several checkpoints; name one of .*ckpt-7, .*-9"):
        formats.read(tmp_path / "m")


DATA = "trained.ckpt.data-00000-of-00001"


def rewrite(change, name):
    def spoil(folder):
        content = bytearray((folder / name).read_bytes())
        changed = change(content)
        (folder / name).write_bytes(bytes(content if changed is None else changed))

    return spoil


def flip(content):
    content[len(content) // 2] ^= 1


def other_config(**changes):
    def spoil(folder):
        path = folder / "albert_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


BAD = {
    "truncated data": (
        rewrite(lambda c: c[: len(c) // 2], DATA),
        r"trained\.ckpt, variable \S+ cannot be read: it is damaged",
    ),
    "a flipped bit": (rewrite(flip, DATA), r"trained\.ckpt, variable \S+ cannot be read"),
    "truncated index": (
        rewrite(lambda c: c[: len(c) // 2], "trained.ckpt.index"),
        r"trained\.ckpt cannot be read: it is damaged, cut off or not",
    ),
    "empty index": (rewrite(lambda c: b"", "trained.ckpt.index"), r"trained\.ckpt cannot be read"),
    "foreign index": (
        rewrite(lambda c: b"hello" * 100, "trained.ckpt.index"),
        r"trained\.ckpt cannot be read",
    ),
    "no data": (lambda folder: (folder / DATA).unlink(), r"trained\.ckpt.* cannot be read"),
    "no config": (
        lambda folder: (folder / "albert_config.json").unlink(),
        r"There is no albert_config\.json beside .*trained\.ckpt",
    ),
    "cut config": (
        rewrite(lambda c: c[:50], "albert_config.json"),
        r"albert_config\.json is not a JSON file, or is cut off",
    ),
    "activation": (
        other_config(hidden_act="swish"),
        r"albert_config\.json: hidden_act is 'swish'; known here are gelu, relu",
    ),
    "shape": (
        other_config(vocab_size=212),
        r"trained\.ckpt does not fit .*albert_config\.json: "
        r"bert/embeddings/word_embeddings has shape \[211, \d+\] and should have \[212",
    ),
    "more groups": (
        other_config(num_hidden_groups=3),
        r"trained\.ckpt lacks \d+ of .*transformer/group_[12]/",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints_are_told_in_a_sentence(trained, tf, kind, tmp_path):
    spoil, words = BAD[kind]
    spoil(trained)
    with pytest.raises(CheckpointError, match=words) as caught:
        formats.read(trained, with_moments=True)
    assert "\n" not in str(caught.value)
    done = (
        subprocess.run(
            [
                sys.executable,
                "tools/convert.py",
                f"--input={trained}",
                f"--output={tmp_path / 'out'}",
                "--format=huggingface",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if kind == "truncated data"
        else None
    )
    assert done is None or done.returncode == 2
    assert os.listdir(tmp_path) == ["trained"]


def test_a_checkpoint_of_another_program(tmp_path, tf):
    save(tf, tmp_path / "other", {"dense/kernel": np.ones((2, 2), np.float32)})
    shutil.copy(golden.GOLDEN / "shared_lamb" / "albert_config.json", tmp_path)
    with pytest.raises(CheckpointError, match="It is not an ALBERT checkpoint"):
        formats.read(tmp_path / "other")


def test_a_squad_model_of_the_released_program_is_read(tf, shared, tmp_path):
    """Version 2.0 of the golden runs; written and read again it is the same."""
    folder = shared / "golden" / "finetuning"
    for file in (folder / "trained").glob("squad_v2.ckpt*"):
        shutil.copy(file, tmp_path / file.name)
    shutil.copy(folder / "encoder" / original.CONFIG_NAME, tmp_path)
    weights = formats.read(tmp_path / "squad_v2.ckpt")
    assert weights.heads == {"conditional_span": {}}
    assert weights.missing == ["mlm_head", "sop_head"]
    with np.load(folder / "squad_runs" / "v2.npz") as after:
        np.testing.assert_array_equal(
            weights.params["conditional_span_head/end_pairs/kernel"],
            after["after3/end_logits/dense_0/kernel"],
        )
    formats.write(weights, tmp_path / "again", "original")
    assert_same(formats.read(tmp_path / "again"), weights)


def test_a_fine_tuned_model_of_the_released_program_is_read(tf, shared, tmp_path):
    """Its MNLI model of the golden runs, and the same written and read again."""
    folder = shared / "golden" / "finetuning"
    for file in (folder / "trained").glob("mnli.ckpt*"):
        shutil.copy(file, tmp_path / file.name)
    shutil.copy(folder / "encoder" / original.CONFIG_NAME, tmp_path)
    weights = formats.read(tmp_path / "mnli.ckpt")
    assert weights.heads == {"classifier": {"labels": 3, "kind": "classes"}}
    assert weights.missing == ["mlm_head", "sop_head"]
    with np.load(folder / "glue_runs" / "mnli.npz") as golden:
        np.testing.assert_array_equal(
            weights.params["classifier_head/kernel"].T, golden["after3/output_weights"]
        )
    weights.labels = ("contradiction", "entailment", "neutral")
    formats.write(weights, tmp_path / "again", "original")
    again = formats.read(tmp_path / "again")
    assert again.labels == weights.labels
    assert_same(again, weights)
