"""Every config builds and traces, every field is read, every mistake is told at once."""

import dataclasses
import importlib
import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import pytest
from absl import flags
from ml_collections import config_flags

from albert.models.encoder import Albert, abstract_params
from albert.runtime.fields import ConfigError
from albert.tasks.pretraining import Pretraining
from albert.train import config as config_module
from albert.train.config import (
    Config,
    check,
    check_devices,
    from_json,
    in_steps,
    parts_of,
    rows_at_once,
    split_overrides,
)
from albert.train.cost import describe
from albert.train.optimizers import OPTIMIZERS, make_optimizer
from albert.train.schedules import SCHEDULES
from albert.train.step import make_train_step, new_state
from configs import default
from steps import abstract_batch

CONFIGS = sorted(p.stem for p in (Path(__file__).parent.parent / "configs").glob("*.py"))
CONFIGS = [name for name in CONFIGS if name not in ("default", "__init__")]


def load(name, arg=""):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    return config


def trace_step(config: Config):
    task = Pretraining(config)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    state = nn.meta.unbox(
        jax.eval_shape(lambda: new_state(partial(task.init, task.model), optimizer, config.seed))
    )
    step = make_train_step(task, optimizer, schedule, config.train.accumulation, config.seed)
    return jax.eval_shape(step, state, abstract_batch(config))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("arg", ["", "tiny", "v1", "v1,tiny"])
def test_every_config_builds_and_traces(name, arg):
    config = check(load(name, arg), needs_text=False)
    _, metrics = trace_step(config)
    assert metrics["loss"].shape == ()
    check_devices(config, abstract_params(Albert(config.model)), 1)
    assert json.dumps(describe(config))


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_is_tiny_and_has_two_checkpoints(name):
    config = check(load(name, "tiny"))
    facts = describe(config)
    assert facts["flops_of_run"] < 1e12
    assert config.train.num_steps // config.train.checkpoint_every >= 2


def test_an_unknown_config_argument_is_refused():
    with pytest.raises(ValueError, match="unknown config argument 'v3'; there is v1, v2 and tiny"):
        load("base", "v3")


def test_v1_has_dropout_except_in_xxlarge():
    assert load("base", "v1").model.hidden_dropout_prob == 0.1
    assert load("xxlarge", "v1").model.hidden_dropout_prob == 0.0
    assert load("base", "").model.hidden_dropout_prob == 0.0


def test_every_field_is_read_by_something(tiny, tmp_path, monkeypatch):
    """Runs the loop with sections that remember which of their fields were read."""
    from albert.train.loop import train

    read = set()
    tiny.data.tokenizer = ""  # so that a vocabulary is trained as well
    tiny.data.folder = str(tmp_path / "prepared")
    tiny.train.num_steps = 3
    config = check(tiny)
    sections = [name for name in vars(config) if dataclasses.is_dataclass(getattr(config, name))]
    for name in sections:
        kind = type(getattr(config, name))
        original = kind.__getattribute__

        def remember(self, field, name=name, original=original):
            read.add((name, field))
            return original(self, field)

        monkeypatch.setattr(kind, "__getattribute__", remember)
    # What only copies fields does not count as a reader.
    monkeypatch.setattr(dataclasses, "asdict", lambda _: {})
    train(config, tmp_path / "run")
    monkeypatch.undo()
    # Of a teacher, which this run has not: tests/test_distillation.py holds it.
    read |= {("distillation", field.name) for field in dataclasses.fields(config.distillation)}
    # Some entry says that it reads each of these, and tests of optimizers and schedules hold it.
    entries = [*OPTIMIZERS.values(), *SCHEDULES.values()]
    read |= {("optimizer", field) for entry in entries for field in entry.fields}
    for name in sections:
        for field in dataclasses.fields(getattr(config, name)):
            assert (name, field.name) in read, f"nothing reads {name}.{field.name}"


