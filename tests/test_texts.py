"""Fine-tuning on labelled texts: learning, resuming, loading, and everything that data gets
wrong."""

import contextlib
import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.core import meta
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import albert
from albert.checkpoints.store import Checkpoints
from albert.data.labelled.rows import LabelledRows
from albert.data.labelled.sequences import make_sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import VocabularyError
from albert.interop import formats
from albert.models.encoder import init_params
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.tasks.classification import OwnTexts
from albert.tasks.glue import Glue, GlueConfig
from albert.tasks.texts import Example
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_model, evaluate_run
from albert.train.loop import train
from configs.finetune import glue as glue_config
from configs.finetune import texts as texts_config
from exports import tuned
from faults import killed_at
from finetuning import check_devices
from runs import ROOT, assert_bit_equal, final_params, records
from steps import loss_and_metrics
from texts import _WORDS

COLORS = ("green", "red")


def write_reviews(path, count=160, seed=0, label=lambda good, names: COLORS[good]):
    """Made-up texts of two kinds of words; which kind is the label."""
    rng = np.random.default_rng(seed)
    halves = _WORDS[::2], _WORDS[1::2]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "text", "label"])
        for number in range(count):
            good = int(rng.integers(2))
            words = rng.choice(halves[good], rng.integers(3, 9)).tolist()
            writer.writerow([number, f'{" ".join(words)}, "so"', label(good, words)])
    return path


