"""Starting a run from another model, and evaluating any model."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.checkpoints import CheckpointError
from albert.checkpoints.store import Checkpoints
from albert.data.sources.base import SourceError
from albert.data.vocabulary import train_vocabulary
from albert.interop import formats
from albert.interop.weights import stacked
from albert.models.config import AlbertConfig
from albert.programs.rows import as_begun
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks.pretraining import Pretraining
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_model, evaluate_run
from albert.train.init_from import start_state
from albert.train.loop import train
from albert.train.optimizers import OPTIMIZERS, make_optimizer, slot_of
from albert.train.step import TrainState
from configs.finetune import texts as texts_config
from models import random_weights
from runs import assert_bit_equal, final_params, records
from texts import write_text


def evaluations(workdir):
    return {r["step"]: r["mlm_loss"] for r in records(workdir, "valid")}


def test_with_its_optimizer_a_run_goes_on_to_the_same_bits(run, tiny, tmp_path, capsys):
    tiny.init_from = str(run / "checkpoints" / "4")
    tiny.init_optimizer = True
    tiny.data.tokenizer = ""  # that of the model is taken
    train(check(tiny), tmp_path / "run")
    assert_bit_equal(final_params(tmp_path / "run", 8), final_params(run, 8))
    assert [r["step"] for r in records(tmp_path / "run")] == [6, 8]
    rate = {r["step"]: r["learning_rate"] for r in records(run)}
    assert records(tmp_path / "run")[-1]["learning_rate"] == rate[8]
    printed = capsys.readouterr().out
    assert "32 tensors with the optimizer's moments, at step 4." in printed
    # Once it has a checkpoint of its own, what it started from may go.
    tiny.init_from = str(tmp_path / "gone")
    tiny.train.num_steps = 10
    train(check(tiny), tmp_path / "run")
    assert "Resuming from the checkpoint of step 8" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.adam_moments])
def test_moments_and_counters_are_taken_by_every_optimizer_that_keeps_such(name, tiny):
    tiny.init_from, tiny.init_optimizer = "somewhere", True
    tiny.model.sharing = "attention"
    tiny.optimizer.name = name
    config = check(tiny)
    weights = random_weights(moments=True, **dataclasses.asdict(config.model))
    params = jax.tree.map(jnp.zeros_like, weights.tree)
    optimizer, _ = make_optimizer(config.optimizer, config.train.num_steps)
    zero = jnp.zeros([], jnp.int32)
    state = TrainState(zero, params, optimizer.init(params), zero, zero, jnp.zeros([]))
    state, _ = start_state(config, weights, state)
    assert state.step == 7
    expected = {
        kind: stacked(config.model, values)
        for kind, values in (("mu", weights.mu), ("nu", weights.nu))
    }
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        kind, parameter = slot_of(path)
        if parameter:
            np.testing.assert_array_equal(leaf, expected[kind][parameter])
            found.add((kind, parameter))
        else:
            assert (kind, int(leaf)) == ("count", 7)
    assert found == {(kind, p) for kind in expected for p in expected[kind]}
    jax.tree.map(np.testing.assert_array_equal, state.params, weights.tree)


def test_a_run_is_not_judged_on_more_than_it_held_out(run, tiny):
    info = Checkpoints(run / "checkpoints").info(8)
    held_out, tokenizer = tiny.data.valid_fraction, formats.read(run).tokenizer
    for fraction in (held_out, held_out / 2):
        tiny.data.valid_fraction = fraction
        assert Pretraining.to_evaluate(check(tiny), tokenizer, info).evaluations
    tiny.data.valid_fraction = 2 * held_out
    with pytest.raises(SourceError, match=r"the run held .* of its training text out: it has l"):
        Pretraining.to_evaluate(check(tiny), tokenizer, info)


def test_tools_see_the_rows_of_a_run_that_starts_from_a_model(run, tiny, tmp_path):
    """With the model's vocabulary, wherever none is named."""
    tiny.init_from, tiny.init_model = str(run), True
    tiny.data.tokenizer, tiny.data.folder = "", str(tmp_path / "prepared")
    tiny.model.vocab_size = 8  # which is the model's business
    config, start = as_begun(check(tiny))
    found = Pretraining.read(config, start)
    task = Pretraining.prepare(config, tmp_path, None, start)
    assert found.tokenizer.fingerprint == task.tokenizer.fingerprint == start.tokenizer.fingerprint
    for name, row in found.train[5].items():
        np.testing.assert_array_equal(row, task.rows[5][name])
    other = check(texts_config.get_config("tiny"), needs_text=False)
    with pytest.raises(ConfigError, match="task is 'classification'; this tool is for pretraining"):
        as_begun(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optax.lamb", "adamw"])
def test_with_another_optimizer_a_run_goes_on_to_the_same_bits(name, tiny, tmp_path):
    """By way of a copy, which has its moments."""
    tiny.model.sharing = "groups:3"
    tiny.optimizer.name = name
    train(check(tiny), tmp_path / "whole")
    weights = formats.read(tmp_path / "whole" / "checkpoints" / "4", with_moments=True)
    assert weights.mu is not None
    formats.write(weights, tmp_path / "copy", "albert")
    tiny.init_from, tiny.init_optimizer = str(tmp_path / "copy"), True
    train(check(tiny), tmp_path / "run")
    assert_bit_equal(final_params(tmp_path / "run", 8), final_params(tmp_path / "whole", 8))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_through_a_tensorflow_checkpoint_as_well(run, tiny, tmp_path):
    weights = formats.read(run / "checkpoints" / "4", with_moments=True)
    formats.write(weights, tmp_path / "tf", "original")
    tiny.init_from = str(tmp_path / "tf")
    tiny.init_optimizer = True
    train(check(tiny), tmp_path / "run")
    assert_bit_equal(final_params(tmp_path / "run", 8), final_params(run, 8))


def test_weights_alone_start_at_step_0(run, tiny, tmp_path, capsys):
    """Through a Hugging Face folder without an SOP head."""
    weights = formats.read(run)
    for path in [path for path in weights.params if path.startswith("sop_head")]:
        del weights.params[path]
    formats.write(weights, tmp_path / "hf", "huggingface")
    tiny.init_from = str(tmp_path / "hf")
    tiny.optimizer.learning_rate = 1e-30  # nothing moves
    tiny.optimizer.weight_decay = 0.0
    train(check(tiny), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "30 tensors without an optimizer's state, at step 0." in printed
    assert "Initialised anew, 2 tensors: sop_head." in printed
    np.testing.assert_allclose(evaluations(tmp_path / "run")[4], evaluations(run)[8], rtol=1e-6)
    ours, theirs = final_params(tmp_path / "run", 8), final_params(run, 8)
    assert not np.array_equal(ours["sop_head"]["kernel"], theirs["sop_head"]["kernel"])
    np.testing.assert_array_equal(ours["pooler"]["kernel"], theirs["pooler"]["kernel"])


def test_what_does_not_fit_is_told_at_once(run, tiny, tmp_path):
    tiny.init_from = str(run)
    tiny.model.hidden_size = 64
    tiny.model.intermediate_size = 128
    tiny.data.tokenizer = ""
    tiny.data.lower_case = False
    with pytest.raises(ConfigError) as caught:
        train(check(tiny), tmp_path / "run")
    text = str(caught.value)
    assert "model.hidden_size is 64 and that of init_from" in text
    assert "set --config.model.hidden_size=32" in text
    assert "set --config.model.intermediate_size=64" in text
    assert "set --config.data.lower_case=True" in text
    assert not any((tmp_path / "run" / "checkpoints").iterdir())


def test_another_vocabulary_of_the_same_size_is_refused(run, tiny, tmp_path):
    text = write_text(tmp_path / "other.txt", 300, seed=5).read_text().replace("r", "q")
    path = tmp_path / "other.model"
    train_vocabulary(text.splitlines(), 96, path, True, True)
    tiny.init_from = str(run)
    tiny.data.tokenizer = str(path)
    with pytest.raises(ConfigError, match="is another vocabulary than that of init_from"):
        train(check(tiny), tmp_path / "run")


def test_without_a_vocabulary_one_must_be_named(tiny, tmp_path):
    config = check(tiny)
    weights = random_weights(
        **{
            n: getattr(config.model, n)
            for n in (
                "vocab_size",
                "embedding_size",
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "max_position_embeddings",
            )
        }
    )
    formats.write(weights, tmp_path / "m", "huggingface")
    tiny.init_from = str(tmp_path / "m")
    tiny.data.tokenizer = ""
    with pytest.raises(ConfigError, match=r"no vocabulary beside init_from.*--config\.data\.tok"):
        train(check(tiny), tmp_path / "run")


def test_moments_that_are_not_there(run, tiny, tmp_path):
    formats.write(formats.read(run), tmp_path / "weights", "albert")
    tiny.init_from = str(tmp_path / "weights")
    tiny.init_optimizer = True
    with pytest.raises(CheckpointError, match="does not hold the optimizer's moments and step"):
        train(check(tiny), tmp_path / "run")
    formats.write(formats.read(run, with_moments=True), tmp_path / "moments", "albert")
    for folder in ("weights", "moments"):
        with pytest.raises(RunError, match=r"holds a model and not a run.*--config\.init_from="):
            train(check(tiny), tmp_path / folder)
        with pytest.raises(CheckpointError, match="evaluate it with --model="):
            evaluate_run(tmp_path / folder, "latest", Options(examples=1))
    tiny.init_from = str(run)
    with pytest.raises(ConfigError, match=r"has made 8 steps already; raise train\.num_steps"):
        train(check(tiny), tmp_path / "run")
    tiny.train.num_steps = 10
    tiny.optimizer.name = "optax.sgd"
    with pytest.raises(ConfigError, match=r"'optax\.sgd', which does not keep the two moments"):
        check(tiny)
    tiny.optimizer.name = "lamb"
    tiny.init_from = ""
    with pytest.raises(ConfigError, match="init_optimizer is True and init_from is empty"):
        check(tiny)
    tiny.init_from = str(tmp_path / "nothing")
    tiny.init_optimizer = False
    with pytest.raises(CheckpointError, match="There is no"):
        train(check(tiny), tmp_path / "run")


def test_any_model_evaluates_as_its_run_does(run, tiny, tmp_path, capsys):
    text = write_text(tmp_path / "other.txt", 40, seed=9)
    evaluate_run(run, "latest", Options(text=str(text), examples=2))
    expected = capsys.readouterr().out
    formats.write(formats.read(run), tmp_path / "hf", "huggingface")
    # Its own vocabulary and sizes count, not the config's.
    tiny.data.tokenizer = ""
    tiny.model.vocab_size = 1000
    evaluate_model(tmp_path / "hf", check(tiny), Options(text=str(text), examples=2))
    printed = capsys.readouterr().out
    figures = [line for line in expected.splitlines() if line.startswith("  ")]
    assert len(figures) > 10
    assert [line for line in printed.splitlines() if line.startswith("  ")] == figures


def test_a_model_without_heads_is_not_given_figures(run, tiny, tmp_path, text, capsys):
    weights = formats.read(run)
    weights.params = {k: v for k, v in weights.params.items() if not k.startswith("sop_head")}
    formats.write(weights, tmp_path / "a", "albert")
    evaluate_model(tmp_path / "a", check(tiny), Options(text=str(text), rows=40, examples=0))
    printed = capsys.readouterr().out
    assert "MLM loss" in printed
    assert "SOP" not in printed
    weights.params = {k: v for k, v in weights.params.items() if not k.startswith("mlm_head")}
    formats.write(weights, tmp_path / "b", "albert")
    with pytest.raises(ConfigError, match="has no MLM head"):
        evaluate_model(tmp_path / "b", check(tiny), Options(text=str(text), rows=40, examples=0))


def test_what_an_evaluation_lacks_is_told_at_once(run, tiny, tmp_path):
    weights = formats.read(run)
    weights.tokenizer = None
    formats.write(weights, tmp_path / "m", "albert")
    tiny.data.tokenizer = ""
    tiny.data.seq_length = 128
    tiny.model.max_position_embeddings = 128
    with pytest.raises(ConfigError) as caught:
        evaluate_model(tmp_path / "m", check(tiny), Options())
    text = str(caught.value)
    assert "no vocabulary beside" in text
    assert "no text to evaluate on; name it with --text" in text
    assert "set --config.data.seq_length=64" in text


@pytest.fixture
def evaluated(run, tmp_path):
    """Runs eval.py on a copy of the finished run."""
    shutil.copytree(run, tmp_path / "run")

    def call(*arguments):
        return subprocess.run(
            [
                sys.executable,
                "eval.py",
                f"--workdir={tmp_path / 'run'}",
                "--examples=0",
                *arguments,
            ],
            cwd=Path(__file__).resolve().parent.parent,
            capture_output=True,
            text=True,
        )

    return call


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.seed=1", "seed is the run's own; what may differ is data and train"),
        ("--config.sede=1", "sede is not a field; did you mean seed?"),
        ("--config=configs/base.py", "model.hidden_size is 768 in --config and 32 in the run"),
    ],
)
def test_another_model_is_not_evaluated_in_its_place(evaluated, argument, words):
    done = evaluated(argument)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.slow
