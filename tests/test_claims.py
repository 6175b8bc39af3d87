"""The claims report: what the compiler is asked, how claims are judged, and the page."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from albert.runtime.fields import ConfigError
from albert.train.config import check
from albert.train.cost import parameters_of, state_bytes
from albert.train.program import data_mesh, lower_step, memory
from configs import base, laptop
from tools.claims import energy, measure
from tools.claims.measure import Notebook, size_of, sized
from tools.claims.sizes import bert_of, largest_that_fits, resized
from tools.claims.verdicts import BOTH, by_gaps, by_ratio, by_runs, every_claim
from tools.compilers.hlo import exchanged
from tools.compilers.targets import compile_for

ROOT = Path(__file__).resolve().parent.parent


def test_bytes_of_a_program_whose_bytes_are_known():
    """One sum over all devices outside of a loop and one in it, which turns seven times."""
    mesh = data_mesh(jax.devices())

    @jax.shard_map(mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    def program(x):
        once = jax.lax.psum(x * jax.lax.axis_index("data"), "data")

        def turn(carry, _):
            return jax.lax.psum(jnp.sin(carry[:10]) * jax.lax.axis_index("data"), "data"), None

        return jax.lax.scan(turn, once[:10], None, length=7)[0], once

    text = jax.jit(program).lower(jnp.ones(1000, jnp.float32)).compile().as_text()
    assert exchanged(text) == {"all-reduce": {"number": 8, "bytes": 4 * (1000 + 7 * 10)}}
    silent = text.replace("known_trip_count", "unknown")
    assert exchanged(silent, turns=7) == exchanged(text)
    with pytest.raises(ValueError, match="a loop with collectives of no known length"):
        exchanged(silent)


@pytest.mark.slow
@pytest.mark.parametrize("change", [dataclasses.replace, bert_of])
def test_bytes_exchanged_and_held_by_a_step(change):
    of = change(check(laptop.get_config("tiny"), needs_text=False))
    sent = exchanged(lower_step(of, data_mesh(jax.devices())).compile().as_text())
    # The CPU's compiler sums what a layer contributes over the devices at every depth, shared or
    # not; the TPU's once, see below. The word embeddings have two gradients, of lookup and head.
    parts = parameters_of(of)
    words = of.model.vocab_size * of.model.embedding_size
    again = (of.model.depth - 1) * parts["layers"] if of.model.sharing == "all" else 0
    expected = 4 * (sum(parts.values()) + words + again)
    assert expected <= sent["all-reduce"]["bytes"] <= expected + 100  # and some sums of the loss
    sizes = memory(lower_step(of, data_mesh(jax.devices()[:1])).compile())
    state = state_bytes(of)
    batch = 4 * of.train.batch_size * (3 * of.data.seq_length + 3 * of.data.max_predictions + 1)
    expected = state["parameters"] + state["optimizer"] + batch
    assert 0 <= sizes["arguments"] - expected < 200  # counters
    assert sizes["peak"] >= sizes["arguments"] + sizes["temporaries"]
    assert sizes["temporaries"] > 0


@pytest.mark.parametrize("limit", [0, 1, 3, 16, 100, 5000])
@pytest.mark.parametrize("guess", [1, 16, 64])
def test_the_largest_batch_is_found_in_few_questions(limit, guess):
    asked = []

    def fits(n):
        asked.append(n)
        return n <= limit

    found = largest_that_fits(fits, guess)
    largest = min(limit, 4096)
    assert found <= largest
    assert found > largest - max(1, largest // 4)
    assert len(asked) == len(set(asked))
    assert max(asked) <= 4096


def test_verdicts():
    assert by_ratio("c", "bytes", 1, 10).verdict == "true"
    assert by_ratio("c", "bytes", 9, 10).verdict == "partly"
    assert by_ratio("c", "bytes", 10, 10).verdict == "false"
    assert by_ratio("c", "bytes", None, 10).verdict == "not measured"
    assert "0.900 of BERT's" in by_ratio("c", "bytes", 9, 10).number
    assert by_runs("c", "loss", [5.0, 5.1], [4.0, 4.1]).verdict == "true"
    assert by_runs("c", "loss", [5.0, 5.4], [4.9, 5.3]).verdict == "partly"
    assert by_runs("c", "loss", [4.0, 4.1], [5.0, 5.1]).verdict == "false"
    assert by_runs("c", "loss", [4.0], [5.0, 5.1]).verdict == "not measured"
    assert by_gaps("c", [0.1, 0.11], [0.5, 0.51]).verdict == "true"
    assert by_gaps("c", [0.5, 0.51], [0.1, 0.11]).verdict == "false"
    assert by_gaps("c", [-0.01, -0.02], [-0.03, -0.04]).verdict == "not measured"
    assert by_gaps("c", [], []).verdict == "not measured"


def test_every_verdict_follows_from_the_notebook(tmp_path):
    """A made-up notebook in which ALBERT is worse at everything, and one that is empty."""
    one = {"parts": {"layers": 10}, "checkpoint": 30, "optimizer": 20, "flops_per_token": 6.0}
    two = {"parts": {"layers": 20}, "checkpoint": 60, "optimizer": 40, "flops_per_token": 12.0}
    fits = {"fits": True, "peak": 2.0, "exchanged": {"all-reduce": {"number": 1, "bytes": 8}}}
    half = {"fits": True, "peak": 1.0, "exchanged": {"all-reduce": {"number": 1, "bytes": 4}}}
    runs = {"train": [[(1, 5.0), (2, 4.0)]] * 2, "valid": [[(1, 5.0), (2, 4.5)]] * 2}
    found = {
        "parameters": {"base": {"ALBERT": two, "BERT": one}},
        "chip v5e none ALBERT": {"largest": 1, "answers": {"1": fits}},
        "chip v5e none BERT": {"largest": 2, "answers": {"1": half, "2": half}},
        "latency": {"1 x 8": {"ALBERT": 2.0, "BERT": 1.0}, "4 x 8": {"ALBERT": 2.0, "BERT": 1.0}},
        "step": {"ALBERT": {"step": 2.0}, "BERT": {"step": 1.0}},
        "runs": {"ALBERT": runs, "BERT": runs},
        "inference": inference_of(2.0),
        "exits": {"sst2": exits_of([0.9, 0.5, 1.0])},
    }
    judged = every_claim(found, "base")
    assert {v.verdict for v in judged} == {"false"}
    assert len({v.claim for v in judged}) == len(judged) >= 12
    empty = every_claim({}, "base")
    assert {v.verdict for v in empty} == {"not measured"}
    assert [v.claim for v in empty] == [v.claim for v in judged]


def inference_of(ratio):
    """As benchmarks/inference.py prints it; `ratio`: of ours to BERT's."""

    def facts(by):
        timed = {shape: [by, 2 * by, 3 * by] for shape in ("1x16", "1x128", "8x128")}
        return {"file_bytes": 10 * by, "memory_bytes": 10 * by, **timed}

    forms = ("onnx", "onnx-int8")
    contenders = {f"bert-{name}": facts(1) for name in forms} | {n: facts(ratio) for n in forms}
    return {"where": "a phone", "threads": 1, "cores": 1, "contenders": contenders}


