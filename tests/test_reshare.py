"""Other sharing, another depth: what is the same function stays it, and means are means."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from albert.checkpoints import CheckpointError
from albert.inference import Pretrained
from albert.interop import formats
from albert.interop.reshare import reshare
from albert.interop.weights import layer_path
from albert.runtime.fields import ConfigError
from albert.train.config import check
from albert.train.init_from import read_start
from albert.train.loop import train
from models import assert_same, random_rows, random_weights

ROOT = Path(__file__).resolve().parent.parent
PLAIN = {"per_layer_norm": False, "lora_rank": 0}


def changed(weights, **fields):
    return dataclasses.replace(weights.config, **fields)


def outputs(weights):
    model = Pretrained(weights)
    return np.asarray(model(*random_rows(), output_hidden_states=True).hidden_states)


@pytest.mark.parametrize(
    "fields",
    [
        {"sharing": "all"},
        {"sharing": "attention", "lora_rank": 2},
        {"sharing": "cycle_reversed:2", "per_layer_norm": True, "lora_rank": 3},
        {"sharing": "sandwich"},
        {"sharing": "groups:2", "inner_group_num": 2, "num_hidden_layers": 2},
    ],
)
def test_written_out_layers_are_the_same_function(fields):
    weights = random_weights(**{"num_hidden_layers": 4, **fields})
    plain = reshare(weights, changed(weights, sharing="none", **PLAIN))
    np.testing.assert_allclose(outputs(plain), outputs(weights), rtol=1e-4, atol=1e-4)
    if "lora_rank" not in fields:
        # And back: the mean of equal layers is each of them, to the bit.
        again = reshare(plain, weights.config)
        assert_same(dataclasses.replace(weights, notes=[]), again)


def test_shared_weights_are_the_mean():
    weights = random_weights(sharing="none", num_hidden_layers=4)
    shared = reshare(weights, changed(weights, sharing="groups:2"))
    for leaf in ("intermediate/kernel", "attention/query/bias", "output_layer_norm/scale"):
        of = [weights.params[layer_path(weights.config, d, leaf)] for d in range(4)]
        for group in range(2):
            mean = (of[2 * group] + of[2 * group + 1]) / 2
            ours = shared.params[layer_path(shared.config, group, leaf)]
            np.testing.assert_allclose(ours, mean, rtol=1e-6, atol=1e-7)


def test_svd_of_full_rank_loses_nothing():
    weights = random_weights(sharing="none", num_hidden_layers=3)
    config = changed(weights, sharing="all", per_layer_norm=True, lora_rank=16)
    np.testing.assert_allclose(
        outputs(reshare(weights, config, "svd")), outputs(weights), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("leaf", ["attention/query", "attention/output", "output"])
def test_svd_is_the_best_approximation(leaf):
    """Eckart and Young: the error is what the singular values left out weigh."""
    weights = random_weights(sharing="none", num_hidden_layers=3)
    config = changed(weights, sharing="all", lora_rank=2)
    found = reshare(weights, config, "svd")
    mean = found.params[f"encoder/group_0/layer_0/{leaf}/kernel"]
    for depth in range(3):
        a, b = (found.params[f"encoder/group_{depth}/layer_0/{leaf}/lora_{x}"] for x in "ab")
        difference = weights.params[f"encoder/group_{depth}/layer_0/{leaf}/kernel"] - mean
        error = np.linalg.norm(difference - np.tensordot(a, b, axes=1))
        matrix = difference.reshape(a[..., 0].size, -1)
        left = np.linalg.svd(matrix, compute_uv=False)[2:]
        np.testing.assert_allclose(error, np.sqrt((left**2).sum()), rtol=1e-4)


def test_svd_of_no_difference_can_still_learn():
    """Were both factors zero, so would their gradients be, for ever."""
    weights = random_weights(sharing="cycle:2", num_hidden_layers=4)
    config = changed(weights, sharing="sandwich", lora_rank=2)
    unlike = reshare(weights, config, "svd")
    alike = reshare(weights, dataclasses.replace(config, sharing="cycle:2"), "svd")
    np.testing.assert_allclose(outputs(alike), outputs(weights), rtol=1e-4, atol=1e-4)
    for found, depths in ((alike, range(4)), (unlike, (0, 3))):  # the ends are nobody's but theirs
        for depth in depths:
            for leaf in ("attention/query", "attention/output", "intermediate", "output"):
                a, b = (
                    found.params[f"encoder/group_{depth}/layer_0/{leaf}/lora_{x}"] for x in "ab"
                )
                assert not b.any()
                assert (np.abs(a).max(axis=tuple(range(a.ndim - 1))) > 1e-3).all()
    b = unlike.params["encoder/group_1/layer_0/intermediate/lora_b"]
    assert b.any(axis=-1).all()


def test_deeper_repeats_the_stack_and_shallower_takes_every_other_layer():
    weights = random_weights(sharing="none", num_hidden_layers=2)
    leaf = "intermediate/kernel"

    def layers(w):
        n = w.config.num_hidden_layers
        return [w.params[layer_path(w.config, d, leaf)] for d in range(n)]

    a, b = layers(weights)
    deep = reshare(weights, changed(weights, num_hidden_layers=5))
    assert [x is a or np.array_equal(x, a) for x in layers(deep)] == [True, False] * 2 + [True]
    back = reshare(deep, changed(deep, num_hidden_layers=2))
    np.testing.assert_array_equal(layers(back)[0], a)
    four = random_weights(sharing="none", num_hidden_layers=4)
    two = reshare(four, changed(four, num_hidden_layers=2))
    np.testing.assert_array_equal(layers(two), layers(four)[::2])
    assert not np.array_equal(a, b)


@pytest.mark.slow
def test_a_run_grows_from_another(tiny, run, tmp_path, capsys):
    """Three shared layers to six unshared ones, those to four with differences, and so on."""
    tiny.train.num_steps = tiny.train.eval_every = 2
    tiny.data.tokenizer = ""
    tiny.init_from = str(run)
    tiny.model.sharing, tiny.model.num_hidden_layers = "none", 6
    _, start = read_start(check(tiny))
    shared = formats.read(run).params["encoder/group_0/layer_0/intermediate/kernel"]
    for depth in range(6):
        ours = start.params[f"encoder/group_{depth}/layer_0/intermediate/kernel"]
        np.testing.assert_array_equal(ours, shared)
    train(check(tiny), tmp_path / "deep")
    assert "sharing all -> none, num_hidden_layers 3 -> 6" in capsys.readouterr().out

    tiny.init_from = str(tmp_path / "deep")
    tiny.model.sharing, tiny.model.num_hidden_layers = "cycle:2", 4
    tiny.model.lora_rank, tiny.init_method = 2, "svd"
    train(check(tiny), tmp_path / "low")
    found = formats.read(tmp_path / "low")
    assert found.config.lora_rank == 2
    assert found.params["encoder/group_3/layer_0/output/lora_b"].any()
    assert "layers put together anew by svd" in capsys.readouterr().out.lower()


def test_growing_the_papers_way_keeps_every_tensor_and_the_moments(tiny, run, tmp_path):
    """Shared layers of 3 steps as layers of 6: nothing to put together."""
    tiny.init_from, tiny.data.tokenizer = str(run), ""
    tiny.init_optimizer = True
    tiny.model.num_hidden_layers = 6
    tiny.train.num_steps = 20
    _, start = read_start(check(tiny))
    assert start.step == 8
    assert start.params.keys() == formats.read(run).params.keys()


def test_what_cannot_be_put_together_is_told(tiny, run):
    tiny.init_from, tiny.data.tokenizer = str(run), ""
    tiny.init_optimizer, tiny.train.num_steps = True, 20
    tiny.model.sharing = "none"
    with pytest.raises(ConfigError, match=r"init_optimizer is True and the layers of init_from"):
        read_start(check(tiny))
    tiny.init_optimizer, tiny.init_method = False, "svd"
    with pytest.raises(ConfigError, match=r"init_method is svd and .* model\.lora_rank 0"):
        check(tiny)
    tiny.model.sharing, tiny.model.lora_rank = "all", 2
    tiny.model.hidden_size = 48
    with pytest.raises(ConfigError, match=r"model\.hidden_size is 48 and that of init_from"):
        read_start(check(tiny))
    tiny.init_method = "mean"
    with pytest.raises(ConfigError, match="init_method is 'mean'; it must be one of average, svd"):
        check(tiny)


def test_uneven_groups_are_refused_unless_a_released_model_has_them(tiny):
    tiny.model.num_hidden_layers, tiny.model.sharing = 6, "groups:4"
    with pytest.raises(
        ConfigError, match=re.escape("must divide num_hidden_layers, 6: one of 1, 2, 3, 6")
    ):
        check(tiny)
    tiny.init_from = "somewhere"
    check(tiny)


@pytest.mark.parametrize(
    "fields",
    [
        {"sharing": "sandwich"},
        pytest.param({"per_layer_norm": True}, marks=pytest.mark.slow),
        pytest.param({"lora_rank": 2}, marks=pytest.mark.slow),
    ],
)
def test_other_programs_get_the_layers_written_out(tmp_path, fields):
    weights = random_weights(**fields)
    with pytest.raises(CheckpointError, match=r"transformers knows model\.sharing all, none and"):
        formats.write(weights, tmp_path / "hf", "huggingface")
    assert not (tmp_path / "hf").exists()
    formats.write(weights, tmp_path / "ours", "albert")
    assert_same(formats.read(tmp_path / "ours"), weights)
    done = subprocess.run(
        [
            sys.executable,
            "tools/convert.py",
            f"--input={tmp_path / 'ours'}",
            "--sharing=none",
            f"--output={tmp_path / 'hf'}",
            "--format=huggingface",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "layers put together anew" in done.stdout
    there = formats.read(tmp_path / "hf")
    assert there.config.sharing == "none"
    np.testing.assert_allclose(outputs(there), outputs(weights), rtol=1e-4, atol=1e-4)