def read_reviews(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def finetuned_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuned")


@pytest.fixture
def own(run, finetuned_folder, tmp_path):
    """A config that fine-tunes the tiny run on made-up reviews; change it, then `check` it."""
    reviews = finetuned_folder / "reviews.csv"
    if not reviews.exists():
        write_reviews(reviews)
    config = texts_config.get_config("tiny")
    config.init_from = str(run)
    config.data.train = (str(reviews),)
    config.data.id = "number"
    config.data.folder = str(tmp_path / "prepared")
    config.data.seq_length = 32
    config.data.workers = 0
    config.optimizer.name = "optax.adamw"
    config.optimizer.learning_rate = 1e-2
    config.train.num_steps = 40
    return config


@pytest.fixture
def finetuned(own, finetuned_folder, capsys):
    """A run that has learned what the reviews are; made once, to be read only."""
    folder = finetuned_folder / "run"
    if not folder.exists():
        seen = {}
        train(check(own), folder, on_evaluation=lambda step, _, f: seen.update({step: f}))
        (finetuned_folder / "printed.txt").write_text(capsys.readouterr().out)
        (finetuned_folder / "seen.json").write_text(json.dumps(seen))
    return folder


def test_it_learns(finetuned, finetuned_folder):
    printed = (finetuned_folder / "printed.txt").read_text()
    assert "Initialised anew, 2 tensors: classifier_head." in printed
    assert "Of no use here and left out: mlm_head, sop_head." in printed
    assert "144 training examples: green " in printed
    figures = records(finetuned, "dev")[-1]
    assert figures["accuracy"] > figures["majority"] + 0.1
    assert {"loss", "f1_macro", "matthews", "calibration_error"} < figures.keys()


def test_a_run_that_was_killed_ends_bit_equal(own, finetuned, tmp_path, capsys):
    with pytest.raises(MemoryError):
        train(check(own), tmp_path / "run", watch=killed_at("log", 35))
    train(check(own), tmp_path / "run")
    assert "Resuming from the checkpoint of step 30" in capsys.readouterr().out
    assert_bit_equal(final_params(tmp_path / "run", 40), final_params(finetuned, 40))
    assert records(tmp_path / "run", "dev") == records(finetuned, "dev")


def test_a_finished_run_says_what_it_came_to(own, finetuned):
    figures = train(check(own), finetuned).figures["dev"]
    assert figures == {name: records(finetuned, "dev")[-1][name] for name in figures}


@pytest.mark.slow
def test_a_run_of_epochs_is_killed_resumed_finished_and_lengthened(own, tmp_path, capsys):
    own.train.epochs, own.optimizer.warmup_steps = 2.0, 10  # a quarter of 40 steps
    own.train.checkpoint_every = 5
    with pytest.raises(MemoryError):
        train(check(own), tmp_path / "run", watch=killed_at("log", 12))
    done = train(check(own), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "then steps 11 to 18: 2 epochs of 144 rows, with 4 steps of warm-up." in printed
    assert done.step == 18  # of 16 rows, of 144 twice
    train(check(own), tmp_path / "again")
    assert_bit_equal(final_params(tmp_path / "run", 18), final_params(tmp_path / "again", 18))
    capsys.readouterr()
    train(check(own), tmp_path / "run")
    assert "is finished: it has a checkpoint of step 18 of 18. Raise train.epochs or" in (
        capsys.readouterr().out
    )
    own.train.epochs = 3.0
    assert train(check(own), tmp_path / "run").step == 27
    assert "train.epochs: 2.0 -> 3.0" in capsys.readouterr().out


def test_the_best_is_told_at_the_end(finetuned, finetuned_folder):
    seen = json.loads((finetuned_folder / "seen.json").read_text())
    best = json.loads((finetuned / "eval_best.json").read_text())
    assert best.pop("examples") == []
    assert seen[str(best.pop("step"))] == best
    assert best["accuracy"] == max(figures["accuracy"] for figures in seen.values())
    printed = (finetuned_folder / "printed.txt").read_text()
    assert printed.index("dev at step 40") < printed.index(", the best\n")


def test_it_is_loaded_asked_and_saved(finetuned, finetuned_folder, tmp_path):
    model = albert.load(finetuned)
    assert model.labels == COLORS
    assert model.missing == ["mlm_head", "sop_head"]
    rows = read_reviews(finetuned_folder / "reviews.csv")
    found = model.classify([row["text"] for row in rows])
    right = np.mean([a.label == row["label"] for a, row in zip(found, rows, strict=True)])
    assert right > 0.6
    one = model.classify(rows[0]["text"])
    assert one.label == found[0].label == max(one.probabilities, key=one.probabilities.get)
    assert sum(one.probabilities.values()) == pytest.approx(1)
    for name, share in one.probabilities.items():
        assert share == pytest.approx(found[0].probabilities[name], abs=1e-5)
    for form in ("albert", "huggingface"):
        model.save(tmp_path / form, form)
        again = albert.load(tmp_path / form)
        assert again.labels == COLORS
        assert again.classify(rows[0]["text"]) == one
    assert_bit_equal(albert.load(tmp_path / "albert").params, model.params)


def test_the_best_checkpoint_is_what_is_loaded_and_evaluated(
    finetuned, finetuned_folder, tmp_path, capsys
):
    seen = json.loads((finetuned_folder / "seen.json").read_text())
    best = int(max(seen, key=lambda step: (seen[step]["accuracy"], -int(step))))
    model = albert.load(finetuned)
    assert model.step == best
    run = tmp_path / "run"
    shutil.copytree(finetuned, run)
    new = write_reviews(tmp_path / "new.csv", 5, seed=1)
    evaluate_run(run, None, Options(data={"predict": (str(new),)}))
    assert f"dev at step {best}" in capsys.readouterr().out
    (written,) = run.glob(f"eval_{best}_*.json")
    figures = json.loads(written.read_text())
    assert figures == {"step": best, **seen[str(best)], "examples": []}
    (table,) = run.glob(f"predictions_{best}_*/0_new.tsv")
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["id", "prediction", *COLORS]
    assert [line[0] for line in lines[1:]] == list("01234")
    for line, row in zip(lines[1:], read_reviews(new), strict=True):
        assert line[1] == model.classify(row["text"]).label
    evaluate_run(run, "best", Options())
    names = "reliability", "confusion", "scores", "figures", "loss"
    for name in names:
        picture = (run / f"pictures_{best}" / f"dev_{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    shown = {
        value.tag: list(value.tensor.string_val)[:2]
        for file in (run / "tensorboard" / "eval").glob("events*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    assert {f"dev_{name}" for name in names} < shown.keys()
    assert shown["dev_loss"] == [b"660", b"550"]
    evaluate_run(run, "latest", Options())
    assert "dev at step 40" in capsys.readouterr().out
    (run / "tokenizer.model").unlink()
    with pytest.raises(VocabularyError, match=r"folder has no tokenizer\.model: copy it there"):
        evaluate_run(run, None, Options())


def test_of_equal_checkpoints_the_earliest_is_the_best(tmp_path):
    params = {"x": np.zeros(2, np.float32)}
    with contextlib.closing(Checkpoints(tmp_path / "c", 1, 1, create=True)) as checkpoints:
        for step, loss in ((1, -0.5), (2, -0.75), (3, -0.75), (4, -0.75), (5, -0.25)):
            checkpoints.save(step, params, None, {}, loss)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.from_the_best() == [2, 5]


@pytest.mark.slow
def test_a_number_and_several_labels(own, tmp_path, capsys):
    own.train.num_steps = own.train.checkpoint_every = 10
    write_reviews(tmp_path / "number.csv", label=lambda good, words: 2.5 * good + len(words) / 10)
    own.data.train, own.data.kind = (str(tmp_path / "number.csv"),), "number"
    figures = train(check(own), tmp_path / "number").figures["dev"]
    assert figures.keys() == {"loss", "pearson", "spearman"}
    found = albert.load(tmp_path / "number").classify("the river")
    assert isinstance(found.label, float)
    assert found.probabilities == {}
    albert.load(tmp_path / "number").save(tmp_path / "hf", "huggingface")
    assert albert.load(tmp_path / "hf").classify("the river") == found

    write_reviews(
        tmp_path / "several.csv",
        label=lambda good, words: "|".join(["long"] * (len(words) > 5) + [COLORS[good]] * good),
    )
    own.data.train, own.data.kind = (str(tmp_path / "several.csv"),), "several"
    own.data.separator = "|"
    figures = train(check(own), tmp_path / "several").figures["dev"]
    assert figures.keys() == {"loss", "f1_micro", "f1_macro", "accuracy"}
    found = albert.load(tmp_path / "several").classify(["the river", "a small bright winter"])
    for each in found:
        assert each.probabilities.keys() == {"long", "red"}
        assert each.label == [n for n, p in each.probabilities.items() if p > 0.5]


def test_balanced_classes_weigh_the_same(own, tmp_path):
    rare = write_reviews(tmp_path / "r.csv", label=lambda good, words: COLORS[len(words) == 3])
    own.data.train = (str(rare),)
    own.data.class_weights = "balanced"
    data = OwnTexts.read(check(own), training=True)
    counts = [sum(e.label == name for e in data.train) for name in COLORS]
    np.testing.assert_allclose(np.multiply(counts, data.class_weights), len(data.train) / 2)


def test_batches_are_as_long_as_their_longest_row_and_orders_are_whole(tokenizer):
    texts = ["a " * (1 + number % 40) for number in range(64)]
    sequences = make_sequences([(text, None) for text in texts], tokenizer, 64)
    labels = np.arange(64)
    rows = LabelledRows(sequences, {"labels": labels}, 64, seed=3)
    seen = []
    for first in range(0, 128, 8):
        whole = list(range(first, first + 8))
        batch = rows.batch(whole)
        lengths = sequences.lengths[batch["labels"]]
        length = batch["input_ids"].shape[1]
        assert lengths.max() <= length < max(2 * lengths.max(), 17)
        np.testing.assert_array_equal(batch["attention_mask"].sum(1), lengths)
        halves = [rows.batch(part, whole) for part in (whole[:4], whole[4:])]
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([h[name] for h in halves]), value)
        seen += batch["labels"].tolist()
    assert sorted(seen[:64]) == sorted(seen[64:]) == labels.tolist()
    assert seen[:64] != seen[64:]
    padded = rows.batch([0, -1])
    assert padded["attention_mask"][1].sum() == 1
    assert padded["labels"][1] == 0


def test_parts_add_up_and_padding_changes_nothing(own, tmp_path, run):
    config = check(own)
    config = dataclasses.replace(config, model=albert.load(run).config)
    data = OwnTexts.read(config, training=True)
    task = OwnTexts(config, data, albert.load(run).tokenizer, training=True)

    params = meta.unbox(jax.jit(lambda: init_params(task.model, jax.random.key(0)))())
    loss_of = jax.jit(lambda params, batch: loss_and_metrics(task, params, batch)[0])
    sums_of = jax.jit(lambda params, batch: task.sums(params, batch, None))
    batch = task.rows.batch(range(8))
    loss = loss_of(params, batch)
    denominators = task.denominators(batch)
    parts = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
    in_parts = sum(task.loss(sums_of(params, part), denominators) for part in parts)
    np.testing.assert_allclose(in_parts, loss, rtol=1e-6)
    longer = {
        k: np.pad(v, [(0, 0), (0, 32 - v.shape[1])]) if v.ndim == 2 else v for k, v in batch.items()
    }
    np.testing.assert_allclose(loss_of(params, longer), loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "number,text\n1,x\n", ["line 2: there is no column 'label'", "'number', 'text'"]),
        ("a.csv", "text,label\nx,a,b\n", ["line 2: 3 cells, and line 1 names 2 columns"]),
        ("a.csv", 'text,label\n"x,a\n', ["line 2: not CSV"]),
        ("a.csv", "text,label\nx,\n", ["line 2, column label: the label is ''"]),
        ("a.csv", "text,label\n ,a\n", ["line 2, column text: the text is empty"]),
        ("a.csv", "text,text\nx,a\n", ["two columns are called 'text'"]),
        ("a.tsv", "text\tlabel\nx\ta\ty\n", ["line 2: 3 cells"]),
        ("a.tsv", "text\tlabel\n", ["holds no records"]),
        ("a.jsonl", '{"text": "x", "label": 1}\n[1]\n', ["line 2: a list, not an object"]),
        ("a.jsonl", '{"text": "x", "label"\n', ["line 1: not JSON"]),
        ("a.jsonl", '{"text": "hi \\ud83d", "label": 1}\n', ["line 1, field 'text': half a surr"]),
        ("a.jsonl", "[" * 100_000, ["line 1: not JSON"]),
        ("a.jsonl", '{"text": 3, "label": 1}\n', ["line 1, column text: 3 is of type int"]),
        ("a.jsonl", '{"text": "x", "label": null}\n', ["column label: the label is None"]),
        ("a.jsonl", '{"text": "\udcff", "label": 1}\n', ["line 1: not UTF-8"]),
        ("a.parquet", "PAR1", ["is not Parquet, or is damaged"]),
    ],
)
def test_records_that_are_wrong_are_named(own, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    own.data.train, own.data.id = (str(path),), ""
    with pytest.raises(SourceError) as told:
        OwnTexts.read(check(own), training=True)
    for each in [*words, str(path)]:
        assert each in str(told.value)


def test_a_cell_may_be_as_long_as_a_book(own, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "word " * 60_000 + ",a\nx,b\n")
    own.data.train, own.data.id = (str(tmp_path / "a.csv"),), ""
    own.data.dev = own.data.train
    found = OwnTexts.read(check(own), training=True)
    assert [len(example.text) for example in found.train] == [300_000, 1]


def test_a_run_is_not_judged_on_what_it_has_learned(own, finetuned, finetuned_folder, tmp_path):
    """Which examples are held out depends on how many there are."""
    rows = (finetuned_folder / "reviews.csv").read_text().splitlines(keepends=True)
    (tmp_path / "reviews.csv").write_text("".join([*rows, rows[-1]]))
    config = check(own)
    info = Checkpoints(finetuned / "checkpoints").info(40)
    task = OwnTexts.to_evaluate(config, albert.load(finetuned).tokenizer, info)
    assert len(task.evaluations) == 1
    own.data.train = (str(tmp_path / "reviews.csv"),)
    with pytest.raises(SourceError, match=r"data\.train, which has changed since the run began"):
        OwnTexts.to_evaluate(check(own), task.tokenizer, info)
    own.data.dev = own.data.train  # as somebody says
    assert OwnTexts.to_evaluate(check(own), task.tokenizer, info).evaluations


def test_a_model_is_judged_on_as_many_labels_as_it_has(own, tokenizer, tmp_path):
    fields = {"labels": 3, "dropout": 0.0}
    weights = tuned({"classifier": fields}, vocab_size=tokenizer.vocab_size)
    weights.tokenizer = tokenizer
    formats.write(weights, tmp_path / "m", "huggingface")
    assert albert.inference.Pretrained(tuned({})).label_names == []
    own.init_from = ""
    own.data.dev = own.data.train
    with pytest.raises(SourceError, match=r"3 outputs .* have 2 labels \(green, red\): it was not"):
        evaluate_model(tmp_path / "m", check(own, needs_text=False), Options())


def test_labels_that_are_wrong_are_named(own, tmp_path):
    def read(text, **fields):
        (tmp_path / "train.jsonl").write_text('{"text": "x", "label": "a"}\n' * 5)
        (tmp_path / "dev.jsonl").write_text(text)
        own.data.train = (str(tmp_path / "train.jsonl"),)
        own.data.dev, own.data.id = (str(tmp_path / "dev.jsonl"),), ""
        own.data.update(fields)
        return OwnTexts.read(check(own), training=True)

    with pytest.raises(SourceError, match="labels that the training examples lack: 'b'; there is"):
        read('{"text": "x", "label": "b"}\n')
    with pytest.raises(SourceError, match="line 1, column label: the label is 'a'; kind number"):
        read('{"text": "x", "label": 1}\n', kind="number")


def test_whole_numbers_are_in_their_order_and_one_class_is_told(own, tmp_path, capsys):
    path = tmp_path / "stars.tsv"
    path.write_text("text\tlabel\n" + "".join(f"x {n}\t{n}\n" for n in (10, 9, 1, 10)))
    own.data.train, own.data.id = (str(path),), ""
    own.data.dev = own.data.train
    assert OwnTexts.read(check(own), training=True).labels == ("1", "9", "10")
    path.write_text("text\tlabel\n" + "".join(f"x\t{n}\n" for n in ("2", "1", "01", "-3")))
    assert OwnTexts.read(check(own), training=True).labels == ("-3", "01", "1", "2")
    path.write_text("text\tlabel\nx\t--1\nx\t1\n")
    assert OwnTexts.read(check(own), training=True).labels == ("--1", "1")
    path.write_text("text\tlabel\nx\t1\ny\t1\n")
    OwnTexts.read(check(own), training=True)
    assert "All held-out examples are of the class '1'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"train": ()}, "data.train is empty"),
        ({"train": ("x.xml",)}, "must end in .tsv, .csv, .jsonl, .parquet, or be tfds:NAME:SPLIT"),
        ({"train": ("nowhere.csv",)}, "data.train: nowhere.csv is not a file"),
        ({"kind": "order"}, "data.kind is 'order'; it must be one of classes, number, several"),
        ({"metric": "pearson"}, "data.metric is 'pearson'; of kind classes it must be one of"),
        ({"kind": "number", "class_weights": "balanced"}, "class_weights is balanced and kind"),
        ({"dev_fraction": 0.0}, "data.dev is empty and dev_fraction 0.0"),
        ({"seq_length": 3}, "data.seq_length is 3"),
        ({"dropout": 1.0}, "data.dropout is 1.0"),
    ],
)
def test_fields_that_cannot_be_used_are_told(own, fields, words):
    own.data.update(fields)
    with pytest.raises(ConfigError) as told:
        check(own)
    assert words in str(told.value)


