"""The programs that time steps: what is measured, kept, and told of mistakes."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks.pretraining import Pretraining
from albert.train.config import check
from benchmarks.products import products_of
from configs import base
from runs import ROOT


def module_of(program):
    """A program as a module; its flags are taken away again, for others define the same ones."""
    before = {flags.FLAGS[name].name: flags.FLAGS[name] for name in flags.FLAGS}
    _forget_flags()
    module = importlib.import_module(f"benchmarks.{program}")
    _forget_flags()
    for name, flag in before.items():
        flags.FLAGS[name] = flag
    return module


def _forget_flags():
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)


gpu = module_of("gpu")
step_time = module_of("step_time")


def call(program, *arguments):
    command = [sys.executable, f"benchmarks/{program}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def time_steps(*arguments):
    return call("step_time", "--config=configs/base.py:tiny", "--repeats=5", *arguments)


def variants(*texts):
    return step_time.variants_of(list(texts), base.get_config("tiny"))


def test_a_variant_is_the_config_with_its_own_fields_and_environment():
    values = base.get_config("tiny")
    plain, other = step_time.variants_of(
        [
            "as it is:",
            "other: --config.model.remat=dots --config.optimizer.clip_norm=2 --noconfig.init_model "
            "XLA_FLAGS='--one=1 --two=2'",
        ],
        values,
    )
    assert plain == ("as it is", {**plain.config}, {})
    assert plain.config["model"]["remat"] == values.model.remat == "none"
    assert other.environment == {"XLA_FLAGS": "--one=1 --two=2"}
    changed = {**plain.config["model"], "remat": "dots"}
    assert other.config["model"] == changed
    assert other.config["optimizer"]["clip_norm"] == 2.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plain", "has no name"),
        (": --config.model.remat=dots", "has no name"),
        ("--config.model.remat=dots", "has no name"),
        ("x: --config.model.rematt=dots", "did you mean remat?"),
        ("x: --config.model.attention=flash", "flash"),
        ("x: --config.train.batch_size=two", "must be of type int"),
        ("x: remat=dots", "neither --config.FIELD=VALUE nor VARIABLE=VALUE"),
        ("x: 'dots", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_variant_is_a_sentence(text, told):
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")):
        variants(text)


def test_all_that_is_wrong_with_variants_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        variants("a: --config.model.rematt=1", "b", "c:", "c:")
    assert len(error.value.problems) == 3


def test_peers_are_named_by_what_they_do():
    assert step_time.peers_of(["cudnn-compiled-gathered"]) == ["cudnn-compiled-gathered"]
    for name in ("flash", "compiled", "sdpa-quick", ""):
        with pytest.raises(ConfigError, match="is no peer"):
            step_time.peers_of([name])


def test_padding_is_the_end_of_a_row_and_has_no_masks():
    values = base.get_config("tiny")
    batch = step_time.batch_of(check(values, needs_text=False), 0.75)
    assert (batch["attention_mask"].sum(1) == 16).all()
    assert not batch["input_ids"][:, 16:].any()
    masked = batch["mlm_weights"] > 0
    assert masked.any()
    assert (batch["mlm_positions"][masked] < 16).all()
    assert not batch["mlm_positions"][~masked].any()
    values.data.packing = 2
    packed = step_time.batch_of(check(values, needs_text=False), 0.75)
    assert packed["attention_mask"].all()
    assert packed["segment_ids"].max() == 2


ITEMS = [
    gpu.Item("cheap", 10, ("cheap.py",)),
    gpu.Item("dear", 500, ("dear.py",)),
    gpu.Item("step", 60, ("step.py",), rows=32),
]


def key(name):
    return gpu.key_of(name, "card", "commit", False)


def test_every_name_is_one_item_s_and_half_an_hour_holds_what_is_worth_most(tmp_path):
    for rehearse in (False, True):
        items = gpu.plan(rehearse, tmp_path)
        assert len({item.name for item in items}) == len(items)
        assert all(item.seconds <= 300 for item in items)
    items = gpu.plan(False, tmp_path)
    names = [item.name for item in gpu.within(items, gpu._USABLE * 1800)[0]]
    assert names[0] == "ceilings"
    assert {f"{size}, L 512" for size in gpu._DEPTHS} <= set(names)
    assert {"tests marked gpu", "base and Hugging Face", "base, levers"} <= set(names)
    assert sum(item.seconds for item in items if item.name in names) <= gpu._USABLE * 1800


def test_a_budget_takes_the_first_items_that_fit_and_names_the_others():
    fit, others = gpu.within(ITEMS, 100)
    assert [item.name for item in fit] == ["cheap", "step"]
    assert [item.name for item in others] == ["dear"]
    assert gpu.within(ITEMS, 0) == ([], ITEMS)
    assert gpu.within(ITEMS, 570) == (ITEMS, [])


def test_variants_of_the_plan_are_those_of_configs(tmp_path):
    for item in gpu.plan(False, tmp_path):
        texts = [a.removeprefix("--variant=") for a in item.command if a.startswith("--variant=")]
        configs = [a for a in item.command if a.startswith("--config=")]
        assert len(configs) == bool(texts)
        for argument in configs:
            name = argument.removeprefix("--config=configs/").removesuffix(".py")
            values = importlib.import_module(f"configs.{name}").get_config()
            found = step_time.variants_of(texts, values)
            unrolled = [v.config["model"]["scan_unroll"] for v in found if v.name == "unrolled"]
            assert unrolled in ([], [values.model.num_hidden_layers])


def test_what_has_a_result_of_this_card_and_commit_is_left_out():
    results = [{**key("cheap"), "rows": []}]
    assert gpu.left_to_do(ITEMS, results, key, False) == ITEMS[1:]
    for other in ({"card": "other"}, {"commit": "other"}, {"rehearsal": True}):
        assert gpu.left_to_do(ITEMS, [results[0] | other], key, False) == ITEMS


def test_failures_are_tried_again_only_if_asked_to():
    whole = [{**key("cheap"), "failed": "why"}]
    in_part = [{**key("cheap"), "rows": [{"what": "x"}, {"what": "y", "failed": "why"}]}]
    for results in (whole, in_part):
        assert gpu.left_to_do(ITEMS, results, key, False) == ITEMS[1:]
        assert gpu.left_to_do(ITEMS, results, key, True) == ITEMS
    skipped = [{**key("cheap"), "skipped": "no GPU"}]
    assert gpu.left_to_do(ITEMS, skipped, key, True) == ITEMS[1:]


def test_a_failure_is_kept_with_its_reason_until_it_is_measured(tmp_path):
    facts = {"command": "python cheap.py", "seconds": 1.0}
    results = [{**key("dear"), **facts, "rows": [{"what": "x", "GB/s": 7}]}]
    gpu.keep(tmp_path, results, {**key("cheap"), **facts, "failed": "no | room"}, key("cheap"))
    assert gpu.read_results(tmp_path / "results.json") == results
    assert len(results) == 2
    assert "failed: no | room" in (tmp_path / "results.md").read_text()
    gpu.keep(tmp_path, results, {**key("cheap"), **facts, "rows": [{"what": "y"}]}, key("cheap"))
    assert [one["name"] for one in results] == ["dear", "cheap"]
    assert "failed" not in (tmp_path / "results.md").read_text()


def test_items_are_chosen_by_name():
    assert gpu.chosen(ITEMS, []) == ITEMS
    assert gpu.chosen(ITEMS, ["dear"]) == ITEMS[1:2]
    with pytest.raises(RunError, match="no item 'quick'"):
        gpu.chosen(ITEMS, ["quick"])


def test_a_step_that_does_not_fit_is_tried_with_half_the_rows(monkeypatch, tmp_path):
    asked = []

    def run(command, *_):
        asked.append(command[-1])
        rows = int(command[-1].rpartition("=")[2])
        failed = {"failed": "XlaRuntimeError: RESOURCE_EXHAUSTED: 9 GB"}
        figures = {
            "step_seconds": 0.1,
            "fastest": 0.1,
            "slowest": 0.1,
            "tokens_per_second": 1.0,
            "real_tokens_per_second": 1.0,
            "mfu": 0.3,
        }
        variants = {"unrolled": failed if rows > 8 else figures}
        return {"devices": "1 x NVIDIA H200", "variants": variants, "peers": {"sdpa": failed}}

    monkeypatch.setattr(gpu, "run", run)
    item = gpu.Item("step", 60, ("step.py",), rows=32, size="base")
    outcome = gpu.measured(item, 60, tmp_path, {})
    assert [text.rpartition("=")[2] for text in asked] == ["32", "16", "8"]
    assert outcome["did_not_fit"] == [32, 16]
    ours, theirs = outcome["rows"]
    assert (ours["rows"], ours["MFU %"]) == (8, 30.0)
    assert ours["predicted MFU %"] == gpu.PREDICTED["unrolled"]["base"][1]
    assert "RESOURCE_EXHAUSTED" in theirs["failed"]


def test_a_process_that_fails_or_hangs_is_a_reason(tmp_path):
    log = tmp_path / "log.txt"
    # In a process without jax, as gpu.py is: it forks.
    code = f"""
