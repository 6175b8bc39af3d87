"""Runs on clusters: what is written for them, what is refused, and a real Slurm of two nodes."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import slurm as slurm_here
from runs import ROOT, assert_bit_equal, final_params, one_device, records
from scripts import check_shell
from tools.launchers import slurm
from tools.launchers.base import Job, Run
from tools.launchers.slurm import Options, problems, storage_problem

PATH_WITHOUT_SLURM = "/nonexistent"


def job_of(folder, *lines, is_sweep=False, **options):
    """A job of runs that are shell commands, as `shlex` splits them, with `&&` between stages."""
    runs = tuple(
        Run(str(place), tuple(tuple(shlex.split(stage)) for stage in line.split(" && ")))
        for place, line in enumerate(lines)
    )
    asked = Options(**{"time": "10:00", "notice": 5, "restarts": 3} | options)
    return Job("test", folder, runs, is_sweep, asked, "20260131-235959")


def launch(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/launch.py"), *map(str, arguments)],
        cwd=cwd,
        env=one_device() | environment,
        capture_output=True,
        text=True,
    )


def arguments_of(tiny):
    """The tiny config for a process of its own, over whatever devices there are."""
    return [
        "--config=configs/base.py:v1,tiny",
        f"--config.data.train_sources={tiny.data.train_sources[0]}",
        f"--config.data.tokenizer={tiny.data.tokenizer}",
        f"--config.data.folder={tiny.data.folder}",
        f"--config.model.vocab_size={tiny.model.vocab_size}",
        "--config.data.seq_length=32",
        "--config.data.max_predictions=6",
        "--config.data.max_documents=0",
        "--config.train.eval_rows=40",
        "--config.train.checkpoint_every=20",
        "--config.train.eval_every=1000",
    ]


def test_the_script_of_a_run_says_what_was_asked(tmp_path):
    job = job_of(
        tmp_path, "python train.py --distributed", nodes=2, gpus=8, sbatch=("--partition=gpu",)
    )
    script = slurm.script(job)
    check_shell(script, tmp_path)
    check_shell((ROOT / "launch/slurm/task.sh").read_text(), tmp_path)
    options = re.findall(r"^#SBATCH (.*)$", script, re.M)
    assert {"--nodes=2", "--ntasks-per-node=8", "--gres=gpu:8", "--partition=gpu"} <= {*options}
    assert {"--requeue", "--signal=TERM@5", "--time=10:00"} <= {*options}
    assert "@" not in script.replace("TERM@5", "")
    assert problems(Options(nodes=1, gpus=8), tmp_path, False) == []


def test_the_array_of_a_sweep_runs_lines_as_they_are(tmp_path):
    lines = ("python train.py '--a=x y' && python eval.py", "python train.py '$HOME'")
    script = slurm.script(job_of(tmp_path, *lines, is_sweep=True))
    check_shell(script, tmp_path)
    assert "#SBATCH --array=0-1%4" in script
    shown = subprocess.run(
        ["bash", "-c", script.split("srun")[0] + 'printf "%s|" "${commands[@]}"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == "|".join([*lines, ""])


def test_a_disk_of_one_node_is_no_place_for_several():
    mounts = "a / ext4 rw 0 0\nb /home nfs4 rw 0 0\nc /home/me/my\\040disk xfs rw 0 0\n"
    assert storage_problem(Path("/home/you/run"), mounts) is None
    assert "disk of this machine (ext4)" in storage_problem(Path("/data/run"), mounts)
    assert "(xfs)" in storage_problem(Path("/home/me/my disk/run"), mounts)


CLOUD = ["--shape=v6e-8", "--image=r/albert:1", "--workdir=gs://mine/runs/base_1"]
DOCS = ["--config=configs/base.py:tiny", "--config.data.train_sources=('python-docs',)"]


def test_what_would_be_started_in_a_cloud_is_shown(tmp_path):
    done = launch("kubernetes", *CLOUD, *DOCS, "--print", cwd=tmp_path, PATH=PATH_WITHOUT_SLURM)
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    command = ["python", "train.py", *DOCS, "--workdir=gs://mine/runs/base_1", "--distributed"]
    assert pod["containers"][0]["command"] == command
    assert done.stderr.count("$ kubectl create ") == 2
    assert not list(tmp_path.iterdir())


def test_several_slices_are_named_in_the_config(tmp_path):
    done = launch("kubernetes", *CLOUD, "--slices=2", *DOCS, "--print", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (replicated,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert replicated["replicas"] == 2
    assert "--config.sharding.slices=2" in pod["containers"][0]["command"]


KUBECTL = """#!/bin/bash
echo "$@" >> {folder}/calls
case "$*" in *dry-run*) ;; *) echo "the queue is closed" >&2; exit {code} ;; esac
"""


@pytest.mark.parametrize("code", [0, 1], ids=["taken", "refused"])
def test_a_manifest_is_tried_and_handed_over(code, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").write_text(KUBECTL.format(folder=tmp_path, code=code))
    (programs / "kubectl").chmod(0o755)
    done = launch(
        "kubernetes", *CLOUD, *DOCS, cwd=tmp_path, PATH=f"{programs}:{os.environ['PATH']}"
    )
    (path,) = tmp_path.glob("kubernetes-base-1-*.yaml")
    assert yaml.safe_load(path.read_text())["kind"] == "JobSet"
    tried, given = (tmp_path / "calls").read_text().splitlines()
    assert tried == f"create --dry-run=server --filename={path}"
    assert given == f"create --filename={path}"
    if code:
        assert done.returncode == 2
        assert f"kubectl create --filename={path} is refused: the queue is closed" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert f"Stop: kubectl delete --filename={path}" in done.stdout


BAD = [
    (["nobody"], "there is no engine 'nobody'; there is slurm, kubernetes, skypilot, tpu_vm"),
    (["slurm", "--image=r/a:1"], "--image is of kubernetes, tpu_vm, not of slurm. See --help."),
    (
        ["kubernetes", "--slices=2", "--config.sharding.slices=4"],
        "--config.sharding.slices is set by --slices, the number that is asked for; give that.",
    ),
    (
        ["slurm", "--sweep=configs/ablations/sharing.py"],
        "--config is for one run; a sweep names its own. Leave it out.",
    ),
    (["slurm", "--time=soon"], "--time is 'soon'; it must be as sbatch takes it"),
    (["slurm", "--sbatch=partition"], "--sbatch is 'partition'; it must be an option"),
    (
        ["slurm", "--nodes=3", "--shared_workdir"],
        "16 rows cannot be shared by 3 devices equally (of 3 processes with a device each)",
    ),
    (
        ["kubernetes", "--shape=v6e-32", "--image=r/a:1", "--workdir=gs://mine/run"],
        "rows cannot be shared by 32 devices equally (of 1 x v6e-32, 32 devices)",
    ),
    (
        ["skypilot", "--shape=l4-1", "--workdir=gs://mine/run"],
        "which is on this machine, and the job's hosts do not see it; copy it to gs://",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_what_cannot_be_started_is_told(arguments, message, tiny, tmp_path):
    done = launch(
        *arguments[:1], f"--workdir={tmp_path / 'run'}", *arguments[1:], *arguments_of(tiny)
    )
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_config_that_the_job_would_not_get_is_refused(tmp_path):
    done = launch("slurm", "--config", "configs/base.py:tiny", f"--workdir={tmp_path}", "--print")
    assert done.returncode == 2
    assert "--config: write fields with their values, as in --config.seed=1" in done.stderr


def test_a_config_that_the_hosts_do_not_get_is_refused(tmp_path):
    shutil.copy(ROOT / "configs/base.py", tmp_path / "mine.py")
    fields = ["--config=mine.py:tiny", *DOCS[1:], "--print"]
    done = launch("kubernetes", *CLOUD, *fields, cwd=tmp_path)
    assert done.returncode == 2
    assert f"mine.py is not in {ROOT}, which is what the job's hosts get" in done.stderr


def test_without_a_clouds_program_nothing_is_left(tmp_path):
    done = launch("kubernetes", *CLOUD, *DOCS, cwd=tmp_path, PATH=PATH_WITHOUT_SLURM)
    assert done.returncode == 2
    assert "There is no kubectl here: give the command where jobs are handed over" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_kernels_of_the_nodes_are_not_asked_of_this_machine(tiny, tmp_path):
    fields = ["--config.model.attention=cudnn", "--config.model.dtype=bfloat16", "--print"]
    fields += [f"--config.model.{name}=0.0" for name in ("attention_probs_dropout_prob",)]
    done = launch("slurm", *arguments_of(tiny), *fields, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "--config.model.attention=cudnn" in done.stdout


def test_without_the_engine_there_is_still_the_script(tiny, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = launch("slurm", *arguments_of(tiny), workdir, PATH=PATH_WITHOUT_SLURM)
    assert done.returncode == 2
    assert "There is no sbatch here" in done.stderr
    assert not (tmp_path / "run").exists()
    done = launch("slurm", *arguments_of(tiny), workdir, "--print", PATH=PATH_WITHOUT_SLURM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=run\n")
    assert "--distributed" not in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not slurm_here.is_possible():
        pytest.skip(slurm_here.INSTALL)
    with slurm_here.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"XLA_FLAGS": one_device()["XLA_FLAGS"]}


def queued(done) -> str:
    assert done.returncode == 0, done.stderr
    return re.search(r"Job (\d+) is queued", done.stdout)[1]


def finished(cluster, number, seconds=240):
    """The state of a job that has ended."""
    found = ""

    def is_over():
        nonlocal found
        found = slurm_here.state(cluster, number)
        return found.split()[0] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")

    try:
        slurm_here.wait_until(is_over, seconds)
    except AssertionError as error:
        queue, nodes = ["squeue", "--long"], ["sinfo", "--list-reasons"]
        told = "\n".join(slurm_here.answer(cluster, *command) for command in (queue, nodes))
        raise AssertionError(f"{error}: job {number} is {found}\n{told}") from None
    return found


@pytest.mark.slow
def test_a_run_that_is_preempted_on_a_cluster_ends_bit_equal(cluster, tiny, tmp_path):
    steps = "--config.train.num_steps=120"
    more = ["--nodes=2", "--shared_workdir", "--time=10:00", steps, "--config.train.log_every=10"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = launch("slurm", *arguments_of(tiny), *more, f"--workdir={parts}", **cluster)
    number = queued(first)

    def is_under_way():
        return (parts / "metrics.jsonl").is_file() and records(parts)

    slurm_here.wait_until(is_under_way, 200)
    slurm_here.answer(cluster, "scancel", "--signal=TERM", number)
    assert finished(cluster, number) == "COMPLETED 1 0:0"
    log = (parts / f"slurm-{number}.log").read_text()
    assert "Stopped by SIGTERM at step" in log
    assert "Resuming from the checkpoint of step" in log
    number = queued(launch("slurm", *arguments_of(tiny), *more, f"--workdir={whole}", **cluster))
    assert finished(cluster, number) == "COMPLETED 0 0:0"
    assert_bit_equal(final_params(parts, 120), final_params(whole, 120))


@pytest.mark.slow
def test_a_task_that_fails_ends_the_job_at_once(cluster, tmp_path):
    late = Path(cluster["SLURM_CONF"]).with_name("slow-n2")  # it starts when task 0 is over
    for code, task in ((2, 1), (1, 0)):
        command = f"bash -c 'if [ $SLURM_PROCID = {task} ]; then exit {code}; fi; sleep 300'"
        if task == 0:
            late.touch()
        job = job_of(tmp_path, command, nodes=2)
        path = tmp_path / "job.sbatch"
        path.write_text(slurm.script(job))
        number = subprocess.run(
            ["sbatch", "--parsable", path], env=cluster, capture_output=True, text=True, check=True
        ).stdout.strip()
        begun = time.monotonic()
        state, restarts, _ = finished(cluster, number, 120).split()
        assert (state, restarts) == ("FAILED", "0")
        assert time.monotonic() - begun < 60
        told = (tmp_path / f"slurm-{number}.log").read_text()
        assert f"Task {task} left with {code}; the others are ended." in told
    late.unlink()


@pytest.mark.slow
def test_a_run_that_asks_to_go_on_is_requeued_so_often(cluster, tmp_path):
    job = job_of(tmp_path, "bash -c 'exit 75'", restarts=2)
    path = tmp_path / "job.sbatch"
    path.write_text(slurm.script(job))
    number = subprocess.run(
        ["sbatch", "--parsable", path], env=cluster, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert finished(cluster, number, 120) == "FAILED 2 75:0"
    assert "Restarted 2 times, no more" in (tmp_path / f"slurm-{number}.log").read_text()


SWEEP = """
from tools.sweeps.grid import Sweep, choices