def test_nothing_to_start_from_is_told(own, run):
    own.init_from = ""
    with pytest.raises(ConfigError) as told:
        check(own)
    assert "init_model is True and init_from is empty" in str(told.value)
    assert "name the pretrained model to start from" in str(told.value)
    check(own, needs_text=False)  # to evaluate another model by
    own.init_model, own.data.tokenizer = False, str(run / "tokenizer.model")
    check(own)  # from random weights, where that is asked for


def test_longer_rows_than_the_model_has_positions_are_refused(own, tmp_path):
    own.data.seq_length = 128
    with pytest.raises(ConfigError, match=r"data\.seq_length is 128 .* has 64 positions"):
        train(check(own), tmp_path / "run")


def test_a_head_for_other_labels_is_left_out_and_one_for_the_same_is_taken(own, finetuned):
    start = formats.read(finetuned)
    task = OwnTexts.__new__(OwnTexts)
    task.labels, task.kind = COLORS, "classes"
    assert task.left_out(start) == ()
    task.kind = "several"
    assert task.left_out(start) == ("classifier_head",)
    task.kind = "classes"
    task.labels = ("green", "red", "white")
    assert task.left_out(start) == ("classifier_head",)


@pytest.mark.slow
def test_a_run_starts_from_another_tasks(own, finetuned, tmp_path, capsys):
    own.init_from, own.train.num_steps = str(finetuned), 5
    train(check(own), tmp_path / "same")
    assert "Initialised anew" not in capsys.readouterr().out
    other = write_reviews(tmp_path / "o.csv", label=lambda good, words: "abc"[len(words) % 3])
    own.data.train = (str(other),)
    train(check(own), tmp_path / "other")
    printed = capsys.readouterr().out
    assert "Initialised anew, 2 tensors: classifier_head." in printed
    assert "Of no use here and left out: classifier_head." in printed
    assert albert.load(tmp_path / "other").labels == ("a", "b", "c")