def test_a_run_is_evaluated_by_the_sections_of_its_config_that_were_given(evaluated, tiny):
    fields = {
        "model.vocab_size": tiny.model.vocab_size,
        "data.folder": tiny.data.folder,
        "data.train_sources": tiny.data.train_sources[0],
        "data.tokenizer": tiny.data.tokenizer,
        "data.max_documents": 0,
        "data.seq_length": 32,
        "data.max_predictions": 6,
        "train.eval_rows": 30,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    by_config = evaluated("--config=configs/base.py:v1,tiny", *overrides)
    assert by_config.returncode == 0, by_config.stderr
    by_field = evaluated("--config.train.eval_rows=30")
    assert by_field.returncode == 0, by_field.stderr
    tables = [
        [line for line in done.stdout.splitlines() if not line.startswith("Written")]
        for done in (by_config, by_field)
    ]
    assert tables[0] == tables[1]
    assert "over 30 examples" in by_field.stdout


@pytest.mark.slow
def test_a_model_with_more_rows_than_pieces_is_evaluated_and_starts_a_run(
    tiny, tmp_path, text, tokenizer, capsys
):
    """Padded to a round number; what is no piece is never predicted."""
    shape = dict(tiny.model) | {"vocab_size": 104}
    config = AlbertConfig(**shape)
    weights = random_weights(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    )
    weights.params["mlm_head/output_bias"][100:] = 1e4  # would be predicted everywhere
    weights.tokenizer = tokenizer
    formats.write(weights, tmp_path / "m", "albert")
    evaluate_model(tmp_path / "m", check(tiny), Options(text=str(text), rows=16, examples=1))
    printed = capsys.readouterr().out
    assert float(re.search(r"MLM loss \(nats\) +([\d.]+)", printed)[1]) < 20
    tiny.init_from, tiny.model.vocab_size, tiny.train.num_steps = str(tmp_path / "m"), 104, 2
    train(check(tiny), tmp_path / "run")
    assert "104" in capsys.readouterr().out
    tiny.init_from = ""
    with pytest.raises(ConfigError, match="has 96 pieces and the model 104"):
        check(tiny)
