"""Searches: what is drawn, resumed, pruned and told, of runs and of programs that play them."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.runtime.signals import Preempted
from albert.train.config import as_plain, check
from bases import BASE
from configs import laptop
from runs import one_device
from tools.sweeps.grid import Sweep
from tools.sweeps.plan import load_sweep
from tools.sweeps.space import Search, log_uniform, one_of, uniform
from tools.sweeps.study import Trials, space_problems
from tools.sweeps.workers import Worker, write_trials

# Other tests wake jax in this process; a program that starts runs does not.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
ROOT = Path(__file__).resolve().parent.parent
SPACE = {
    "optimizer.learning_rate": log_uniform(1e-4, 1e-1),
    "optimizer.warmup_steps": uniform(0, 10),
    "model.sharing": one_of("all", "none"),
}
# Plays a run of 40 steps, evaluated every 10: resumes behind what its log has, and saves when it is
# asked to stop. Its loss is lowest at a learning rate of 0.01.
PLAYED = """
import json, math, signal, sys, time
from pathlib import Path

given = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
work = Path(given["workdir"])
rate = float(given["config.optimizer.learning_rate"])
log = work / "metrics.jsonl"
(work / "starts").open("a").write("1")


def stop(number, frame):
    (work / "saved").write_text("")
    sys.exit(75)


signal.signal(signal.SIGTERM, stop)
done = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.is_file() else []
for step in (10, 20, 30, 40):
    if step in done:
        continue
    time.sleep({seconds})
    if {diverges} and rate > 0.03 and step == 20:
        print("RunError: Training diverged: 3 steps in a row were not finite.")
        sys.exit(2)
    if {fails} and rate < 0.001:
        print("the machine is on fire")
        sys.exit(3)
    loss = abs(math.log10(rate) + 2) + 10 / step
    figures = {{"mlm_loss": loss, "sop_accuracy": 0.5}}
    if {not_finite} and step == 40 and rate > 0.02:
        del figures["mlm_loss"]
    with log.open("a") as file:
        print(json.dumps({{"step": step, "group": "valid", **figures}}), file=file)
