"""Sweeps: grids, what is refused before the first run, and real runs that fail, stop and go on."""

import csv
import dataclasses
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from albert.models.cost import without_heads
from albert.runtime.fields import ConfigError
from albert.tasks.pretraining import flops_per_token
from albert.train.config import in_steps
from albert.train.cost import parameters_of
from albert.train.phases import phases_of
from bases import BASE
from configs.finetune import published
from runs import one_device
from tools.sweeps import plan as plan_module
from tools.sweeps import runner
from tools.sweeps.grid import Sweep, chain, choices, product, zip_runs
from tools.sweeps.plan import (
    check_disk,
    field_names,
    load_sweep,
    parse_overrides,
    plan,
    run_name,
    task_of,
)
from tools.sweeps.plots import _loss, _quality, draw
from tools.sweeps.results import Row, collect, write_tables

ROOT = Path(__file__).resolve().parent.parent
# Searches are planned in tests/test_trials.py.
OTHERS = ("scale", "search")
ABLATIONS = sorted(
    p.stem for p in (ROOT / "configs/ablations").glob("*.py") if p.stem not in OTHERS
)
TEXT = {"data.train_sources": ("python-docs",)}


def test_grids_are_put_together():
    a, b = choices("model.sharing", "all", "none"), choices("model.embedding_size", 8, 16)
    assert [tuple(run.values()) for run in product(a, b)] == [
        ("all", 8),
        ("all", 16),
        ("none", 8),
        ("none", 16),
    ]
    assert [tuple(run.values()) for run in zip_runs(a, b)] == [("all", 8), ("none", 16)]
    assert chain(a, a[:1], b) == a + b
    with pytest.raises(ValueError, match=r"model\.sharing is set by two"):
        product(a, a)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        zip_runs(a, b[:1])


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("arg", ["", ":laptop"])
def test_every_ablation_is_planned(name, arg, tmp_path):
    sweep = load_sweep(f"configs/ablations/{name}.py{arg}")
    runs = plan(sweep, tmp_path, TEXT, sweep.seeds)
    assert len(runs) == len(sweep.runs) * len(sweep.seeds)
    assert len({run.workdir for run in runs}) == len(runs)
    for which, _ in sweep.published:
        assert any(which.items() <= run.items() for run in sweep.runs), which
    if sweep.title.startswith("Table"):
        assert len(sweep.published) == len(sweep.runs) or (name, arg) == ("table11", ":laptop")


def fields_of(sweep, tmp_path):
    """Overrides that name what a sweep of fine-tuning reads."""
    file, task = tmp_path / "questions.json", task_of(sweep)
    file.touch()
    paths = {"path": tmp_path} if task == "glue" else {"train": file, "dev": file}
    named = [f"--config.data.{name}={path}" for name, path in paths.items()]
    return parse_overrides(["--config.init_from=model", *named], task)


@pytest.mark.parametrize("sweep", ["seeds", "grid"])
def test_every_sweep_of_fine_tuning_is_planned(sweep, tmp_path):
    for task in published.COLUMNS:
        for arg in (task, f"{task},tiny"):
            found = load_sweep(f"configs/finetune/{sweep}.py:{arg}")
            runs = plan(found, tmp_path / "runs", fields_of(found, tmp_path), found.seeds)
            assert len({run.workdir for run in runs}) == len(runs) > 3
            assert found.center == "median"
    with pytest.raises(ConfigError, match="the argument is 'x'; it names one task of cola"):
        load_sweep(f"configs/finetune/{sweep}.py:x")


