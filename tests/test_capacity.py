"""Whether a config fits devices that are not here, and what is said where the memory of one is
exhausted."""

import dataclasses
import gzip
import importlib.util
import json
import math
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import pytest

from albert.models.encoder import Albert, abstract_params
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks import find_task
from albert.tasks.distillation import Distillation, DistillationConfig
from albert.train import capacity
from albert.train.capacity import asked, assumed_mfu, fits_of, fitting, plan, plans, remedy
from albert.train.chips import CHIPS, Devices, read_devices
from albert.train.compiler import ask, topology_of
from albert.train.config import check, parts_of
from albert.train.cost import activation_bytes_per_row, describe, state_bytes
from albert.train.loop import train
from albert.train.optimizers import make_optimizer
from albert.train.out_of_memory import explained
from albert.train.sharding import bytes_of_a_device, mesh_over
from albert.train.step import abstract_state, make_gradient, new_state
from configs import base, base_two_lengths, large, xlarge, xxlarge
from faults import hungry
from runs import ROOT
from steps import abstract_batch, pretraining_of

SIZES = {"base": base, "large": large, "xlarge": xlarge, "xxlarge": xxlarge}


def configured(size, rows=None, **model):
    """A config of the paper's recipe; rows: of a batch."""
    values = SIZES[size].get_config()
    values.model.update(model)
    values.train.batch_size = rows or values.train.batch_size
    return check(values, needs_text=False)


@pytest.mark.parametrize(
    "mesh", [{}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 1, "tensor": 4}]
)
def test_state_of_a_device_is_what_is_laid_on_it(tiny, mesh):
    number = 4 if mesh.get("tensor") == 4 else 8
    config = check(tiny)
    sharding = dataclasses.replace(config.sharding, **({"data": -1} | mesh))
    config = dataclasses.replace(config, sharding=sharding)
    task = pretraining_of(config.model)
    optimizer, _ = make_optimizer(config.optimizer, 10)
    devices = jax.devices()[:number]
    shape = sharding.mesh_shape(number)
    mesh_of = mesh_over(devices, shape)
    state = abstract_state(partial(task.init, task.model), optimizer, mesh_of, sharding)

    def laid(tree):
        return sum(
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(tree)
        )

    found = fits_of(config, number, 1e9, "cpu", "xla")["none"].held
    assert found["parameters"] == laid(state.params)
    assert found["optimizer"] == laid(state.opt_state)
    # Rows meet weights whole along "fsdp", and cut along "tensor" alone.
    across = dataclasses.replace(sharding, data=1, fsdp=1)
    boxed = jax.eval_shape(lambda: new_state(partial(task.init, task.model), optimizer, 0)).params
    whole = bytes_of_a_device(boxed, across, mesh.get("tensor", 1))
    assert found["gradients"] == whole
    assert found.get("parameters in use", 0) == (whole if "fsdp" in mesh and shape[2] > 1 else 0)


# What compilers said of a step at L 512: chip, config, rows of a device, remat -> bytes at the
# peak. TPUs: libtpu 0.0.42, 16 chips; H100: the temporaries of docs/results.md and the state.
COMPILED = [
    ("v5e", "base", 64, "none", 12_339_427_328),
    ("v5e", "large", 16, "none", 7_635_771_904),
    ("v5e", "xlarge", 16, "full", 2_626_611_712),
    ("v5e", "xxlarge", 4, "full", 4_555_161_088),
    ("v6e", "xxlarge", 8, "full", 5_152_009_184),
    ("h100", "base", 32, "none", 4.70e9 + 0.14e9),
    ("h100", "base", 32, "dots", 3.88e9 + 0.14e9),
    ("h100", "large", 32, "none", 11.51e9 + 0.21e9),
    ("h100", "xlarge", 32, "none", 22.92e9 + 0.71e9),
    ("h100", "xxlarge", 8, "none", 7.25e9 + 2.68e9),
    ("h100", "xxlarge", 32, "none", 25.22e9 + 2.68e9),
]


@pytest.mark.parametrize(("chip", "size", "rows", "remat", "peak"), COMPILED)
def test_memory_is_about_what_compilers_said(chip, size, rows, remat, peak):
    """A little more rather than less, so that what is said to fit does."""
    number = 16 if CHIPS[chip].backend == "tpu" else 1
    planned = plan(configured(size, rows * number, remat=remat), Devices(chip, number))
    assert planned.fit.at_once == rows
    assert 0.98 < planned.fit.needed / peak < 1.12