report = {{"mlm_loss": math.nan}} | figures
(work / "eval_40.json").write_text(json.dumps(report))
"""


def played(folder, seconds=0.0, **what):
    """A folder whose train.py plays runs: those that `diverges`, `fails` or `not_finite` is set for
    do so, depending on their learning rate."""
    names = ("diverges", "fails", "not_finite")
    folder.mkdir(exist_ok=True)
    chosen = {name: what.pop(name, False) for name in names}
    assert not what
    (folder / "train.py").write_text(PLAYED.format(seconds=seconds, **chosen))
    return folder


def sweep_of(trials=8, **more):
    search = Search(SPACE, trials, **more)
    common = {
        "data.train_sources": ("python-docs",),
        "train.num_steps": 40,
        "train.eval_every": 10,
        "optimizer.warmup_steps": 0,
    }
    return Sweep("A search", "configs/laptop.py", search=search, seeds=(0,), common=common)


def trials_of(sweep, folder, said=None):
    trials = Trials(sweep, folder, {}, sweep.seeds, said.append if said is not None else print)
    trials.create()
    return trials


@pytest.fixture(autouse=True)
def optuna():
    return pytest.importorskip("optuna", reason="needs pip install -r requirements-optuna.txt")


def csv_of(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def work(sweep, folder, root, workers=1):
    trials = trials_of(sweep, folder)
    worker = Worker(sweep, trials, workers, root)
    worker.work()
    return trials, worker


def outcomes(trials):
    ended, _ = trials.ended()
    return [(t.number, t.run.row, t.outcome, t.figure) for t in ended]


def test_a_search_finds_the_best_and_prunes_the_rest(tmp_path):
    sweep = sweep_of(trials=12, pruner_options={"n_startup_trials": 3})
    trials, worker = work(sweep, tmp_path / "work", played(tmp_path / "root", 0.05))
    found = outcomes(trials)
    assert sorted(number for number, *_ in found) == list(range(12))
    assert not worker.failed
    assert trials.left() == 0
    finished = [f for f in found if not f[2]]
    pruned = [f for f in found if f[2].startswith("pruned at step")]
    assert len(finished) >= 3
    assert pruned
    assert len(finished) + len(pruned) == 12
    assert found[: len(finished)] == sorted(finished, key=lambda f: f[3])
    for number, row, outcome, figure in pruned:
        folder = tmp_path / "work" / f"trial={number}"
        step = int(outcome.rpartition(" ")[2])
        rate = row["optimizer.learning_rate"]
        assert figure == pytest.approx(abs(math.log10(rate) + 2) + 10 / step)
        assert (folder / "saved").is_file() or (folder / "eval_40.json").is_file()
    # One that ran on would have written more.
    assert any((tmp_path / "work" / f"trial={n}" / "saved").is_file() for n, *_ in pruned)


def test_the_table_is_the_grids_with_trials_and_outcomes(tmp_path):
    sweep = sweep_of(trials=10, pruner="none", sampler="random", seed=4)
    root = played(tmp_path / "root", diverges=True, not_finite=True)
    trials, _ = work(sweep, tmp_path / "work", root)
    table = write_trials(sweep, trials, tmp_path / "work", "the command").read_text()
    rows = csv_of(tmp_path / "work")
    assert len(rows) == 10
    bad = [r for r in rows if float(r["optimizer.learning_rate"]) > 0.02]
    assert bad
    assert {r["outcome"] for r in bad} == {"diverged"}
    assert [r["outcome"] for r in rows] == ["finished"] * (10 - len(bad)) + ["diverged"] * len(bad)
    losses = [float(r["valid/mlm_loss"]) for r in rows if r["outcome"] == "finished"]
    assert losses == sorted(losses)
    assert all(math.isfinite(float(r["valid/mlm_loss"])) for r in rows)  # the last finite one
    assert (
        "| trial | outcome | learning_rate | warmup_steps | sharing | parameters without" in table
    )
    assert "not there yet" not in table
    assert (tmp_path / "work" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    more = dataclasses.replace(sweep, search=dataclasses.replace(sweep.search, trials=12))
    again = trials_of(more, tmp_path / "work")
    assert again.left() == 2
    table = write_trials(more, again, tmp_path / "work", "the command").read_text()
    assert "**2 of 12 rows are not there yet.**" in table


def test_a_trial_that_fails_is_told_and_tried_again(tmp_path):
    sweep = sweep_of(trials=6, pruner="none", sampler="random", seed=1)
    root = played(tmp_path / "root", fails=True)
    trials, worker = work(sweep, tmp_path / "work", root)
    failed = [trial.number for trial, _ in worker.failed]
    assert 0 < len(failed) < 6
    assert all("the machine is on fire" in tail for _, tail in worker.failed)
    assert trials.left() == len(failed)
    trials, worker = work(sweep, tmp_path / "work", played(tmp_path / "root"))
    assert not worker.failed
    assert sorted(number for number, *_ in outcomes(trials)) == list(range(6))
    whole, _ = work(sweep, tmp_path / "whole", root.parent / "root")
    assert sorted(outcomes_without_folder(trials)) == sorted(outcomes_without_folder(whole))


def outcomes_without_folder(trials):
    return [(n, json.dumps(row), outcome, figure) for n, row, outcome, figure in outcomes(trials)]


WORKER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import albert.runtime.lock as lock
from test_trials import sweep_of, work
lock.RENEWED_EVERY = 0.2
import tools.sweeps.study as study
study.RENEWED_EVERY = 0.2
work(sweep_of(trials={trials}, pruner_options={{"n_startup_trials": 3}}), Path({work!r}),
     Path({played!r}))
"""


def start_worker(tmp_path, played_in, trials):
    text = WORKER.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        trials=trials,
        work=str(tmp_path / "work"),
        played=str(played_in),
    )
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def wait_until(what, process):
    deadline = time.monotonic() + 60
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_killed_changes_nothing(tmp_path, how):
    """Its trial goes on as the same trial: every draw and every figure is as without the kill."""
    root = played(tmp_path / "root", 0.15)
    process = start_worker(tmp_path, root, 7)
    log = tmp_path / "work" / "trial=3" / "metrics.jsonl"
    wait_until(log.is_file, process)
    children = psutil.Process(process.pid).children()
    os.kill(process.pid, how)
    process.communicate(timeout=30)
    assert process.returncode != 0
    psutil.wait_procs(children, timeout=10)
    sweep = sweep_of(trials=7, pruner_options={"n_startup_trials": 3})
    said = []
    left = trials_of(sweep, tmp_path / "work", said)
    assert left.left() == 4
    Worker(sweep, left, 1, root).work()
    whole, _ = work(sweep, tmp_path / "whole", root)
    assert outcomes_without_folder(left) == outcomes_without_folder(whole)
    assert any("trial=3" in text for text in said) == (how == signal.SIGKILL)
    starts = [len((tmp_path / "work" / f"trial={n}" / "starts").read_text()) for n in range(7)]
    assert starts[:3] == [1, 1, 1]
    assert starts[4:] == [1, 1, 1]


