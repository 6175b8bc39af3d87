"""A task of its own, in a test file: it trains, is killed, resumes and is evaluated; and what is
said of tasks, heads and kernels that do not fit."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from albert.models import attention
from albert.models.attention import xla
from albert.models.attention.base import Kernel
from albert.models.encoder import Albert
from albert.runtime.fields import ConfigError
from albert.tasks import TASKS, check_task, find_task
from albert.tasks.base import Best, Evaluation, Samples, Task
from albert.train.config import check, check_devices
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from configs import default
from faults import killed_at
from models import TINY
from runs import assert_bit_equal, final_params, records


@dataclasses.dataclass(frozen=True)
class LineSection:
    """The section `data` of the toy task."""

    slope: float
    rows: int

    def problems(self):
        return [] if self.rows > 0 else [f"rows is {self.rows}; it must be positive"]


class LineRows:
    """Points on a line, each a pure function of its number."""

    def __init__(self, slope, rows_per_epoch, seed):
        self.slope, self.rows_per_epoch, self.seed = slope, rows_per_epoch, seed

    def batch(self, rows, whole=None):
        x = np.array(
            [np.random.default_rng((self.seed, max(row, 0))).normal(size=3) for row in rows],
            np.float32,
        )
        weight = np.array([row >= 0 for row in rows], np.float32)
        return {"x": x, "y": self.slope * x.sum(1) + 1, "weight": weight}


class Line(nn.Module):
    @nn.compact
    def __call__(self, x, *_):
        x = x.astype(jnp.float32)
        names = ("head_dim",)
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(nn.initializers.zeros_init(), names), (3,)
        )
        return x @ kernel


class LineTask(Task):
    """Least squares."""

    Section = LineSection
    best = Best("held-out", "mean_error")

    def __init__(self, config):
        self.model = Line()
        self.rows = LineRows(config.data.slope, config.data.rows, config.seed)
        held_out = LineRows(config.data.slope, 10, 999)
        self.evaluations = [
            Evaluation(
                "held-out",
                held_out,
                10,
                self._squares,
                lambda s: {"mean_error": float(s["square"] / s["rows"])},
                lambda f: f"held-out error {f['mean_error']:.4f}",
                lambda of, f: f"Held-out {of}: {f['mean_error']:.4f}",
            ),
            Evaluation(
                "median",
                held_out,
                10,
                lambda p, b: self._error(p, b),
                lambda errors: {"median": float(np.median(errors)), "count": float(len(errors))},
                lambda f: f"median {f['median']:.4f}",
                lambda of, f: f"Median {of}: {f['median']:.4f}",
                gathers=True,
                every=2,
            ),
        ]
        self.samples = Samples(
            held_out, 10, self._error, "Errors:", lambda b, e, most: [f"{x:.2f}" for x in e[:most]]
        )

    @classmethod
    def make_model(cls, config, saved=None):
        return Line()

    @classmethod
    def init(cls, model, key):
        return model.init({"params": key}, jnp.zeros((1, 3)))["params"]

    @classmethod
    def flops_per_row(cls, config):
        return 6.0 * 3

    @classmethod
    def tokens_per_row(cls, config):
        return 3

    @classmethod
    def prepare(cls, config, workdir, resumes, start):
        return cls(config)

    @classmethod
    def to_evaluate(cls, config, tokenizer, saved, model=None):
        return cls(config)

    def _error(self, params, rows):
        return jnp.abs(self.model.apply({"params": params}, rows["x"]) - rows["y"] + 1)

    def _squares(self, params, rows):
        error = self._error(params, rows) * rows["weight"]
        return {"square": (error**2).sum(), "rows": rows["weight"].sum()}

    def denominators(self, batch):
        return {"rows": batch["weight"].sum()}

    def sums(self, params, rows, dropout_keys):
        return self._squares(params, rows)

    def loss(self, sums, denominators):
        return sums["square"] / denominators["rows"]

    def metrics(self, sums, denominators):
        return {"error": self.loss(sums, denominators)}

    def line(self, metrics):
        return f"error {metrics['error']:.4f}"

    def description(self):
        return {"slope": self.rows.slope}

    def changes(self, saved):
        same = saved["slope"] == self.rows.slope
        return ([] if same else [f"  data.slope: {saved['slope']} -> {self.rows.slope}"]), []


@pytest.fixture
def line(monkeypatch):
    """A config of the toy task."""
    monkeypatch.setitem(TASKS, "line", LineTask)
    config = default.get_config("tiny")
    config.task = "line"
    config.data = ConfigDict({"slope": 2.0, "rows": 64})
    config.train.num_steps, config.train.log_every = 8, 2
    config.train.eval_every = config.train.checkpoint_every = 4
    config.train.keep_best = 1
    config.optimizer.name = "optax.sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 1
    return config


def test_a_task_in_a_file_of_its_own_trains_dies_resumes_and_is_evaluated(line, tmp_path, capsys):
    seen = []
    whole = train(
        check(line),
        tmp_path / "whole",
        on_evaluation=lambda step, *more: seen.append((step, *more)),
    )
    assert [(step, name) for step, name, _ in seen] == [
        (2, "median"),
        (4, "held-out"),
        (4, "median"),
        (6, "median"),
        (8, "held-out"),
        (8, "median"),
    ]
    assert whole.step == 8
    assert whole.figures["median"]["count"] == 10  # without the rows of padding
    assert whole.figures["held-out"] == seen[-2][2]
    errors = [r["mean_error"] for r in records(tmp_path / "whole", "held-out")]
    assert errors[1] < errors[0]
    printed = capsys.readouterr().out
    assert "  error " in printed
    assert "Median at step 8" in printed
    assert "Errors:" in printed

    with pytest.raises(MemoryError):
        train(check(line), tmp_path / "parts", watch=killed_at("log", 6))
    parts = train(check(line), tmp_path / "parts")
    assert_bit_equal(final_params(tmp_path / "parts", 8), final_params(tmp_path / "whole", 8))
    assert parts.figures == whole.figures
    for group in ("held-out", "median"):
        assert records(tmp_path / "parts", group) == records(tmp_path / "whole", group)

    again = train(check(line), tmp_path / "parts")  # finished: what it came to
    assert again.figures == whole.figures
    assert_bit_equal(again.state.params, jax.device_get(whole.state.params))

    evaluate_run(tmp_path / "parts", "4", Options(examples=0))
    assert f"Held-out at step 4: {errors[0]:.4f}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"has no field data\.valid_sources"):
        evaluate_run(tmp_path / "parts", "4", Options(text="x"))


def test_the_best_figure_may_be_the_highest():
    figures = {"a": {"x": 3.0}}
    assert Best("a", "x").loss(figures) == 3
    assert Best("a", "x", higher_is_better=True).loss(figures) == -3
    assert Best("b", "x").loss(figures) is None


def test_mistakes_in_the_section_of_a_task_are_told_with_the_rest(line):
    line.data.rows = 0
    line.train.num_steps = 0
    with pytest.raises(ConfigError) as caught:
        check(line)
    assert "data.rows is 0; it must be positive" in str(caught.value)
    assert "train.num_steps" in str(caught.value)
    line.data.slop = 1.0
    with pytest.raises(ConfigError, match=r"data\.slop is not a field; did you mean slope\?"):
        check(line)
    line.task = "lines"
    with pytest.raises(ConfigError, match=r"task is 'lines'; it must be one of .*, line"):
        check(line)


def test_a_task_without_a_required_part_is_told(monkeypatch):
    class Unfinished(LineTask):
        loss = Task.loss
        make_model = Task.make_model

    monkeypatch.setitem(TASKS, "unfinished", Unfinished)
    with pytest.raises(TypeError, match="the task 'unfinished' has no make_model, loss"):
        find_task("unfinished")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "brings no evaluations"),
        (["held-out", "held-out"], "each needs a name of its own"),
        (["held-out", "train"], "each needs a name of its own"),
        (["median"], "by the evaluation 'held-out', which it does not have"),
    ],
)
def test_evaluations_that_cannot_be_told_apart_are_told(line, names, words):
    task = LineTask(check(line))
    task.evaluations = [dataclasses.replace(task.evaluations[0], name=name) for name in names]
    with pytest.raises(TypeError, match=words):
        check_task(task)


def test_heads_that_are_not_there_or_there_twice_are_told():
    ids = jnp.zeros((1, 4), jnp.int32)
    for heads, words in ((("mlm", "mlm"), "mlm twice"), (("mlm", "tag"), "no head 'tag'")):
        with pytest.raises(ValueError, match=words):
            Albert(TINY, heads).init({"params": jax.random.key(0)}, ids, ids, ids)


def test_a_kernel_that_cannot_serve_a_config_is_told_with_those_that_can(tiny, monkeypatch):
    def problems(use):
        found = ["it has no dropout (attention_probs_dropout_prob)"] if use.dropout else []
        return found + (["it runs on gpu only"] if use.backend not in (None, "gpu") else [])

    monkeypatch.setitem(
        attention.KERNELS, "fast", Kernel(xla.prepare, xla.attend, problems, xla.kept)
    )
    tiny.model.attention = "fast"
    with pytest.raises(ConfigError, match=r"is 'fast', and it has no dropout .*; xla would work"):
        check(tiny)
    tiny.model.attention_probs_dropout_prob = 0.0
    config = check(tiny)
    with pytest.raises(ConfigError, match=r"it runs on gpu only; xla would work"):
        check_devices(config, {}, 8)
    tiny.model.attention = "flash"
    with pytest.raises(
        ConfigError, match=r"attention is 'flash'; it must be one of auto, xla, cudnn, splash, fast"
    ):
        check(tiny)
