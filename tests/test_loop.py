"""Whole runs on the small text: outcome, resume, refusal."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from albert.checkpoints.store import CheckpointError, Checkpoints
from albert.data.sources.base import SourceError
from albert.interop import formats
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.train.config import check, config_of_run
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from albert.train.phases import phases_of
from albert.train.resume_check import check_same_run
from faults import killed_at, poisoned
from runs import assert_bit_equal, command, final_params, records, run_together
from texts import write_text

ROOT = Path(__file__).resolve().parent.parent


def test_a_run_leaves_checkpoints_logs_and_a_report(run):
    assert Checkpoints(run / "checkpoints").steps() == [4, 8]
    assert [r["step"] for r in records(run)] == [2, 4, 6, 8]
    assert [r["step"] for r in records(run, "valid")] == [4, 8]
    wanted = {
        "loss",
        "mlm_loss",
        "mlm_accuracy",
        "sop_loss",
        "sop_accuracy",
        "learning_rate",
        "grad_norm",
        "param_norm",
        "update_norm",
        "rows_per_second",
        "real_tokens_per_second",
        "padded_tokens_per_second",
        "mfu",
        "step_seconds",
        "data_wait_share",
        "epoch",
        "bad_steps",
    }
    assert wanted <= records(run)[-1].keys()
    report = json.loads((run / "eval_8.json").read_text())
    assert report["step"] == 8
    assert len(report["examples"]) == 5
    assert report["unigram_entropy"] > 1
    printed = (run / "printed.txt").read_text()
    assert "Held-out text at step 8" in printed
    assert "tensorboard" in printed
    assert "ETA" in printed


def test_tensorboard_reads_every_figure(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {f"train/{n}" for n in records(run)[-1] if n not in ("step", "group")} <= tags
    assert {"valid/mlm_loss", "valid/unigram_entropy", "valid/sop_accuracy"} <= tags
    assert [e.step for e in board.Scalars("train/loss")] == [2, 4, 6, 8]


def test_a_finished_run_says_so(run, tiny, capsys):
    before = sorted(os.listdir(run / "checkpoints"))
    train(check(tiny), run)
    assert "is finished: it has a checkpoint of step 8 of 8" in capsys.readouterr().out
    assert sorted(os.listdir(run / "checkpoints")) == before


def test_a_resumed_run_ends_bit_equal(run, tiny, tmp_path):
    """Stopped at step 4 of 8 by way of the number of steps, in the same process."""

    with pytest.raises(MemoryError):
        train(check(tiny), tmp_path, watch=killed_at("log", 6))
    train(check(tiny), tmp_path)
    assert_bit_equal(final_params(tmp_path, 8), final_params(run, 8))
    assert [r["step"] for r in records(tmp_path)] == [2, 4, 6, 8]
    ours, theirs = records(tmp_path)[-1], records(run)[-1]
    assert ours["loss"] == theirs["loss"]


def test_the_data_of_a_run_may_not_change(run, tiny):
    tiny.train.num_steps = 10
    tiny.data.masking_rate = 0.3
    with pytest.raises(RunError, match=r"masking_rate: 0.15 -> 0.3"):
        train(check(tiny), run)
    tiny.data.masking_rate = 0.15
    tiny.seed = 1
    with pytest.raises(RunError, match=r"seed: 0 -> 1"):
        train(check(tiny), run)


@pytest.mark.parametrize(
    ("section", "field", "value", "words"),
    [
        ("model", "hidden_size", 64, "model.hidden_size: 32 -> 64"),
        ("model", "hidden_act", "relu", "model.hidden_act: gelu -> relu"),
        ("train", "batch_size", 32, "train.batch_size: 16 -> 32"),
    ],
)
def test_another_model_or_batch_is_refused_and_changes_nothing(
    run, tiny, section, field, value, words
):
    tiny.train.num_steps = 10
    tiny[section][field] = value
    before = (run / "config.json").read_text()
    with pytest.raises(RunError, match=words):
        train(check(tiny), run)
    assert (run / "config.json").read_text() == before


@pytest.mark.slow
def test_harmless_changes_are_told(run, tiny, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    tiny.train.num_steps = 10
    tiny.train.log_every = 5
    tiny.optimizer.learning_rate = 0.001
    train(check(tiny), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "optimizer.learning_rate: 0.00176 -> 0.001" in printed
    assert "train.log_every: 2 -> 5" in printed
    assert "Resuming from the checkpoint of step 8" in printed


@pytest.mark.slow
def test_other_held_out_text_is_told(tiny, tmp_path, capsys):
    for name in ("a", "b"):
        write_text(tmp_path / f"{name}.txt", 30, seed=ord(name))
    tiny.data.folder = str(tmp_path / "prepared")
    tiny.data.valid_sources = (str(tmp_path / "a.txt"),)
    tiny.train.num_steps = tiny.train.eval_every = 2
    train(check(tiny), tmp_path / "run")
    tiny.data.valid_sources = (str(tmp_path / "b.txt"),)
    tiny.train.num_steps = 4
    train(check(tiny), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "held-out text: figures before and after do not compare" in printed
    assert re.search(r"data\.valid_sources: .*a\.txt.* -> .*b\.txt", printed)


def test_an_empty_or_damaged_checkpoint_is_told(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "9").mkdir()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4, 8]
    for path in (tmp_path / "run" / "checkpoints" / "8" / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"checkpoints/8 is not sound: params/_METADATA has 1,000 bytes"
    ):
        evaluate_run(tmp_path / "run", "8", Options(examples=0))


def test_too_little_text_is_told(tiny, tmp_path):
    tiny.data.train_sources = (str(write_text(tmp_path / "few.txt", 3)),)
    tiny.data.valid_sources = (str(write_text(tmp_path / "other.txt", 3, seed=1)),)
    tiny.train.batch_size = 64
    with pytest.raises(
        SourceError, match=r"gives \d+ rows of up to 32 tokens, fewer than one batch"
    ):
        train(check(tiny), tmp_path / "run")


def test_a_vocabulary_of_another_size_is_told_with_the_rest(tiny):
    tiny.model.vocab_size = 200
    tiny.train.num_steps = 0
    with pytest.raises(ConfigError, match=r"set --config.model.vocab_size=96") as error:
        check(tiny)
    assert "num_steps" in str(error.value)


@pytest.mark.slow
def test_the_vocabulary_of_the_workdir_itself_can_be_named(run, tiny, tmp_path):
    tiny.train.num_steps = 9
    tiny.train.checkpoint_every = 100
    before = (run / "tokenizer.model").read_bytes()
    tiny.data.tokenizer = str(tmp_path / "run" / "tokenizer.model")
    shutil.copytree(run, tmp_path / "run")
    train(check(tiny), tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == before


def test_held_out_text_that_is_training_text_is_warned_of(tiny, tmp_path):
    tiny.data.valid_sources = tiny.data.train_sources
    tiny.train.num_steps = 2
    with pytest.warns(UserWarning, match="300 of the 300 held-out documents also stand"):
        train(check(tiny), tmp_path / "run")


def test_a_workdir_that_cannot_be_written_is_told(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write to the workdir"):
        train(check(tiny), tmp_path / "file" / "run")


def test_divergence_stops_the_run_and_keeps_the_good_checkpoint(tiny, tmp_path, monkeypatch):
    tiny.train.max_bad_steps = 3
    tiny.train.num_steps = 20
    poisoned(monkeypatch, range(7, 100))
    with pytest.raises(
        RunError,
        match=r"3 steps in a row .* the last of them step 9\. The "
        r"newest checkpoint is step 8",
    ):
        train(check(tiny), tmp_path)
    # The bad steps 7 and 8 changed no parameter, so step 8 is as good as step 6.
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_beside_the_last(tiny, tmp_path):
    tiny.train.num_steps = 12
    tiny.train.eval_every = 2
    tiny.train.checkpoint_every = 2
    tiny.train.keep_last = 1
    tiny.train.keep_best = 1
    # So fast that it goes up again.
    tiny.optimizer.name = "optax.sgd"
    tiny.optimizer.clip_norm = 0.0
    tiny.optimizer.learning_rate = 3.0
    train(check(tiny), tmp_path)
    valid = {r["step"]: r["loss"] for r in records(tmp_path, "valid")}
    best = min(valid, key=valid.get)
    assert Checkpoints(tmp_path / "checkpoints").steps() == sorted({best, 12})


@pytest.mark.slow
def test_saving_by_time(tiny, tmp_path):
    tiny.train.checkpoint_every = 100
    tiny.train.checkpoint_minutes = 1e-9
    tiny.train.eval_every = 100
    tiny.train.keep_last = 10
    train(check(tiny), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4, 6, 8]


def test_evaluation_of_a_run(run, capsys):
    evaluate_run(run, "all", Options(rows=30, examples=2))
    printed = capsys.readouterr().out
    assert "step 4" in printed
    assert "step 8" in printed
    report = json.loads((run / "eval_4_rows=30.json").read_text())
    assert report["sop_targets"] == 30
    # The same rows and parameters as at the end of training give the same figures.
    evaluate_run(run, "latest", Options(examples=0))
    ours = json.loads((run / "eval_8.json").read_text())
    theirs = records(run, "valid")[-1]
    np.testing.assert_allclose(ours["mlm_loss"], theirs["mlm_loss"], rtol=1e-5)


def test_evaluation_on_other_text(run, tmp_path):
    other = write_text(tmp_path / "other.txt", 40, seed=3)
    evaluate_run(run, "8", Options(text=str(other), examples=1))
    name = next(p for p in run.glob("eval_8_*.json"))
    assert json.loads(name.read_text())["mlm_targets"] > 0


def test_missing_checkpoints_are_told(run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; it has 4, 8"):
        evaluate_run(run, "5", Options(examples=0))
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate_run(tmp_path, "latest", Options(examples=0))


def test_the_command_line_tells_mistakes_and_leaves_with_2(tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    done = call(
        "train.py",
        "--config=configs/base.py:tiny",
        "--config.model.hiden_size=3",
        "--config.train.num_steps=0",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 2
    assert "3 problems in the config" in done.stderr
    assert "did you mean hidden_size?" in done.stderr
    assert "Traceback" not in done.stderr
    for wrong, words in (
        (("--config=configs/base.py:v9",), "there is v1, v2 and tiny"),
        (("--config.model.hidden_sise", "3"), "did you mean hidden_size?"),
        (("--noconfig.data.lowercase",), "did you mean lower_case?"),
        (("--workdr=3",), "workdr"),
    ):
        done = call("train.py", *wrong)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    done = call("train.py", "--config=configs/none.py")
    assert done.returncode == 2
    assert "none.py" in done.stderr
    done = call("eval.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "holds no checkpoints" in done.stderr


def test_describe_ends_with_one_json_object(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "--config=configs/base.py", "--describe"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["parameters"] == 11_813_810
    assert facts["tokens_per_step"] == 4096 * 512
    # 6 * (12 layer passes + mapping + head at 77 of 512 + pooler and SOP at 1) + 12 N L H
    used = 12 * (4 * 768**2 + 2 * 768 * 3072) + 128 * 768
    used += (768 * 128 + 128 * 30000) * 77 / 512 + (768**2 + 2 * 768) / 512
    np.testing.assert_allclose(facts["flops_per_token"], 6 * used + 12 * 12 * 512 * 768)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sop", "none"])
def test_a_packed_run_goes_on_to_the_same_bits(tiny, tmp_path, objective):
    """Packed rows, accumulation and eight devices, stopped half-way and continued."""
    tiny.data.packing = 4
    tiny.data.sentence_objective = objective
    tiny.train.accumulation = 2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(check(tiny), whole)
    tiny.train.checkpoint_every = 3
    with pytest.raises(MemoryError):
        train(check(tiny), parts, watch=killed_at("log", 6))
    train(check(tiny), parts)
    assert_bit_equal(final_params(parts, 8), final_params(whole, 8))
    assert ("sop_loss" in records(whole)[-1]) == (objective == "sop")
    assert ("sop_loss" in records(whole, "valid")[-1]) == (objective == "sop")
    report = json.loads((whole / "eval_8.json").read_text())
    assert len(report["examples"]) == 5
    assert not any("[CLS]" in line or "[SEP] ." in line for line in report["examples"])


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run(tiny, tmp_path):
    """Within seconds, with a word and a code, and without a step that lacks its batch."""
    extra = ["--config.data.workers=2", "--config.train.log_every=1"]
    extra += [
        f"--config.train.{name}=5000" for name in ("num_steps", "eval_every", "checkpoint_every")
    ]
    with subprocess.Popen(
        command(tiny, tmp_path, *extra),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("step 3/"):
                workers = [
                    child
                    for child in psutil.Process(process.pid).children(recursive=True)
                    if any("spawn_main" in argument for argument in child.cmdline())
                ]
                workers[0].kill()
                killed = time.monotonic()
        code = process.wait(timeout=60)
    assert time.monotonic() - killed < 60
    assert code == 2
    printed = "".join(printed)
    assert "Worker process was terminated unexpectedly" in printed
    step = int(re.search(r"The batch of step (\d+) could not be made", printed)[1])
    assert Checkpoints(tmp_path / "checkpoints").steps() == [step - 1]


@pytest.mark.slow
def test_two_processes_of_four_devices_equal_one_of_eight(tiny, tmp_path):
    """Real processes over gloo: same losses, and each makes only its own rows."""
    alone = tmp_path / "alone"
    subprocess.run(
        command(tiny, alone, "--config.train.log_every=1"),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    several = tmp_path / "several"
    printed = run_together(command(tiny, several, "--config.train.log_every=1"), 2)
    assert "Held-out text" in printed[0]
    assert "step" not in printed[1]
    ours, theirs = ([r["loss"] for r in records(d)] for d in (several, alone))
    assert len(ours) == 40
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    # The last ten steps again, by one process.
    for step in (35, 40):
        shutil.rmtree(several / "checkpoints" / str(step))
    subprocess.run(
        command(tiny, several, "--config.train.log_every=1"),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    ours = [r["loss"] for r in records(several)]
    assert len(ours) == 40
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_workdir_of_an_earlier_version_is_told_and_its_weights_load(run, tiny, tmp_path):
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        info, params = checkpoints.info(8), checkpoints.restore_arrays(8, "params")
    del info["version"], info["progress"], info["config"]["task"]
    del info["config"]["model"]["attention"]  # what the first version did not know
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", create=True)) as checkpoints:
        checkpoints.save(8, params, params, info, None)
        checkpoints.wait()
    words = r"made by albert 0\.1\.0, and this is .*--config\.init_from="
    with pytest.raises(RunError, match=words):
        train(check(tiny), tmp_path)
    with pytest.raises(CheckpointError, match=words):
        evaluate_run(tmp_path, "8", Options())
    weights = formats.read(tmp_path / "checkpoints" / "8")
    kernel = weights.params["encoder/group_0/layer_0/output/kernel"]
    np.testing.assert_array_equal(kernel, params["encoder"]["layers"]["output"]["kernel"][0])


def test_a_run_of_before_a_field_of_the_model_was_added_goes_on(run):
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        info = checkpoints.info(8)
    config = config_of_run(info, run)
    del info["config"]["model"]["least_depth"], info["config"]["model"]["scan_unroll"]
    assert config_of_run(info, run) == config
    task = SimpleNamespace(
        model=None,
        serves_best=False,
        distillation=None,
        changes=lambda saved: ([], []),
        description=dict,
    )
    told: list[str] = []
    check_same_run(info, phases_of(config)[0], task, run, told.append)
    assert told == []
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, least_depth=1))
    with pytest.raises(RunError, match=r"model\.least_depth: 0 -> 1"):
        check_same_run(info, phases_of(other)[0], task, run, told.append)