def test_every_problem_is_told_at_once():
    values = load("base", "tiny").to_dict()
    values["model"]["hidden_sise"] = 4
    values["data"]["seq_length"] = "512"
    values["train"]["batch_size"] = 7.5
    values["optimizer"] = 3
    del values["sharding"]["fsdp"]
    with pytest.raises(ConfigError) as error:
        check(values)
    text = str(error.value)
    assert "5 problems" in text
    assert "model.hidden_sise is not a field; did you mean hidden_size?" in text
    assert "data.seq_length is '512', a str; it must be of type int" in text
    assert "train.batch_size is 7.5, a float; it must be of type int" in text
    assert "optimizer is 3; it must be a section" in text
    assert "sharding.fsdp is missing" in text


def test_impossible_values_are_told_at_once():
    values = load("base", "tiny")
    values.model.num_attention_heads = 5
    values.data.seq_length = 128
    values.data.masking_rate = 1.5
    values.data.train_sources = ("nowhere.txt", "tfds:x")
    values.data.train_weights = (1.0,)
    values.train.accumulation = 3
    values.train.log_every = 0
    values.optimizer.name = "lam"
    values.optimizer.warmup_steps = 61
    values.sharding.rules = (("batch", ("date",)),)
    values.seed = -1
    with pytest.raises(ConfigError) as error:
        check(values)
    text = str(error.value)
    for words in (
        "model.hidden_size 32 is not a multiple of num_attention_heads 5",
        "data.seq_length 128 is longer than the position table, model.max_position_embeddings 64",
        "data.masking_rate is 1.5; it must be in [0, 1]",
        "data.train_sources: There is no file nowhere.txt",
        "data.train_weights is (1.0,)",
        "train.log_every is 0; it must be at least 1",
        "optimizer.name is 'lam'; did you mean lamb? There is lamb, adamw, muon, optax.",
        "optimizer.warmup_steps 61 is more than train.num_steps 60",
        "sharding.rules name the mesh axis 'date'; there is slices, data, fsdp, tensor",
        "seed is -1",
    ):
        assert words in text
    assert len(error.value.problems) == 10


def test_no_corpus_is_told_with_what_to_do():
    from configs import base

    with pytest.raises(ConfigError, match="train_sources is empty; name the text"):
        check(base.get_config())


def test_devices_that_cannot_share_are_told(tiny):
    tiny.train.batch_size = 12
    tiny.train.eval_batch_size = 12
    tiny.sharding.tensor = 8
    config = check(tiny)
    params = abstract_params(Albert(config.model))
    with pytest.raises(ConfigError, match="'heads' of size 4 cannot be cut into 8 equal parts"):
        check_devices(config, params, 8)
    tiny.sharding.tensor = 1
    with pytest.raises(ConfigError, match="12 rows cannot be shared by 8 devices equally"):
        check_devices(check(tiny), params, 8)
    tiny.sharding.fsdp = 3
    with pytest.raises(ConfigError, match="-1 x 3 x 1 cannot be laid over 8 devices"):
        check_devices(check(tiny), params, 8)
    tiny.sharding.fsdp, tiny.sharding.slices = 3, 2
    with pytest.raises(ConfigError, match="-1 x 3 x 1 cannot be laid over 4 devices of a slice"):
        check_devices(check(tiny), params, 8)
    tiny.sharding.fsdp, tiny.sharding.slices = 1, 3
    with pytest.raises(ConfigError, match="slices is 3: 8 devices are not so many slices"):
        check_devices(check(tiny), params, 8)


def test_rules_send_nothing_but_the_gradient_between_slices(tiny):
    tiny.sharding.slices = 2
    tiny.sharding.rules = (("batch", ("data", "fsdp")), ("hidden", ("slices", "fsdp")))
    with pytest.raises(ConfigError) as error:
        check(tiny)
    assert [text.partition(";")[0].partition(":")[0] for text in error.value.problems] == [
        "sharding.rules cut 'hidden' along slices, whose network is slow",
        "sharding.slices is 2 and rules do not cut 'batch' along them first",
    ]


def test_a_run_from_before_there_were_slices_has_one(tiny):
    plain = json.loads(json.dumps(dataclasses.asdict(check(tiny))))
    del plain["sharding"]["slices"]
    plain["sharding"]["rules"] = [["batch", ["data", "fsdp"]]]
    assert from_json(plain).sharding.slices == 1