@pytest.mark.parametrize(
    ("size", "batch", "remat", "mesh", "microbatch", "number", "peak"),
    [
        ("base", 256, "none", {"tensor": 4}, 0, 16, 5.06e9),
        ("xxlarge", 64, "full", {"data": 1, "fsdp": 16}, 0, 16, 1.95e9),
        ("xxlarge", 4096, "none", {}, 8, 256, 12.50e9),
    ],
)
def test_so_it_is_where_layers_or_weights_are_cut_or_a_batch_is(
    size, batch, remat, mesh, microbatch, number, peak
):
    """On v5e chips."""
    config = configured(size, batch, remat=remat)
    config = dataclasses.replace(
        config,
        sharding=dataclasses.replace(config.sharding, **mesh),
        train=dataclasses.replace(config.train, microbatch=microbatch),
    )
    assert 0.98 < plan(config, Devices("v5e", number)).fit.needed / peak < 1.12


def test_times_and_bytes_by_hand():
    config = configured("base")
    planned = plan(config, Devices("h100", 8), mfu=0.4)
    rate = 0.4 * 8 * 989e12 / describe(config)["flops_per_token"]
    assert planned.tokens_per_second == pytest.approx(rate)
    assert planned.days == pytest.approx(125_000 * 4096 * 512 / rate / 86400)
    assert planned.step_seconds == pytest.approx(4096 * 512 / rate)
    state = state_bytes(config)
    assert planned.checkpoint_bytes == state["parameters"] + state["optimizer"]
    assert planned.workdir_bytes == 5 * planned.checkpoint_bytes  # 3 newest, the best, a new one
    assert planned.sent_bytes == round(2 * 7 / 8 * state["gradients"])
    assert planned.sent_seconds == pytest.approx(planned.sent_bytes / 450e9)
    halved = dataclasses.replace(config.train, reduce_dtype="bfloat16")
    sent = plan(dataclasses.replace(config, train=halved), Devices("h100", 8)).sent_bytes
    assert sent == round(planned.sent_bytes / 2)
    assert json.loads(json.dumps(planned.facts()))["tokens_per_second"] == pytest.approx(rate)


def test_each_phase_has_its_plan():
    """Nine tenths of the steps with rows of 128 tokens: more of them fit, and the days add up."""
    config = check(base_two_lengths.get_config(), needs_text=False)
    short, long = plans(config, Devices("v5e", 256), mfu=0.4)
    assert short.fit.most_at_once > 3 * long.fit.most_at_once
    days = (short.days + long.days) * 86400 * 0.4 * 256 * 197e12
    assert days == pytest.approx(describe(config)["flops_of_run"])
    assert short.phase.startswith("steps 1 to ")
    assert f"not measured; {long.phase}" in long.lines()[0]


def test_the_assumed_mfu_is_that_of_an_h100_there_and_less_where_memory_is_slow():
    for width, expected in ((768, 0.31), (1024, 0.38), (2048, 0.51), (4096, 0.61)):
        assert assumed_mfu(width, CHIPS["h100"]) == pytest.approx(expected)
        assert assumed_mfu(width, CHIPS["h200"]) > expected > assumed_mfu(width, CHIPS["v6e"])
    # docs/results.md has 37 for base and 65 for xxlarge on an H200.
    assert assumed_mfu(768, CHIPS["h200"]) == pytest.approx(0.37, abs=0.01)
    assert assumed_mfu(4096, CHIPS["h200"]) == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize(
    ("size", "of"), [("base", "v5e:256"), ("base", "a100-40:1"), ("xxlarge", "v5e:256")]
)
def test_what_is_advised_fits_and_nothing_larger_does(size, of):
    config, devices = configured(size), read_devices(of)
    before = plan(config, devices)
    changed = fitting(config, devices)
    after = plan(changed, devices)
    assert after.fit.fits
    assert after.problem is None
    assert (changed == config) == before.fit.fits
    if before.fit.fits:
        return
    words = f"--config.train.microbatch={changed.train.microbatch}: "
    assert words in before.problem
    assert f"more memory than each of {devices} has" in before.problem
    assert parts_of(changed, devices.number) == after.parts
    larger = min(n for n in range(after.fit.at_once + 1, 4097) if after.fit.rows % n == 0)
    train_ = dataclasses.replace(changed.train, microbatch=larger)
    assert not plan(dataclasses.replace(changed, train=train_), devices).fit.fits


def test_where_not_one_row_fits_it_says_what_else_there_is():
    config = configured("xxlarge", sharing="none", remat="full")
    problem = plan(config, Devices("v5e", 8)).problem
    assert "Not one row fits, with model.remat=full neither: hold weights in pieces" in problem
    cut = dataclasses.replace(config.sharding, data=1, fsdp=-1)
    held = plan(dataclasses.replace(config, sharding=cut), Devices("v5e", 64)).fit.held
    whole = state_bytes(config)["parameters"]
    assert whole / 64 <= held["parameters"] < 1.01 * whole / 64  # the heads' biases are not cut