def exits_of(accuracies):
    """As tools/exits.py writes it, of three layers that take a millisecond each."""
    points = [
        {"exit": f"depth:{n}", "mean_depth": n, "figures": {"accuracy": each}}
        for n, each in enumerate(accuracies, 1)
    ]
    return {
        "where": "a phone",
        "points": points,
        "ms": [1.0, 2.0, 3.0],
        "ms_without_exits": 3.0,
        "threads": 1,
        "texts_timed": 7,
        "examples": 9,
    }


def test_claims_on_a_device(tmp_path):
    (tmp_path / "printed").write_text("jax: ready\n" + json.dumps(inference_of(0.5)) + "\n")
    (tmp_path / "exits_6.json").write_text(json.dumps(exits_of([0.7, 0.896, 0.9])))
    found = {
        "inference": measure.inference(tmp_path / "printed"),
        "exits": measure.exits([tmp_path / "exits_6.json"]),
    }
    judged = [v for v in every_claim(found, "base") if v.verdict != "not measured"]
    assert len(judged) == 7
    assert all(v.verdict == "true" for v in judged)
    assert "at 1x128 in ONNX Runtime, 1 threads: 0.500" in str(judged)
    # The second layer's answers are 0.4 points below the last's: two thirds of the time.
    assert f"{tmp_path.name} 0.67 (depth:2)" in judged[-1].number
    (tmp_path / "printed").write_text("jax: ready\n")
    with pytest.raises(ConfigError, match="printed is no output of inference"):
        measure.inference(tmp_path / "printed")
    (tmp_path / "exits_6.json").write_text("{}")
    with pytest.raises(ConfigError, match="was not written by tools/exits"):
        measure.exits([tmp_path / "exits_6.json"])


def test_a_notebook_measures_once(tmp_path):
    said = []
    path = tmp_path / "claims" / "measured.json"
    note = Notebook(path, {"rows": (8,)}, "here", said.append)
    assert note("x", lambda: {1: (2, 3)}) == {"1": [2, 3]}
    again = Notebook(path, {"rows": (8,)}, "there", said.append)
    assert again("x", lambda: pytest.fail("measured twice")) == {"1": [2, 3]}
    assert said == ["measuring x"]
    assert again.values["where"] == {"x": "here"}
    again.keep("x", [4])
    values = Notebook(path, {"rows": [8]}, "", said.append).values
    assert values == {"of": {"rows": [8]}, "where": {"x": "there"}, "x": [4]}
    with pytest.raises(ConfigError, match=r"measured\.json holds measurements of another rows"):
        Notebook(path, {"rows": [9]}, "", said.append)


def test_sizes():
    config = check(base.get_config(), needs_text=False)
    assert size_of(config) == "base"
    assert size_of(sized(config, "xlarge")) == "xlarge"
    assert size_of(resized(config, 8, 128, 20, hidden_size=96)) == "this config"
    bert = bert_of(config)
    backbone = sum(v for k, v in parameters_of(bert).items() if "head" not in k)
    assert round(backbone / 1e6, 1) == 109.1