@pytest.mark.parametrize(
    ("batch", "microbatch", "devices", "parts"),
    [
        (16, 0, 8, 1),
        (16, 1, 8, 2),
        (16, 2, 8, 1),
        (16, 100, 8, 1),
        (16, 2, 1, 8),
        (16, 3, 1, 8),  # of 2 rows: 3 do not divide 16
        (24, 5, 2, 3),  # of 4 rows of 12
        (26, 12, 2, 13),  # 13 rows divide by nothing else
        (16, 3, 2, 4),
    ],
)
def test_parts_follow_from_the_rows_of_a_device(tiny, batch, microbatch, devices, parts):
    """As few as leave no more rows than that, by trying all of them."""
    tiny.train.batch_size, tiny.train.microbatch = batch, microbatch
    config = check(tiny)
    assert parts_of(config, devices) == parts
    assert rows_at_once(config, devices) == batch // devices // parts
    tiny.sharding.tensor = devices  # which compute the same rows
    alone = parts_of(check(tiny), devices)
    assert alone == next(
        n
        for n in range(1, batch + 1)
        if not microbatch or (batch % n == 0 and batch // n <= microbatch)
    )


def test_microbatch_and_accumulation_do_not_both_say_it(tiny):
    tiny.train.microbatch, tiny.train.accumulation = 2, 2
    with pytest.raises(ConfigError, match=r"train\.microbatch is 2 and accumulation 2: both say"):
        check(tiny)
    tiny.train.microbatch = -1
    with pytest.raises(ConfigError, match=r"train\.microbatch is -1; it must not be negative"):
        check(tiny)
    tiny.train.microbatch, tiny.train.accumulation = 2, 1
    tiny.train.batch_size = 12
    words = r"train\.batch_size = 12 rows cannot be shared by 8 devices"
    with pytest.raises(ConfigError, match=words):
        check_devices(check(tiny), {}, 8)


def test_a_run_of_before_had_no_microbatch(tiny):
    values = json.loads(json.dumps(dataclasses.asdict(check(tiny))))
    del values["train"]["microbatch"]
    assert from_json(values) == check(tiny)


@pytest.mark.parametrize("name", ["quickstart", "laptop", "small"])
def test_what_small_runs_give_muon_is_said(name):
    """optax has other values for two of these."""
    optimizer = check(load(name, "tiny"), needs_text=False).optimizer
    assert optimizer.name == "muon"
    said = optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay
    assert said == (0.9, 0.999, 1e-6, 0.01)
    assert optimizer.schedule == "released"


def test_dtypes_in_which_a_model_does_not_learn_are_refused_for_training_alone(tiny):
    tiny.model.dtype = "float16"
    with pytest.raises(ConfigError, match=r"model\.dtype is float16; training does not scale its"):
        check(tiny)
    for dtype in ("bfloat16", "float16"):
        tiny.model.param_dtype = dtype
        with pytest.raises(ConfigError) as error:
            check(tiny)
        assert len(error.value.problems) == 2
        assert f"model.param_dtype is {dtype}; training keeps parameters" in str(error.value)
    # A workdir of before it was refused can still be read, and a model served.
    assert check(tiny, for_training=False).model.dtype == "float16"
    assert from_json(tiny.to_dict()).model.param_dtype == "float16"
    tiny.model.dtype, tiny.model.param_dtype = "bfloat16", "float32"
    assert check(tiny).model.dtype == "bfloat16"


def test_a_schedule_longer_than_the_run_is_told(tiny):
    tiny.optimizer.schedule = "wsd"
    tiny.optimizer.warmup_steps = 5
    tiny.optimizer.cooldown_steps = 4
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_steps 5 and cooldown_steps 4 are"):
        check(tiny)
    tiny.optimizer.cooldown_steps = 3
    assert check(tiny).optimizer.cooldown_steps == 3


def test_epochs_become_steps_and_the_schedule_keeps_its_shape(tiny):
    tiny.train.epochs, tiny.train.num_steps, tiny.train.batch_size = 2.5, 60, 16
    tiny.optimizer.warmup_steps, tiny.optimizer.schedule = 15, "wsd"
    tiny.optimizer.cooldown_steps = 6
    config = in_steps(check(tiny), 100)
    assert config.train.num_steps == 16  # of 250 rows, the last one not whole
    assert (config.optimizer.warmup_steps, config.optimizer.cooldown_steps) == (4, 2)
    assert in_steps(config, 100) == config
    tiny.train.epochs, tiny.optimizer.cooldown_steps = 0.0, None
    assert in_steps(check(tiny), 100) == check(tiny)
    tiny.train.epochs = 1e-9
    assert in_steps(check(tiny), 100).train.num_steps == 1
    tiny.init_from, tiny.init_optimizer = "somewhere", True
    with pytest.raises(ConfigError, match="init_optimizer True, which goes on at the step of"):
        check(tiny)
    tiny.train.epochs = -1.0
    with pytest.raises(ConfigError, match=r"train\.epochs is -1\.0; it must not be negative"):
        check(tiny)


def test_moments_are_taken_by_those_alone_that_keep_such(tiny):
    tiny.init_from, tiny.init_optimizer = "somewhere", True
    for name, entry in OPTIMIZERS.items():
        tiny.optimizer.name = name
        if entry.adam_moments:
            check(tiny)
            continue
        with pytest.raises(ConfigError, match="does not keep the two moments") as error:
            check(tiny)
        assert f"optimizer.name is '{name}'" in str(error.value)


def test_a_field_that_may_be_unset_is_set_and_unset_on_the_command_line(monkeypatch):
    path = Path(default.__file__).with_name("quickstart.py")
    given = ["--config.optimizer.b1=None", "--config.optimizer.b2", "0.5", "--config.optimizer.eps"]
    given += ["None", "--config.optimizer.weight_decay=0", "--config.optimizer.schedule=wsd"]
    given += ["--config.optimizer.cooldown_steps", "7"]
    arguments, problems = split_overrides(["train.py", f"--config={path}:tiny", *given])
    assert problems == []
    monkeypatch.setattr("sys.argv", arguments)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    assert values(arguments) == ["train.py"]
    optimizer = check(holder.value, needs_text=False).optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (None, 0.5, None)
    assert (optimizer.weight_decay, optimizer.cooldown_steps) == (0.0, 7)
    _, problems = split_overrides(
        ["--config.optimizer.b1=none", "--config.optimizer.cooldown_steps=1.5"]
    )
    assert len(problems) == 2
    assert "optimizer.b1 is 'none', a str; it must be of type float | None" in problems
    assert "optimizer.cooldown_steps is 1.5, a float; it must be of type int | None" in problems


def test_tiny_has_a_short_cool_down():
    config = default.get_config()
    config.optimizer.cooldown_steps = 5000
    default.apply_argument(config, "tiny")
    assert config.optimizer.cooldown_steps == 10


def test_a_config_survives_json(tiny):
    config = check(tiny)
    assert from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_overrides_are_checked_before_anything_else():
    arguments = [
        "train.py",
        "--config=configs/base.py",
        "--config.model.hiden_size=3",
        "--config.data.seq_length=abc",
        "--config.optimizer.learning_rate=1",
        "--config.train=3",
        "--config.data.lower_case=false",
        "--workdir=x",
        "--config.data.train_sources=a.txt",
        "--config.model.hidden_layers",
        "3",
        "--noconfig.data.lower_cas",
        "--config.data.strip_accents",
        "--config.seed",
        "4",
    ]
    kept, problems = split_overrides(arguments)
    assert len(problems) == 5
    assert "model.hidden_layers is not a field; did you mean num_hidden_layers?" in problems
    assert "data.lower_cas is not a field; did you mean lower_case?" in problems
    assert "model.hiden_size is not a field; did you mean hidden_size?" in problems
    assert "data.seq_length is 'abc', a str; it must be of type int" in problems
    assert "train is a section" in problems[2]
    wrong = ("hiden", "abc", "train=3", "hidden_layers", "lower_cas")
    assert kept == [
        a
        for a in arguments
        if a != "3" and not (any(x in a for x in wrong) and a != "--config.data.lower_case=false")
    ]


def test_default_explains_every_field():
    values = default.get_config()
    hints = {f.name for f in dataclasses.fields(Config)}
    assert set(values) == hints
    source = Path(default.__file__).read_text()
    for section, kind in config_module.Config.__annotations__.items():
        if not dataclasses.is_dataclass(kind):
            assert f"config.{section} = " in source
            continue
        for field in dataclasses.fields(kind):
            assert f"{section}.{field.name} = " in source