def test_the_table_of_fine_tuning_has_medians_of_what_each_run_came_to(tmp_path):
    """Runs whose length is in epochs, and whose sizes are those of the model they start from."""
    sweep = load_sweep("configs/finetune/grid.py:mrpc,tiny")
    sweep = dataclasses.replace(sweep, runs=sweep.runs[:1])
    runs = plan(sweep, tmp_path, fields_of(sweep, tmp_path), (0, 1, 2))
    for run, accuracy in zip(runs, (0.5, 0.9, 0.8), strict=True):
        run.workdir.mkdir()
        model = dataclasses.replace(run.config.model, num_hidden_layers=2, hidden_size=12)
        trained = in_steps(dataclasses.replace(run.config, model=model), 160)
        (run.workdir / "config.json").write_text(
            json.dumps({"config": dataclasses.asdict(trained)})
        )
        evaluated = {"step": 3, "accuracy": accuracy, "f1": 0.5, "majority": 0.4}
        logged = [{"group": "dev", **evaluated}, {"group": "dev", **evaluated, "step": 5}]
        (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in logged))
        assert not plan_module.is_finished(run)
        (run.workdir / "eval_5.json").write_text(json.dumps(evaluated | {"accuracy": 0.1}))
        (run.workdir / "eval_best.json").write_text(json.dumps(evaluated))
        assert plan_module.is_finished(run)
    (row,) = collect(sweep, runs)
    assert row.center == {"accuracy, %": 80.0, "f1, %": 50.0, "most frequent class, %": 40.0}
    assert row.spread["accuracy, %"] == pytest.approx(statistics.stdev((50, 90, 80)))
    assert (row.steps, row.parameters) == (5, without_heads(parameters_of(trained)))
    table = write_tables(sweep, [row], 1, tmp_path, "the command").read_text()
    assert "5 steps. Held-out figures: median ± sample" in table
    assert "| 80.00 ± 20.82 |" in table
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in draw(sweep, runs, [row], tmp_path))
    other = dataclasses.replace(runs[0].config.train, epochs=1.0)
    changed = dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, train=other))
    assert "holds a run with another train.epochs" in plan_module.other_run(changed)[0]