def test_two_workers_share_the_trials_and_one_that_dies_is_replaced(tmp_path):
    root = played(tmp_path / "root", 0.15)
    both = [start_worker(tmp_path, root, 8) for _ in range(2)]
    wait_until(lambda: len(list((tmp_path / "work").glob("trial=*/starts"))) >= 4, both[0])
    os.kill(both[0].pid, signal.SIGKILL)
    both[0].communicate(timeout=30)
    printed, _ = both[1].communicate(timeout=120)
    assert both[1].returncode == 0, printed
    trials = trials_of(sweep_of(8, pruner_options={"n_startup_trials": 3}), tmp_path / "work")
    assert sorted(number for number, *_ in outcomes(trials)) == list(range(8))
    assert trials.left() == 0
    drawn = [json.dumps(row) for _, row, _, _ in outcomes(trials)]
    assert len(set(drawn)) == 8  # not the same point by two workers with the same seed
    assert len(list((tmp_path / "work").glob("trial=*"))) == 8


def test_a_run_that_was_preempted_ends_the_worker_with_its_code(tmp_path):
    """A scheduler that signals every process of a job is answered by 75, "start me again"."""
    sweep = sweep_of(trials=2)
    root = tmp_path / "root"
    root.mkdir()
    (root / "train.py").write_text("import sys; sys.exit(75)")
    worker = Worker(sweep, trials_of(sweep, tmp_path / "work"), 1, root)
    with pytest.raises(Preempted, match="Stopped with 2 trials to go"):
        worker.work()


def test_everything_wrong_with_a_search_is_told_before_its_first_trial(tmp_path):
    wrong = {
        "optimizer.learning_rate": log_uniform(0.0, 1.0),
        "optimizer.warmup_steps": uniform(10, 0),
        "model.sharing": one_of(),
        "data.train_sources": one_of(("a.txt",)),
        "train.batch_size": uniform(16, 64, 10),
        "train.num_steps": uniform(1, 2),
        "seed": uniform(0, 4),
    }
    sweep = dataclasses.replace(
        sweep_of(),
        search=Search(wrong, 0, figure="loss", sampler="best", pruner="early"),
        seeds=(0, 1),
        budget=("seconds", 3.0),
    )
    told = "\n".join(space_problems(sweep))
    for text in (
        "optimizer.learning_rate: it goes from 0.0 by magnitude; that must be over 0",
        "optimizer.warmup_steps: it goes from 10 to 0; the first must be less",
        "model.sharing: there is nothing to choose from",
        "data.train_sources: (('a.txt',),) are not all plain values",
        "train.batch_size: no number of steps of 10 goes from 16 to 64",
        "seed is in the space",
        "train.num_steps is in the space, and the budget says it",
        "trials is 0; it must be at least 1",
        "figure is 'loss'; it must be GROUP/NAME, as valid/mlm_loss",
        "sampler is 'best'; it must be one of tpe, random",
        "pruner is 'early'; it must be one of none, median, percentile, halving, hyperband",
        "a trial of a search has one seed, and there are 2",
        "a search has no budget in seconds",
    ):
        assert text in told
    edge = dataclasses.replace(SPACE["optimizer.warmup_steps"], high=50)
    longer = dataclasses.replace(
        sweep_of(), search=Search(SPACE | {"optimizer.warmup_steps": edge}, 4)
    )
    with pytest.raises(ConfigError, match=r"warmup_steps 50 is more than train\.num_steps"):
        trials_of(longer, tmp_path / "edge")
    unknown = sweep_of(pruner_options={"n_startups": 3}, sampler_options={"seeds": 1})
    with pytest.raises(ConfigError, match=r"sampler_options of tpe: .*seeds.*") as error:
        trials_of(unknown, tmp_path / "options")
    assert "pruner_options of median: " in str(error.value)
    assert not (tmp_path / "options").exists()
    trials_of(sweep_of(), tmp_path / "work")
    with pytest.raises(ConfigError, match="holds a search with another seed, sampler; choose"):
        trials_of(sweep_of(sampler="random", seed=3), tmp_path / "work")