def test_a_run_is_not_resumed_on_other_data(own, finetuned, tmp_path):
    own.data.train, own.train.num_steps = (str(write_reviews(tmp_path / "o.csv", seed=7)),), 50
    with pytest.raises(RunError, match="digest of the training examples"):
        train(check(own), finetuned)


def test_rows_are_made_once_and_anew_for_another_length(own, tokenizer, run, tmp_path):
    def make():
        config = dataclasses.replace(check(own), model=albert.load(run).config)
        OwnTexts(config, OwnTexts.read(config, training=True), tokenizer, training=True)
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("ids.npy")}

    made = make()
    assert len(made) == 2  # of training and held-out examples
    assert make() == made
    own.data.seq_length = 16
    assert len(make()) == 4


def test_many_texts_are_encoded_by_several_processes(tokenizer, monkeypatch):
    monkeypatch.setattr("albert.data.labelled.sequences._ALONE", 10)
    monkeypatch.setattr("albert.data.labelled.sequences._CHUNK", 7)
    pairs = [(f"the river {n}", f"a letter {n}" if n % 2 else None) for n in range(50)]
    alone, together = (make_sequences(pairs, tokenizer, 16, workers) for workers in (0, 2))
    for field in dataclasses.fields(alone):
        np.testing.assert_array_equal(getattr(alone, field.name), getattr(together, field.name))