@pytest.mark.slow
def test_the_command_of_a_run_makes_its_config(tmp_path):
    """What is checked beforehand is what train.py then reads."""
    sweep = load_sweep("configs/ablations/sharing.py:laptop")
    run = plan(sweep, tmp_path, TEXT, (3,))[9]
    done = subprocess.run(
        [sys.executable, "train.py", "--describe", *run.arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for section in ("model", "data", "train", "optimizer"):
        for field in dataclasses.fields(getattr(run.config, section)):
            value = getattr(getattr(run.config, section), field.name)
            assert f"  {field.name}: {value!r}\n" in done.stdout
    assert "seed: 3\n" in done.stdout


def test_what_a_run_finds_out_when_it_starts_makes_it_no_other_run(tmp_path):
    """Its dtype, and the fields of the phase that it has reached."""
    phases = ({"steps": 30}, {"data.max_predictions": 4})
    fields = {**TEXT, "model.dtype": "auto", "phases": phases, "train.num_steps": 60}
    (run,) = plan(
        Sweep(title="t", base="configs/laptop.py:tiny", runs=[{}]), tmp_path, fields, (0,)
    )
    run.workdir.mkdir()
    for phase in phases_of(run.config):
        model = dataclasses.replace(phase.config.model, dtype="bfloat16")
        stored = dataclasses.asdict(dataclasses.replace(phase.config, model=model))
        (run.workdir / "config.json").write_text(json.dumps({"config": stored}))
        assert plan_module.other_run(run) == []
    check_disk([run], tmp_path)  # asks how large the model is
    (run.workdir / "eval_60.json").write_text("{}")
    assert plan_module.is_finished(run)
    stored["data"]["max_predictions"] = 3
    (run.workdir / "config.json").write_text(json.dumps({"config": stored}))
    assert "with another data.max_predictions;" in plan_module.other_run(run)[0]


def test_a_sweep_without_figures_of_pretraining_is_drawn(tmp_path):
    columns = {"accuracy, %": ("eval_{step}.json", "accuracy")}
    sweep = Sweep(title="t", base="configs/finetune/texts.py:tiny", runs=[{}], columns=columns)
    one = Row({"model.sharing": "all"}, 10, 5, 100, [], {"accuracy, %": 60.0}, {}, None, {})
    two = dataclasses.replace(one, center={"accuracy, %": 70.0}, parameters=20)
    assert _quality(sweep, [one, two], tmp_path).read_bytes()[:4] == b"\x89PNG"
    assert _quality(sweep, [dataclasses.replace(one, center={})], tmp_path) is None


def test_budgets_are_steps():
    base = load_sweep("configs/ablations/table3.py:laptop")
    here = Path("nowhere")

    def steps(*budget):
        sweep = dataclasses.replace(base, budget=budget)
        return [run.config.train.num_steps for run in plan(sweep, here, TEXT, (0,))]

    assert steps("steps", 123) == [123] * 8
    assert steps("tokens", 2048 * 200 + 1) == [200] * 8
    run = plan(base, here, TEXT, (0,))[0]
    per_step = 2048 * flops_per_token(run.config.model, 32, 5)
    paid = steps("flops", 150 * per_step)
    assert paid[0] == 150
    assert paid[3] < paid[0]  # a wider embedding costs more a step
    of_epochs = {**TEXT, "train.epochs": 2.0}
    budgeted = dataclasses.replace(base, budget=("steps", 123))
    with pytest.raises(ConfigError, match=r"seed=0: train\.epochs is 2\.0, and the sweep has a"):
        plan(budgeted, here, of_epochs, (0,))
    with pytest.raises(ConfigError, match="budget is by 'hours'; it must be by one of steps"):
        steps("hours", 1)
    with pytest.raises(
        ConfigError,
        match=r"size=8,seed=0: optimizer\.warmup_steps 100 is more than train\.num_steps",
    ):
        steps("tokens", 2048 * 50)


def test_everything_wrong_is_told_before_the_first_run(tmp_path):
    sweep = Sweep("", "configs/laptop.py", choices("model.sharing", "all", "groups:3", "half"))
    with pytest.raises(ConfigError) as error:
        plan(sweep, tmp_path, TEXT, (0,))
    assert "sharing=groups:3,seed=0: model.sharing is 'groups:3'" in str(error.value)
    assert "sharing=half,seed=0: model.sharing is 'half'; it must be one of" in str(error.value)
    sweep = Sweep("", "configs/laptop.py", choices("model.shared", "all"))
    with pytest.raises(ConfigError, match=r"shared=all,seed=0: .*shared"):
        plan(sweep, tmp_path, TEXT, (0,))
    runs = choices("model.sharing", "all", "all")
    with pytest.raises(ConfigError, match="2 runs would share the folder"):  # differ in nothing
        plan(Sweep("", "configs/laptop.py", runs), tmp_path, TEXT, (0,))
    # What the sweep varies is not the command line's to set: all rows would be the same run.
    table4 = load_sweep("configs/ablations/table4.py")
    with pytest.raises(ConfigError, match=r"--config\.model\.sharing is set, and the sweep itself"):
        plan(table4, tmp_path, TEXT | {"model.sharing": "all"}, (0,))
    with pytest.raises(ConfigError, match=r"sets seed; leave it out and give --seeds"):
        plan(table4, tmp_path, TEXT | {"seed": 3}, (0,))
    with pytest.raises(ConfigError, match=r"There is no file configs/ablations/table44\.py"):
        load_sweep("configs/ablations/table44.py")
    with pytest.raises(ConfigError, match="unknown argument 'huge'; there is laptop"):
        load_sweep("configs/ablations/table4.py:huge")
    with pytest.raises(ConfigError, match="did you mean hidden_size"):
        parse_overrides(["--config.model.hiden_size=3"])


def test_runs_that_differ_have_folders_that_differ(tmp_path):
    """By values that names cannot hold, and by fields of the same last name."""
    texts = ("тест.txt", "проба.txt", "a/b.txt", "a-b.txt", "A-b.txt", f"{'x' * 300}/a", "x" * 301)
    runs = plan(
        Sweep("", "configs/laptop.py", choices("data.text_field", *texts), seeds=(0, 1)),
        tmp_path,
        TEXT,
        (0, 1),
    )
    names = [run.name for run in runs]
    assert len({name.lower() for name in names}) == len(texts) * 2
    assert all(len(name.encode()) < 200 and "/" not in name for name in names)
    assert names[0] == "text_field=тест.txt,seed=0"
    assert run_name({"model.sharing": "groups:2", "model.per_layer_norm": True}, 1) == (
        "sharing=groups:2,per_layer_norm=True,seed=1"
    )
    assert run_name({}, 3) == "seed=3"
    # Of two fields with one name both are told whole.
    rows = [{"model.dtype": "x"}, {"optimizer.dtype": "x"}]
    both = field_names(rows)
    assert [run_name(row, 0, both) for row in rows] == [
        "model.dtype=x,seed=0",
        "optimizer.dtype=x,seed=0",
    ]
    many = {f"data.field_{number}": "value" for number in range(40)}
    assert len(run_name(many, 0).encode()) < 100
    assert run_name(many, 0) != run_name(many | {"data.field_7": "other"}, 0)


STARTS = """
import sys
from pathlib import Path
from tools.sweeps import runner
from tools.sweeps.plan import load_sweep, plan

sweep = load_sweep("configs/ablations/sharing.py:laptop")
run = plan(sweep, Path("work"), {"data.train_sources": ("own.txt",)}, (0,))[0]
run.workdir.mkdir(parents=True)
looks = "import os, sys; print(os.getcwd()); print(os.path.isfile(sys.argv[1]))"
config = run.arguments[0].removeprefix("--config=").partition(":")[0]
runner.start([sys.executable, "-c", looks, config], run, 0, 1).wait()
print((run.workdir / runner.LOG).read_text(), end="")
"""


def test_a_sweep_from_another_folder_reads_the_callers_files(tmp_path):
    """Its own configs are found, and what is checked is what the runs then read."""
    (tmp_path / "own.txt").write_text("A text.")
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-2:] == [str(tmp_path), "True"], done.stderr


def test_the_command_of_a_run_works_in_the_callers_folder(tmp_path, monkeypatch):
    sweep = load_sweep("configs/ablations/sharing.py:laptop")
    sweep = dataclasses.replace(sweep, evaluations=(("--layers", "layers_{step}.json"),))
    own = {"data.train_sources": ("own.txt",)}
    monkeypatch.chdir(ROOT)
    here = runner.stages_left(sweep, plan(sweep, tmp_path, TEXT, (0,))[0], ROOT, "python")
    assert [stage[1] for stage in here] == ["train.py", "eval.py"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("A text.")
    run = plan(sweep, tmp_path / "work", own, (0,))[0]
    (command, evaluation) = runner.stages_left(sweep, run, ROOT, sys.executable)
    assert evaluation[1] == str(ROOT / "eval.py")
    done = subprocess.run([*command, "--describe"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train_sources: ('own.txt',)" in done.stdout


def test_a_home_folder_is_where_the_user_is_at_home(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/sweep.py"),
            "configs/ablations/sharing.py:laptop",
            "--workdir=~/sweep",
            "--print",
            "--config.data.train_sources=python-docs",
        ],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"--workdir={tmp_path}/home/sweep/sharing=all," in done.stdout
    assert not (tmp_path / "~").exists()


def test_overrides_of_the_command_line_have_the_fields_types():
    found = parse_overrides(
        [
            "--config.data.train_sources=a.txt",
            "--config.data.valid_sources=('b', 'c')",
            "--config.data.lower_case=false",
            "--config.train.num_steps=7",
            "--config.data.tokenizer=5.model",
            "--config.optimizer.learning_rate=1",
        ]
    )
    assert found == {
        "data.train_sources": ("a.txt",),
        "data.valid_sources": ("b", "c"),
        "data.lower_case": False,
        "train.num_steps": 7,
        "data.tokenizer": "5.model",
        "optimizer.learning_rate": 1,
    }


def test_curves_are_over_tokens_and_over_the_seconds_of_steps(tmp_path, monkeypatch):
    """Two sharings of which the second takes twice the time: what was drawn, by the axes."""
    base = Sweep("", "configs/laptop.py", choices("model.sharing", "all", "none"), seeds=(0, 1))
    runs = plan(base, tmp_path, TEXT, base.seeds)
    for run in runs:
        run.workdir.mkdir()
        slow = 2 if run.row["model.sharing"] == "none" else 1
        train = [
            {"step": k, "group": "train", "step_seconds": slow * x} for k, x in ((1, 9), (2, 1))
        ]
        train.append({"step": 3, "group": "train", "step_seconds": slow * 2})
        valid = [
            {"step": k, "group": "valid", "gain": k / 1e3 + run.config.seed, "sop_accuracy": 0.5}
            for k in (500, 1000)
        ]
        lines = [json.dumps(record) for record in train + valid]
        (run.workdir / "metrics.jsonl").write_text("\n".join(lines))
        (run.workdir / "config.json").write_text(
            json.dumps({"config": dataclasses.asdict(run.config)})
        )
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr("tools.sweeps.plots.is_finished", lambda run: True)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    _loss(base, runs, tmp_path)
    tokens, _, seconds, _ = figures[0].axes
    assert tokens.get_xlabel() == "million tokens"
    assert seconds.get_xlabel() == "training seconds"
    for axis, ends in ((tokens, (2.048, 2.048)), (seconds, (2000, 4000))):
        means = {line.get_label(): line for line in axis.lines if line.get_alpha() is None}
        assert means.keys() == {"all", "none"}
        for name, end in zip(("all", "none"), ends, strict=True):
            np.testing.assert_allclose(means[name].get_xdata(), [end / 2, end])
            np.testing.assert_allclose(means[name].get_ydata(), [1.0, 1.5])  # over both seeds


def test_figures_of_a_run_are_named_by_what_they_judge(tmp_path):
    """The head of a run with NSP judges NSP, and figures stand in the units of the paper's."""
    sweep = load_sweep("configs/ablations/table5.py:laptop")
    runs = {run.row["data.sentence_objective"]: run for run in plan(sweep, tmp_path, TEXT, (0,))}
    evaluation = {"mlm_loss": 5.0, "mlm_accuracy": 0.2, "sop_accuracy": 0.9, "unigram_entropy": 6.0}
    for objective, run in runs.items():
        steps = run.config.train.num_steps
        run.workdir.mkdir()
        config = {"config": dataclasses.asdict(run.config)}
        (run.workdir / "config.json").write_text(json.dumps(config))
        (run.workdir / "metrics.jsonl").write_text("")
        kept = {k: v for k, v in evaluation.items() if objective != "none" or "sop" not in k}
        (run.workdir / f"eval_{steps}.json").write_text(json.dumps(kept))
    rows = {
        row.overrides["data.sentence_objective"]: row for row in collect(sweep, [*runs.values()])
    }
    assert rows["none"].center == {"MLM loss": 5.0, "MLM accuracy, %": 20.0}
    assert rows["nsp"].center == {"MLM loss": 5.0, "MLM accuracy, %": 20.0, "NSP accuracy, %": 90.0}
    assert rows["sop"].center == {"MLM loss": 5.0, "MLM accuracy, %": 20.0, "SOP accuracy, %": 90.0}
    # Judged by both, as Table 5 has it.
    steps = runs["nsp"].config.train.num_steps
    for name, accuracy in (("nsp", 0.91), ("sop", 0.52)):
        path = runs["nsp"].workdir / f"eval_{steps}_{name}.json"
        path.write_text(json.dumps({"sop_accuracy": accuracy}))
    found = collect(sweep, [runs["nsp"]])[0].center
    assert (found["NSP accuracy, %"], found["SOP accuracy, %"]) == (91.0, 52.0)
    backbone = parameters_of(runs["sop"].config)
    assert rows["sop"].parameters == sum(v for k, v in backbone.items() if "head" not in k)


def test_a_full_disk_is_told_beforehand(tmp_path, monkeypatch):
    runs = plan(load_sweep("configs/ablations/table4.py"), tmp_path / "new", TEXT, (0,))
    check_disk(runs[:1], tmp_path / "new")
    monkeypatch.setattr(
        plan_module.shutil, "disk_usage", lambda _: type("usage", (), {"free": 2 * 10**9})
    )
    with pytest.raises(
        ConfigError,
        match=r"checkpoints of the sweep take up to .* GB and .* has "
        r"2\.0 GB free",
    ):
        check_disk(runs, tmp_path / "new")


def test_planning_leaves_an_accelerator_to_the_runs(tmp_path):
    """jax would take the device, and most of its memory, for a process that only starts others."""
    code = f"""
if __name__ == "__main__":
    import sys
    sys.path.insert(0, {str(ROOT)!r})
    from pathlib import Path
    from jax._src import xla_bridge
    from tools.sweeps.plan import check_disk, load_sweep, plan
    folder = Path({str(tmp_path)!r})
    runs = plan(load_sweep("configs/ablations/table4.py"), folder, {TEXT!r}, (0,))
    check_disk(runs[:1], folder)
    assert not xla_bridge.backends_are_initialized()
"""
    (tmp_path / "planning.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "planning.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


SWEEP = """
from tools.sweeps.grid import Sweep, choices


def get_sweep(arg=""):
    return Sweep("A sweep of tests", {base!r}, choices({field!r}, *{values!r}), **{more!r})
"""


@pytest.fixture
def files(tmp_path, text, vocabulary, prepared):
    """Writes a base and a sweep; returns the sweep's file."""

    def write(field, values, steps=8, **more):
        base, sweep = tmp_path / "base.py", tmp_path / "sweep.py"
        names = {"text": str(text), "vocabulary": str(vocabulary), "prepared": str(prepared)}
        base.write_text(BASE.format(**names, steps=steps, evaluated=4, saved=4))
        sweep.write_text(SWEEP.format(base=str(base), field=field, values=values, more=more))
        return sweep

    return write


def command(sweep, workdir, *arguments):
    return [sys.executable, "tools/sweep.py", str(sweep), f"--workdir={workdir}", *arguments]


def call(sweep, workdir, *arguments):
    return subprocess.run(
        command(sweep, workdir, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=one_device(),
    )


def quality(workdir):
    """The columns of the table that do not depend on the machine's mood."""
    with open(workdir / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cost = re.compile("tokens/s|MB|hours")
    return [{k: v for k, v in row.items() if not cost.search(k)} for row in rows]


@pytest.mark.slow
def test_a_sweep_of_two_of_which_one_fails(files, tmp_path):
    """With an evaluation behind it, in a folder that TensorBoard can read; then once more."""
    sweep = files(
        "optimizer.learning_rate",
        [0.001, 1e30],
        seeds=(0,),
        evaluations=(("--layers --rows=8", "layers_{step}.json"),),
        columns={"L2": ("layers_{step}.json", "l2")},
        published=(({"optimizer.learning_rate": 0.001}, {"average": 80.1}),),
        common={"train.max_bad_steps": 2},
    )
    work = tmp_path / "work"
    done = call(sweep, work, "--print")
    assert done.returncode == 0
    assert len(done.stdout.strip().splitlines()) == 2
    assert not work.exists()
    first = shlex.split(done.stdout.splitlines()[0])
    assert first[:2] == ["python", "train.py"]
    assert first[first.index("&&") :][1:3] == ["python", "eval.py"]

    done = call(sweep, work)
    assert done.returncode == 2
    assert "1 of 2 runs failed" in done.stderr
    assert "Training diverged" in done.stderr
    good = work / "learning_rate=0.001,seed=0"
    layers = json.loads((good / "layers_8.json").read_text())
    table = (work / "table.md").read_text()
    assert "**1 of 2 rows are not there yet.**" in table
    assert f"{sum(layers['l2']) / 3:.3f}" in table
    assert "paper: average" in table
    assert "| parameters without heads |" in table
    assert "80.1" in table
    report = json.loads((good / "eval_8.json").read_text())
    assert f"{report['mlm_loss']:.3f}" in table
    assert float(quality(work)[0]["MLM loss"]) == report["mlm_loss"]
    assert any((good / "hparams").iterdir())
    for name in ("loss.png", "quality.png"):
        assert (work / name).read_bytes()[:4] == b"\x89PNG"

    # What is finished stays untouched; another config in its folder is refused.
    before = (good / "metrics.jsonl").stat().st_mtime_ns
    done = call(sweep, work)
    assert "learning_rate=0.001,seed=0: finished before" in done.stdout
    assert (good / "metrics.jsonl").stat().st_mtime_ns == before
    done = call(sweep, work, "--config.train.batch_size=8")
    assert done.returncode == 2
    assert "holds a run with another train.batch_size" in done.stderr


@pytest.mark.slow
def test_a_sweep_that_is_killed_finishes_with_the_same_table(files, tmp_path):
    sweep = files("model.sharing", ["all", "sandwich"], steps=100, seeds=(0,))
    assert call(sweep, tmp_path / "whole", "--jobs=2").returncode == 0

    # Killed in the middle of a run, with everything below it; then stopped politely.
    work = tmp_path / "killed"
    for number, (run, how) in enumerate(
        [
            ("sharing=all,seed=0", signal.SIGKILL),
            ("sharing=sandwich,seed=0", signal.SIGTERM),
        ]
    ):
        process = subprocess.Popen(
            command(sweep, work),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=one_device(),
        )
        metrics = work / run / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not (metrics.is_file() and metrics.read_text().count("\n") > 20 + number):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "a run outlived its sweep"
        assert not (work / run / "eval_100.json").exists()
        if how == signal.SIGTERM:
            assert process.returncode == 2
            assert "The same command resumes it" in errors
    assert call(sweep, work, "--jobs=2").returncode == 0
    assert quality(work) == quality(tmp_path / "whole")


@pytest.mark.slow
def test_a_budget_in_seconds_is_the_steps_that_it_buys(files, tmp_path):
    """By the step as it was measured; what a machine under load makes of it is not tested."""
    sweep = files(
        "model.num_hidden_layers",
        [2, 4],
        seeds=(0, 1),
        budget=("seconds", 1.0),
        common={"optimizer.warmup_steps": 0},
    )
    work = tmp_path / "work"
    # Neither of these measures anything.
    done = call(sweep, work, "--print")
    assert done.returncode == 2
    assert "what a step takes where the runs will be is not known" in done.stderr
    done = call(sweep, work, "--table")
    assert done.returncode == 0, done.stderr
    assert "**2 of 2 rows are not there yet.**" in (work / "table.md").read_text()
    assert not any(work.rglob("calibration*"))
    done = call(sweep, work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("measuring its step") == 2  # not again for the second seed
    rows = quality(work)
    for row, layers in zip(rows, (2, 4), strict=True):
        runs = [work / f"num_hidden_layers={layers},seed={seed}" for seed in (0, 1)]
        lines = (runs[0] / "calibration" / "metrics.jsonl").read_text().splitlines()
        times = [t for line in lines if (t := json.loads(line).get("step_seconds"))]
        steps = max(1, int(1.0 / statistics.median_high(times)))
        assert int(row["steps"]) == steps
        assert all((run / f"eval_{steps}.json").is_file() for run in runs)
    # And not when it is started again.
    table = (work / "table.md").read_text()
    shown = call(sweep, work, "--table", "--jobs=2")  # of whatever number there were at once
    assert shown.returncode == 0, shown.stderr
    assert "not there yet" not in (work / "table.md").read_text()
    assert [r["steps"] for r in quality(work)] == [r["steps"] for r in rows], table
    again = call(sweep, work).stdout
    assert again.count("finished before") == 4
    assert "measuring" not in again
    assert len(call(sweep, work, "--print").stdout.strip().splitlines()) == 0