def test_a_point_that_is_no_config_is_told_and_left_out(tmp_path):
    """Two heads and four share 64 numbers, three do not."""
    space = {**SPACE, "model.num_attention_heads": uniform(2, 4)}
    search = Search(space, 8, pruner="none", sampler="random")
    sweep = dataclasses.replace(sweep_of(), search=search)
    trials, worker = work(sweep, tmp_path / "work", played(tmp_path / "root"))
    ended, refused = trials.ended()
    assert not worker.failed
    assert refused
    assert len(ended) + len(refused) == 8
    assert {t.run.row["model.num_attention_heads"] for t in ended} <= {2, 4}
    assert "model.hidden_size" in refused[0]
    table = write_trials(sweep, trials, tmp_path / "work", "the command").read_text()
    assert all(text in table for text in refused)
    # A folder of another run is no point of the space: the user has to look.
    (tmp_path / "other" / "trial=0").mkdir(parents=True)
    config = as_plain(check(laptop.get_config()))
    (tmp_path / "other" / "trial=0" / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(RunError, match="trial=0 holds a run with another"):
        trials_of(sweep_of(), tmp_path / "other").next()


def test_a_figure_that_runs_do_not_have_is_told(tmp_path):
    sweep = sweep_of(figure="valid/mlm_los")
    trials = trials_of(sweep, tmp_path / "work")
    with pytest.raises(
        RunError, match=r"do not have; there is valid/mlm_loss, valid/sop_accuracy\. Name one"
    ):
        Worker(sweep, trials, 1, played(tmp_path / "root")).work()


def test_every_pruner_and_sampler_can_be_asked(tmp_path):
    from tools.sweeps.study import PRUNERS, SAMPLERS

    for pruner in PRUNERS:
        options = {"percentile": 50.0} if pruner == "percentile" else {}
        for sampler in SAMPLERS:
            sweep = sweep_of(4, pruner=pruner, pruner_options=options, sampler=sampler)
            folder = tmp_path / f"{pruner}-{sampler}"
            trials = trials_of(sweep, folder)
            for _ in range(4):
                trial = trials.next()
                trial.run.workdir.mkdir()
                lines = [{"step": s, "group": "valid", "mlm_loss": 5.0} for s in (10, 20, 40)]
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (trial.run.workdir / "metrics.jsonl").write_text(text)
                step = trials.pruned_at(trial)
                trials.complete(trial) if step is None else trials.prune(trial, step)
                trial.lock.close()
            assert trials.next() is None
            assert trials.left() == 0


def test_the_search_of_the_ablations_can_be_drawn(tmp_path):
    for arg in ("", ":laptop"):
        sweep = load_sweep(f"configs/ablations/search.py{arg}")
        common = {"data.train_sources": ("python-docs",)}
        trials = Trials(sweep, tmp_path / f"work{arg[1:]}", common, sweep.seeds, print)
        trials.create()
        trial = trials.next()
        trial.lock.close()
        assert set(trial.run.row) == set(sweep.search.space)


SWEEP = """
from tools.sweeps.grid import Sweep
from tools.sweeps.space import Search, log_uniform, one_of


def get_sweep(arg=""):
    space = {{
        "optimizer.learning_rate": log_uniform(1e-4, 1e-1),
        "model.sharing": one_of("all", "none"),
    }}
    search = Search(space, trials=3, pruner_options={{"n_startup_trials": 1}}, seed={seed})
    return Sweep("A search of tests", {base!r}, search=search, seeds=(0,))
"""


@pytest.fixture
def files(tmp_path, text, vocabulary, prepared):
    base, sweep = tmp_path / "base.py", tmp_path / "sweep.py"
    names = {"text": str(text), "vocabulary": str(vocabulary), "prepared": str(prepared)}
    base.write_text(BASE.format(**names, steps=400, evaluated=10, saved=20))
    sweep.write_text(SWEEP.format(base=str(base), seed=3))
    return sweep


def call(sweep, workdir, *arguments):
    return subprocess.run(
        [sys.executable, "tools/sweep.py", str(sweep), f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=one_device(),
    )


def test_the_program_prints_workers_and_says_what_is_wrong(files, tmp_path):
    done = call(files, tmp_path / "work", "--print", "--workers=2", "--trials=9", "--seeds=4")
    assert done.returncode == 0, done.stderr
    one = f"python tools/sweep.py {files} --seeds=4 --workdir={tmp_path}/work --trials=9"
    assert done.stdout.splitlines() == [one, one]
    assert not (tmp_path / "work").exists()
    grid = "configs/ablations/sharing.py:laptop"
    done = call(grid, tmp_path / "w", "--workers=2")
    assert done.returncode == 2
    assert "has no search: leave --workers and --trials out" in done.stderr


@pytest.mark.slow
def test_real_runs_are_pruned_and_save(files, tmp_path):
    folder = tmp_path / "work"
    done = call(files, folder)
    assert done.returncode == 0, done.stderr
    rows = csv_of(folder)
    assert len(rows) == 3
    pruned = [row for row in rows if row["outcome"].startswith("pruned at step")]
    assert pruned
    for row in pruned:
        run = folder / f"trial={row['trial']}"
        assert not (run / "eval_400.json").exists()
        steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert steps
        assert last - 2 <= max(steps) < 400  # what was trained is saved
        assert f"at step {max(steps)}, which is saved" in (run / "sweep.log").read_text()
    assert "0 trials to go" in call(files, folder).stdout