def test_texts_that_cannot_be_classified_are_told(finetuned):
    model = albert.load(finetuned)
    with pytest.warns(UserWarning, match="1 of 2 texts are cut to the model's 64 positions"):
        model.classify(["the river " * 50, "short"])
    assert model.classify([]) == []
    with pytest.raises(ValueError, match="There are 1 texts and 2 pairs"):
        model.classify("a", ["b", "c"])
    with pytest.raises(ValueError, match=r"text 0 .* must be a str"):
        model.classify([3])


@pytest.mark.parametrize("kind", ["number", "choice"])
def test_a_model_is_asked_what_it_was_trained_for(kind, tokenizer):
    """One output is a number, or how right an option is: the other's question gives nonsense."""
    heads = {"classifier": {"labels": 1, "dropout": 0.0, "kind": kind}}
    weights = tuned(heads, vocab_size=tokenizer.vocab_size)
    weights.tokenizer = tokenizer
    model = albert.inference.Pretrained(weights)
    if kind == "number":
        assert model.abilities == ("encode", "classify")
        assert isinstance(model.classify("the river").label, float)
        with pytest.raises(ValueError, match="was not fine-tuned to choose"):
            model.choose("the river", "what", ["a", "b"])
    else:
        assert model.abilities == ("encode", "choose")
        assert model.choose("the river", "what", ["a", "b"]).option in "ab"
        with pytest.raises(ValueError, match="which of several options is right: ask `choose`"):
            model.classify("the river")