import json, sys
from pathlib import Path
from benchmarks import gpu

def run(program, limit):
    return gpu.run([sys.executable, "-c", program], limit, Path({str(log)!r}), {{}})

print(json.dumps([
    run("print('{{\\"rows\\": []}}')", 60),
    run("import sys; print('{{}}'); sys.exit('no such card')", 60),
    run("import time; time.sleep(60)", 0.5),
]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    good, bad, late = json.loads(done.stdout)
    assert good == {"rows": []}
    assert bad["failed"] == "it left with 1 and said: no such card"
    assert late["timed_out"]
    assert "no such card" in log.read_text()


@pytest.mark.slow
def test_an_item_is_measured_kept_and_not_measured_again(tmp_path):
    names = "ceilings", "tests marked gpu"
    arguments = (f"--output={tmp_path}", "--rehearse", *(f"--item={name}" for name in names))
    first = call("gpu", *arguments)
    assert first.returncode == 0, first.stderr
    (ceilings, tests) = json.loads((tmp_path / "results.json").read_text())["results"]
    told = {head for row in ceilings["rows"] for head in row}
    assert {"GB/s", "TFLOP/s", "ms", "not here"} <= told
    assert "failed" not in told
    assert "need a GPU" in tests["skipped"]
    assert "Rehearsal" in (tmp_path / "results.md").read_text()
    again = call("gpu", *arguments)
    assert "2 of 2 items are there already" in again.stdout
    assert again.returncode == 0


def test_nothing_is_started_that_would_end_too_late(tmp_path):
    late = call("gpu", f"--output={tmp_path}", "--rehearse", "--minutes=0.5", "--budget=10")
    assert late.returncode == 75
    assert "No time was left for: ceilings" in late.stdout
    assert "--budget=10 leaves out" in late.stdout
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--budget=-1", "--output=x"), "is not a non-negative number"),
        ((), "--output must have a value"),
        (("--output=README.md",), "README.md, a file; name a folder"),
    ],
)
def test_mistakes_on_the_command_line_are_sentences(arguments, told):
    done = call("gpu", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_holds_no_results_is_left_alone(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    done = call("gpu", f"--output={tmp_path}", "--rehearse")
    assert done.returncode == 2
    assert "holds no results of this program" in done.stderr
    assert (tmp_path / "results.json").read_text() == "[]"


@pytest.mark.slow
def test_variants_are_measured_in_turn_and_told_in_one_line_of_json():
    done = time_steps(
        "--padding=0.5",
        "--variant=plain: --config.model.attention=xla",
        "--variant=packed: --config.data.packing=2",
        "--variant=refused: --config.model.attention=cudnn --config.model.dtype=bfloat16",
        "--variant=no such flag: XLA_FLAGS=--xla_no_such_flag=1",
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert {"command", "commit", "devices", "peak", "repeats", "padding"} <= facts.keys()
    plain, packed, refused, unknown = facts["variants"].values()
    for of in (plain, packed):
        assert 0 < of["fastest"] <= of["step_seconds"] <= of["slowest"]
        assert of["tokens_per_second"] == pytest.approx(16 * 64 / of["step_seconds"])
        assert of["mfu"] > 0
        assert of["memory_bytes"] > 0
        assert of["compile_seconds"] > 0
    assert plain["real_tokens_per_second"] == pytest.approx(plain["tokens_per_second"] / 2)
    assert packed["real_tokens_per_second"] == packed["tokens_per_second"]
    assert "only on NVIDIA's GPUs" in refused["failed"]
    assert "xla_no_such_flag" in unknown["failed"]


def test_products_are_those_whose_operations_are_counted():
    config = check(base.get_config("tiny"), needs_text=False)
    products = products_of(config)
    counted = config.train.batch_size * Pretraining.flops_per_row(config)
    # Pooler and the head's dense layer are left out.
    assert 0.9 * counted < sum(one.times * one.flops for one in products) <= counted
    a, b = np.ones(products[0].shapes[0]), np.ones(products[0].shapes[1])
    assert 2 * np.einsum(products[0].equation, a, b).sum() == products[0].flops


@pytest.mark.slow
def test_each_product_is_timed_and_every_step_s_page_faults():
    done = time_steps("--products")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert len(facts["products"]) == len(products_of(check(base.get_config("tiny"), False)))
    assert all(of["xla"] > 0 for of in facts["products"])
    assert "All products of a step in XLA" in done.stdout
    (of,) = facts["variants"].values()
    assert of["page_faults"] >= 0
    assert of["user_seconds"] > 0


@pytest.mark.slow
def test_where_nothing_can_be_measured_a_sentence_says_why():
    done = time_steps("--variant=x: --config.model.attention=cudnn --config.model.dtype=bfloat16")
    assert done.returncode == 2
    assert "Nothing was measured. x: ConfigError: model.attention is 'cudnn'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_trace_is_written(tmp_path):
    assert time_steps(f"--trace={tmp_path / 'trace'}").returncode == 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.peers
def test_peers_are_measured_and_those_that_fail_say_why():
    done = time_steps("--peers=sdpa-gathered,eager,cudnn", "--padding=0.25")
    facts = json.loads(done.stdout.splitlines()[-1])
    gathered, eager, cudnn = facts["peers"].values()
    assert gathered["real_tokens"] == eager["real_tokens"] == 16 * 48
    assert "needs a GPU" in cudnn["failed"]
    assert facts["best_peer"] == "huggingface eager"
    assert facts["best_gathered_peer"] == "huggingface sdpa-gathered"
    ours = facts["variants"]["albert"]["real_tokens_per_second"]
    assert facts["ratio_to_peer"] == ours / eager["real_tokens_per_second"]