def test_a_policy_that_keeps_less_is_advised_where_no_row_fits(tiny):
    tiny.model.num_hidden_layers = 40
    config = check(tiny)
    of = fits_of(config, 8, 0, "cpu", "xla")
    del of["dots"]
    # Room for the gradients of several parts and a row of the second.
    room = sum(of["none"].held.values()) + of["none"].held["gradients"] + of["full"].per_row
    assert of["full"].per_row < of["none"].per_row
    told = remedy(config, {name: dataclasses.replace(one, memory=room) for name, one in of.items()})
    assert "Set --config.model.remat=full --config.train.microbatch=1: 1 of the 2 rows" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5:8", r"--devices names 'v5'; there is v4, v5e, v5p"),
        ("v5e", r"--devices is 'v5e'; it must be NAME:NUMBER, such as v5e:256"),
        ("v5e:0", "it must be NAME:NUMBER"),
        ("h100:8.5", "it must be NAME:NUMBER"),
    ],
)
def test_devices_that_there_are_not_are_told(text, words):
    with pytest.raises(ConfigError, match=words):
        read_devices(text)


def test_devices_that_cannot_serve_are_told():
    with pytest.raises(ConfigError, match=r"batch_size = 4096 rows cannot be shared by 3 devices"):
        plan(configured("base"), Devices("v5e", 3))
    with pytest.raises(ConfigError, match=r"attention is 'splash', and Splash is not there on gpu"):
        plan(configured("base", attention="splash"), Devices("h100", 8))
    assert plan(configured("base"), Devices("h100", 8)).kernel == "cudnn"
    assert plan(configured("base"), Devices("v6e", 8)).kernel == "splash"


def test_of_a_gpu_jax_takes_a_share(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert CHIPS["h100"].available[0] == pytest.approx(0.9 * 79 * 2**30)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ConfigError, match="FRACTION is 'most'; it must be a number"):
        plan(configured("base"), Devices("h100", 8))


def describe_program(*more):
    return subprocess.run(
        [sys.executable, "train.py", "--describe", *more], cwd=ROOT, capture_output=True, text=True
    )


def test_the_program_leaves_with_2_where_a_config_does_not_fit(tmp_path):
    done = describe_program("--config=configs/xxlarge.py", "--devices=v5e:256")
    assert done.returncode == 2
    assert "this config asks for more memory than each of 256 x v5e has" in done.stderr
    assert "--config.train.microbatch=8" in done.stderr
    (facts,) = json.loads(done.stdout.splitlines()[-1])["plans"]
    assert not facts["fits"]
    assert facts["rows_that_fit"]["none"] >= facts["microbatch"]["none"] == 8
    done = describe_program("--config=configs/base.py", "--mfu=0.3")
    assert done.returncode == 2
    assert "--mfu and --ask_compiler are of --describe --devices=NAME:NUMBER" in done.stderr


@pytest.mark.slow
def test_the_table_has_a_line_for_each(tmp_path):
    configs = "configs/base.py,configs/base.py:v1,tiny,configs/base_two_lengths.py"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/capacity.py", "--devices=h100:8", f"--configs={configs}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    two = "| base_two_lengths, steps"
    assert [line[0].partition(": ")[0] for line in lines[2:]] == [
        "| base",
        "| base:v1,tiny",
        f"{two} 1 to 112500",
        f"{two} 112501 to 125000",
    ]
    assert {line[1] for line in lines[2:]} == {"8 x h100"}
    assert {len(line) for line in (lines[0], *lines[2:])} == {16}


def test_what_the_compiler_cannot_be_asked_is_told(monkeypatch):
    for devices, words in (
        (Devices("h100", 8), "libtpu compiles for v5e, v6e, v5p, tpu7x, not for h100"),
        (Devices("v5e", 24), r"no slice of 24 x v5e; there are 4, 8, 16, 32, 64, 128, 256"),
    ):
        with pytest.raises(ConfigError, match=words):
            topology_of(devices)
    assert topology_of(Devices("v5e", 256)) == "v5e:16x16"
    assert topology_of(Devices("tpu7x", 32)) == "tpu7x:2x2x4"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the compiler of TPUs is not installed; pip install"):
        ask(configured("base"), Devices("v5e", 16), "splash", print)