def test_a_model_that_labels_no_texts_is_told_by_the_program(tokenizer, tmp_path):
    fields = {"labels": 2, "dropout": 0.0}
    choosing = {"classifier": {**fields, "labels": 1, "kind": "choice"}}
    for name, heads in (("choice", choosing), ("bare", {"classifier": fields})):
        weights = tuned(heads, COLORS[: 2 * (name == "bare")], vocab_size=tokenizer.vocab_size)
        weights.tokenizer = tokenizer if name == "choice" else None
        formats.write(weights, tmp_path / name, "albert")
    new = write_reviews(tmp_path / "new.csv", 3)
    command = [sys.executable, "tools/predict.py", f"--input={new}", f"--output={tmp_path}/o.tsv"]
    for name, words in (
        ("choice", "has no classifier of texts, it can encode, choose; fine-tune it first"),
        ("bare", "there is no vocabulary beside"),
    ):
        done = run_program([*command, f"--model={tmp_path / name}"])
        assert done.returncode == 2
        assert words in done.stderr
    given = f"--tokenizer={tokenizer.path}"
    assert run_program([*command, f"--model={tmp_path / 'bare'}", given]).returncode == 0


@pytest.mark.slow
def test_a_file_of_texts_is_labelled(finetuned, tmp_path):
    new = write_reviews(tmp_path / "new.csv", 30, seed=3)
    out = tmp_path / "out.tsv"
    command = [
        sys.executable,
        "tools/predict.py",
        f"--model={finetuned}",
        f"--output={out}",
        "--id=number",
        "--batch_size=4",
    ]
    done = run_program([*command, f"--input={new}"])
    assert done.returncode == 0, done.stderr
    assert f"30 texts are labelled in {out}." in done.stdout
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert lines[0] == ["id", "prediction", *COLORS]
    expected = albert.load(finetuned).classify([row["text"] for row in read_reviews(new)])
    assert [line[1] for line in lines[1:]] == [each.label for each in expected]
    for given, words in (
        (f"--input={new}", "is there already; choose another name"),
        ("--input=nowhere.csv", "nowhere.csv is not a file"),
    ):
        done = run_program([*command, given])
        assert done.returncode == 2
        assert words in done.stderr
    out.unlink()
    (tmp_path / "bad.csv").write_text("number,text\n1,x\n2,\n")
    done = run_program([*command, f"--input={tmp_path / 'bad.csv'}"])
    assert done.returncode == 2
    assert "bad.csv, line 3, column text: the text is empty" in done.stderr
    left = {path.name for path in tmp_path.iterdir()} - {
        "prepared"
    }  # of the run, where it is made here
    assert left == {"new.csv", "bad.csv"}