def report(output, *arguments):
    return subprocess.run(
        [sys.executable, "tools/report.py", f"--output={output}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_page_of_what_needs_no_device(tmp_path, run):
    done = report(tmp_path, "--only=parameters", f"--albert_runs={run}", f"--bert_runs={run}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "claims.md").read_text()
    measured = json.loads((tmp_path / "claims/measured.json").read_text())
    albert, bert = (sum(measured["parameters"]["base"][n]["parts"].values()) for n in BOTH)
    assert albert == 11_813_810
    assert f"| fewer parameters | **true** | parameters, base: {albert / bert:.3f} of" in text
    assert "| faster training steps | **not measured** |" in text
    assert "needs two runs of each model" in text
    for name in ("parameters", "convergence"):
        assert (tmp_path / f"claims/{name}.png").read_bytes()[:4] == b"\x89PNG"
    # Once more without the runs, which may be gone.
    assert report(tmp_path, "--only=parameters").returncode == 0
    again = (tmp_path / "claims.md").read_text()
    assert again.partition("## Claims")[2] == text.partition("## Claims")[2]


@pytest.mark.slow
def test_what_cannot_be_reported_is_told(tmp_path):
    done = report(tmp_path, "--only=speed", "--albert_runs=nothing/*")
    assert done.returncode == 2
    for words in (
        "--only names 'speed'; there is parameters",
        "go together",
        "there is no run nothing/*",
    ):
        assert words in done.stderr


@pytest.mark.slow
def test_runs_that_do_not_compare_are_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "longer")
    values = json.loads((run / "config.json").read_text())
    values["config"]["train"]["num_steps"] = 16
    (tmp_path / "longer" / "config.json").write_text(json.dumps(values))
    (tmp_path / "none").mkdir()
    found = measure.run_problems(
        {"ALBERT": [run], "BERT": [tmp_path / "longer", tmp_path / "none"]}
    )
    assert len(found) == 3
    assert "longer is not finished: it has no eval_16.json" in found[0]
    assert "none is not a run" in found[1]
    assert "not of the same number of tokens" in found[2]
    assert measure.run_problems({"ALBERT": [run], "BERT": [run]}) == []


@pytest.mark.slow
def test_a_whole_page_at_a_tiny_size(tmp_path):
    done = report(
        tmp_path,
        "--config=configs/base.py:tiny",
        "--only=step,latency,depths",  # memory compiles two dozen steps; see the tests of its parts
        "--rows=2",
        "--length=16",
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "claims.md").read_text()
    measured = json.loads((tmp_path / "claims/measured.json").read_text())
    ratio = measured["step"]["ALBERT"]["step"] / measured["step"]["BERT"]["step"]
    assert f"seconds of a step of 2 rows of 16 tokens here: {ratio:.3f} of BERT's" in text
    assert (tmp_path / "claims/compile.png").is_file()
    assert "**An estimate, not a measurement**" in text


@pytest.mark.slow
def test_bytes_and_time_between_the_devices_here():
    config = check(laptop.get_config("tiny"), needs_text=False)
    found = measure.all_reduce(resized(config, 2, 16, 3, num_hidden_layers=2))
    for name, of in found.items():
        assert of["exchanged"]["all-reduce"]["bytes"] > 0, name
        assert of["seconds"] > 0
    assert found["BERT"]["exchanged"] != found["ALBERT"]["exchanged"]


@pytest.mark.slow
def test_this_machine_s_largest_batch_is_the_compiler_s(monkeypatch):
    """Against the memory of batches compiled one by one."""
    config = resized(check(laptop.get_config("tiny"), needs_text=False), 1, 16, 3)
    peaks = [
        memory(
            lower_step(
                resized(config, n, 16, 3, remat="none"), data_mesh(jax.devices()[:1])
            ).compile()
        )["peak"]
        for n in (4, 5)
    ]
    between = (peaks[0] + peaks[1]) // 2
    monkeypatch.setattr(
        "os.sysconf", lambda name: {"SC_PHYS_PAGES": between, "SC_PAGE_SIZE": 1}[name]
    )
    assert measure.largest_here(config, 16, 3, 4)["ALBERT"]["rows"] == 4


@pytest.mark.peers
@pytest.mark.filterwarnings("default")  # codecarbon warns, and swallows what is raised of it
def test_energy_of_a_run_by_codecarbon():
    """Twice the work is twice the energy, more or less; here without a meter, so by time."""
    pytest.importorskip("codecarbon")
    one = energy.kwh_per_run(lambda: time.sleep(0.1), seconds=4)
    two = energy.kwh_per_run(lambda: time.sleep(0.2), seconds=4)
    assert 0 < one < two < 4 * one


def test_no_meter_no_measurement(monkeypatch):
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert energy.meters() == []
    assert not energy.can_measure()


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_tpu_compiler_answers():
    config = check(laptop.get_config("tiny"), needs_text=False)
    answer = compile_for("v5e", dataclasses.asdict(config))
    assert answer["fits"]
    assert answer["exchanged"]["all-reduce"]["bytes"] > 0