def get_sweep(argument=""):
    return Sweep(
        title="two rates",
        base="configs/base.py:v1,tiny",
        runs=choices("optimizer.learning_rate", 1e-3, 2e-3),
        seeds=(0,),
    )
"""


@pytest.mark.slow
def test_a_sweep_as_an_array_with_a_run_that_is_preempted(cluster, tiny, tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    fields = [a for a in arguments_of(tiny) if not a.startswith("--config=")]
    fields += ["--config.train.num_steps=200", "--config.train.log_every=10"]
    workdir = tmp_path / "array"
    sweep = [f"--sweep={tmp_path / 'sweep.py'}", "--jobs=2", "--time=10:00"]
    alone = cluster | {"JAX_COORDINATOR_ADDRESS": ""}  # each run is one process
    number = queued(launch("slurm", *sweep, *fields, f"--workdir={workdir}", **alone))

    def is_under_way():
        return any(records(path.parent) for path in workdir.glob("*/metrics.jsonl"))

    slurm_here.wait_until(is_under_way, 200)
    slurm_here.answer(cluster, "scancel", "--signal=TERM", f"{number}_0")
    tables = {}
    for task in ("0", "1"):
        assert finished(cluster, f"{number}_{task}").startswith("COMPLETED")
    for folder, more in ((workdir, ["--table"]), (tmp_path / "here", ["--jobs=2"])):
        table = [sys.executable, "tools/sweep.py", tmp_path / "sweep.py", f"--workdir={folder}"]
        subprocess.run(
            [*table, *more, *fields],
            cwd=ROOT,
            env=one_device(),
            check=True,
            capture_output=True,
        )
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/eval_200.json"))]
        tables[folder] = [each["mlm_loss"] for each in found]
    assert len(tables[workdir]) == 2
    assert tables[workdir] == tables[tmp_path / "here"]


SEARCH = """
from tools.sweeps.grid import Sweep
from tools.sweeps.space import Search, log_uniform