def test_the_compiler_has_the_last_word(monkeypatch):
    answers = {"fits": False}
    monkeypatch.setattr(capacity, "ask", lambda *_: answers)
    config, devices = configured("base"), Devices("v5e", 256)
    planned = asked(config, plan(config, devices), print)
    assert "the compiler finds no room on 256 x v5e for this config" in planned.problem
    assert "Set --config.train.microbatch=8: " in planned.problem  # the next smaller one
    large = configured("xxlarge")
    answers |= {"fits": True, "peak": 15.9e9}
    planned = asked(large, plan(large, devices), print)
    assert not planned.fit.fits
    assert planned.problem is None
    assert "it fits, 15.90 GB" in "\n".join(planned.lines())


@pytest.mark.compilers
def test_the_compiler_is_asked_about_chips_that_are_not_here():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    devices = Devices("v5e", 16)
    config = configured("base", rows=16 * 16)
    answer = ask(config, devices, "splash", print)
    assert answer["fits"]
    assert 0.9 < plan(config, devices).fit.needed / answer["peak"] < 1.2
    too_large = configured("base", rows=16 * 1024)
    assert ask(too_large, devices, "splash", print) == {"fits": False}


@pytest.mark.parametrize("relations", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_a_teacher_adds_is_within_a_factor_of_two(tiny, relations):
    """Of the temporaries of the gradient, as compiled here."""
    tiny.model.hidden_size, tiny.model.intermediate_size = 64, 256
    tiny.model.max_position_embeddings = tiny.data.seq_length = 128
    tiny.data.max_predictions = 20
    tiny.model.hidden_dropout_prob = tiny.model.attention_probs_dropout_prob = 0.0
    config = check(tiny)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocab_size=2000, num_hidden_layers=1),
        distillation=DistillationConfig("a teacher", 0.5, None, relations, 4),
    )
    wide = dataclasses.replace(config.model, hidden_size=256, intermediate_size=1024)
    teacher = dataclasses.replace(wide, num_hidden_layers=6)
    held = []
    for model in (None, Albert(teacher, ("mlm",))):
        task = pretraining_of(config.model)
        params = nn.meta.unbox(task.abstract_params(task.model))
        arguments = [params, abstract_batch(config)]
        if model is not None:
            task.distillation = Distillation(model, 0.5, 2.0, relations, 4)
            arguments.append(nn.meta.unbox(abstract_params(model)))

        def gradient(params, batch, teacher=None, task=task):
            return make_gradient(task, 1)(params, batch, None, task.denominators(batch), teacher)

        compiled = jax.jit(gradient).lower(*arguments).compile()
        held.append(compiled.memory_analysis().temp_size_in_bytes)
    alone = activation_bytes_per_row(config, None, "xla")
    with_teacher = activation_bytes_per_row(config, teacher, "xla")
    added = config.train.batch_size * (with_teacher - alone)
    assert 0.5 < added / (held[1] - held[0]) < 2


# Where it happens.


def test_a_step_that_no_device_has_the_memory_for_says_what_would_fit(tiny, tmp_path, monkeypatch):
    """By jax's own error, of a step that asks for 64 TB."""
    hungry(monkeypatch, 2**46)
    with pytest.raises(RunError) as error:
        train(check(tiny), tmp_path)
    text = str(error.value)
    assert re.search(r"The memory of a device does not suffice \((compiling|steps)\)", text)
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 70" in text
    assert "By arithmetic a step needs" in text
    assert "A layer keeps for each token, in bytes: 2,000 with remat none" in text
    assert "Set --config.train.microbatch=1: 1 of the 2 rows of a device at once" in text
    profile = tmp_path / "out_of_memory.prof"
    assert f"pprof -http=: {profile}" in text
    assert b"space" in gzip.decompress(profile.read_bytes())  # what pprof's samples are of


def exhausted(config, workdir, doing, error="RESOURCE_EXHAUSTED: Out of memory"):
    task = SimpleNamespace(attention_use=find_task("pretraining").attention_use, distillation=None)
    with explained(workdir, lambda: (config, task, doing)):
        raise jax.errors.JaxRuntimeError(error)


def test_an_evaluation_has_rows_of_its_own(tiny, tmp_path):
    with pytest.raises(RunError, match=r"eval_batch_size to less than 32, its rows over all"):
        exhausted(check(tiny), tmp_path, "evaluation")


def test_other_errors_pass_and_a_profile_that_cannot_be_written_is_told(tiny, tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: another"):
        exhausted(check(tiny), tmp_path, "steps", "INTERNAL: another")
    with pytest.raises(
        RunError, match=r"What held the memory could not be written: .*No such file"
    ):
        exhausted(check(tiny), tmp_path / "nowhere", "steps")