def run_program(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_model_of_another_task_is_not_evaluated(finetuned, run, own):
    config = check(own)
    found = OwnTexts.evaluation_problems(config, formats.read(run))
    assert found == [
        "the model has no classifier, so there is nothing to evaluate: it was not fine-tuned on "
        "such a task"
    ]
    weights = formats.read(finetuned)
    assert OwnTexts.evaluation_problems(config, weights) == []
    config = dataclasses.replace(config, data=glue_data("mnli"))
    (told,) = Glue.evaluation_problems(config, weights)
    assert told == "the model's classifier has 2 outputs and the task needs 3"
    config = dataclasses.replace(config, data=glue_data("cola"))
    (told,) = Glue.evaluation_problems(config, weights)
    assert told == "the model's labels are green, red and the task's 0, 1"


def glue_data(name):
    values = glue_config.get_config(name).data.to_dict()
    return GlueConfig(**values)


def test_a_model_that_was_not_fine_tuned_says_so(run):
    with pytest.raises(ValueError, match="This model has no classifier: fine-tune it"):
        albert.load(run).classify("the river")


def test_every_config_of_glue_is_whole(run, tmp_path):
    (tmp_path / "task").mkdir()
    for name in glue_config.TABLE_14:
        for more in ("", ",v1", ",tiny"):
            config = glue_config.get_config(name + more)
            config.init_from, config.data.path = str(run), str(tmp_path / "task")
            assert check(config).data.name == name
    with pytest.raises(ValueError, match="names one task of cola, sts-b"):
        glue_config.get_config("squad")


@pytest.mark.slow
def test_any_devices_and_processes_fine_tune_alike(own, tmp_path):
    changes = {
        "init_from": own.init_from,
        "data.train": own.data.train,
        "data.folder": own.data.folder,
        "data.seq_length": 32,
        "data.workers": 0,
    }
    alone, *others = check_devices("configs/finetune/texts.py:tiny", changes, tmp_path)
    for workdir in others:
        for a, b in zip(records(workdir, "dev"), records(alone, "dev"), strict=True):
            assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.15)


def test_examples_have_the_fields_that_users_index():
    """`glue.read` promises tuples."""
    assert Example("a", "b", None, "c") == ("a", "b", None, "c")