def get_sweep(argument=""):
    rates = {"optimizer.learning_rate": log_uniform(1e-4, 1e-2)}
    return Sweep(
        title="rates",
        base="configs/base.py:v1,tiny",
        search=Search(rates, trials=3, sampler="random", pruner="none"),
        seeds=(0,),
    )
"""


@pytest.mark.slow
def test_a_search_as_an_array_with_a_worker_that_is_preempted(cluster, tiny, tmp_path):
    """Its trial is the one that it takes up again; all of them come to what they come to here."""
    pytest.importorskip("optuna", reason="needs pip install -r requirements-optuna.txt")
    (tmp_path / "search.py").write_text(SEARCH)
    fields = [a for a in arguments_of(tiny) if not a.startswith("--config=")]
    fields += ["--config.train.num_steps=200", "--config.train.log_every=10"]
    fields += ["--config.train.eval_every=100"]
    workdir = tmp_path / "array"
    search = [f"--sweep={tmp_path / 'search.py'}", "--jobs=2", "--time=10:00"]
    alone = cluster | {"JAX_COORDINATOR_ADDRESS": ""}
    number = queued(launch("slurm", *search, *fields, f"--workdir={workdir}", **alone))

    def is_under_way():
        logs = workdir.glob("trial=*/metrics.jsonl")
        return any(records(path.parent) for path in logs)

    slurm_here.wait_until(is_under_way, 300)
    slurm_here.answer(cluster, "scancel", "--signal=TERM", f"{number}_0")
    for task in ("0", "1"):
        assert finished(cluster, f"{number}_{task}", 500).startswith("COMPLETED")
    rows = []
    for folder, more in ((workdir, "--table"), (tmp_path / "here", "--workers=2")):
        table = [sys.executable, "tools/sweep.py", tmp_path / "search.py", f"--workdir={folder}"]
        done = subprocess.run(
            [*table, more, *fields], cwd=ROOT, env=one_device(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        with open(folder / "table.csv", newline="") as file:
            kept = ("trial", "outcome", "optimizer.learning_rate", "valid/mlm_loss")
            rows.append([{name: row[name] for name in kept} for row in csv.DictReader(file)])
    assert len(rows[0]) == 3
    assert rows[0] == rows[1]
