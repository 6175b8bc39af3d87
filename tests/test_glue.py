"""GLUE's files, features, training and figures, equal to those of the released program."""

import json
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.text import glue as tfds_glue

from albert.data.labelled.sequences import make_sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import Tokenizer
from albert.models.encoder import Albert
from albert.tasks import glue
from finetuning import ENCODER, FIELDS, GOLDEN, check_three_steps
from runs import ROOT

FOLDERS = {
    "cola": "CoLA",
    "sst-2": "SST-2",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "sts-b": "STS-B",
    "mnli": "MNLI",
    "mismnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "ax": "diagnostic",
}
EXAMPLES = json.loads((GOLDEN / "glue_own_text" / "examples.json").read_text())


@pytest.fixture(scope="module")
def released_tokenizer(shared):
    return Tokenizer(shared / "data" / "vocab" / "30k-clean.model")


def read_own(which: str):
    task, split = which.split("/")
    return glue.read(GOLDEN / "glue_own_text" / "files" / FOLDERS[task], task, split)


@pytest.mark.parametrize("which", EXAMPLES)
def test_files_are_read_as_the_released_program_reads_them(which):
    found, golden = read_own(which), EXAMPLES[which]["examples"]
    assert [each.id for each in found] == [each["guid"] for each in golden]
    labels = [each.label for each in found]
    if which.endswith("/test"):
        assert labels == [None] * len(golden)
    else:
        assert labels == [each["label"] for each in golden]


@pytest.mark.parametrize("which", EXAMPLES)
def test_features_are_the_released_programs(which, released_tokenizer):
    task = which.split("/")[0]
    with np.load(GOLDEN / "glue_own_text" / "features.npz") as golden:
        lengths = {int(n.split("/L")[1].split("/")[0]) for n in golden if n.startswith(f"{which}/")}
        assert lengths
        for length in lengths:
            ours = glue.features(read_own(which), task, released_tokenizer, length)
            for theirs, name in FIELDS.items():
                expected = golden[f"{which}/L{length}/{theirs}"]
                np.testing.assert_array_equal(ours[name], expected, err_msg=name)
                assert ours[name].dtype == np.int32
            if not which.endswith("/test"):
                expected = golden[f"{which}/L{length}/label_ids"]
                np.testing.assert_array_equal(ours["labels"], expected)
            elif task == "sts-b":
                assert np.isnan(ours["labels"]).all()
            else:
                assert (ours["labels"] == -1).all()


def test_features_of_real_files_are_the_released_programs(shared, released_tokenizer):
    path = shared / "golden" / "finetuning" / "glue_real" / "whole_files.json"
    golden = json.loads(path.read_text())
    assert len(golden) == 20
    for which, expected in golden.items():
        task, split = which.split("/")
        examples = glue.read(shared / "data" / "glue" / FOLDERS[task], task, split)
        ours = glue.features(examples, task, released_tokenizer, expected["max_seq_length"])
        names = {theirs: ours[name] for theirs, name in FIELDS.items()}
        if split != "test":
            names["label_ids"] = ours["labels"]
        assert len(examples) == expected["examples"]
        for name, array in names.items():
            little_endian = array.astype(array.dtype.newbyteorder("<"))
            assert zlib.crc32(little_endian.tobytes()) == expected["crc32"][name], (which, name)


class Letters:
    """A vocabulary of letters; what a text is cut to is seen at once."""

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text] for text in texts]


def test_pairs_are_cut_at_the_end_of_the_longer_text():
    def texts(a, b, length):
        rows = make_sequences([(a, b)], Letters(), length)
        return "".join(map(chr, rows.ids)).replace("\x02", "<").replace("\x03", "|"), rows.cut

    assert texts("abc", None, 8) == ("<abc|", 0)
    assert texts("abcdefgh", None, 8) == ("<abcdef|", 1)
    assert texts("abc", "", 8) == ("<abc|", 0)
    assert texts("abcd", "xy", 8) == ("<abc|xy|", 1)
    assert texts("abcd", "wxyz", 10) == ("<abcd|wxy|", 1)  # the second, where both are as long
    assert texts("abcd", "wxyz", 9) == ("<abc|wxy|", 1)
    assert texts("ab", "uvwxyz", 8) == ("<ab|uvw|", 1)


def glue_task(name: str) -> glue.Glue:
    """The pure functions of a task."""
    labels = glue.TASKS[name].labels
    task = glue.Glue.__new__(glue.Glue)
    task.labels, task.kind = labels, "classes" if labels else "number"
    fields = {"labels": len(labels) or 1, "dropout": 0.0}
    task.model = Albert(ENCODER, ("classifier",), {"classifier": fields})
    return task


@pytest.mark.parametrize("name", ["cola", "mnli", "sts-b"])
def test_three_steps_are_the_released_programs(name):
    task = glue_task(name)
    logits, arrays = check_three_steps(task, "glue", name)
    losses, _ = task._terms(logits, arrays["in/label_ids"])
    np.testing.assert_allclose(losses, arrays["out/per_example_loss"], atol=2e-5, rtol=2e-5)


CASES = json.loads((GOLDEN / "metrics" / "glue.json").read_text())


@pytest.mark.parametrize("case", CASES["classification"], ids=lambda case: case["case"])
def test_figures_of_classes(case):
    found = glue.metrics("mrpc", case["labels"], case["predictions"])
    found |= glue.metrics("cola", case["labels"], case["predictions"])
    for name in ("accuracy", "f1", "matthews"):
        assert found[name] == pytest.approx(case[name], abs=1e-10), name


@pytest.mark.parametrize("case", CASES["regression"], ids=lambda case: case["case"])
def test_figures_of_numbers(case):
    found = glue.metrics("sts-b", case["labels"], case["predictions"])
    for name in ("pearson", "spearman"):
        if case[name] is None:
            assert np.isnan(found[name])
        else:
            assert found[name] == pytest.approx(case[name], abs=1e-10), name


def test_the_score_is_the_mean_of_the_tasks_means():
    figures = {
        "cola": {"matthews": 0.6},
        "mrpc": {"accuracy": 0.8, "f1": 0.9},
        "mnli": {"accuracy": 0.84, "accuracy_mismatched": 0.82},
        "ax": {"matthews": 0.1},
    }
    assert glue.score(figures) == pytest.approx((0.6 + 0.85 + 0.83) / 3)


def test_an_undefined_correlation_counts_as_0():
    task = glue_task("sts-b")
    labels = np.array([0.0, 1.0, 5.0], np.float32)
    found = task._figures(labels, ("pearson", "spearman"), (), np.full((3, 1), 2.0, np.float32))
    assert found["pearson"] == found["spearman"] == 0.0
    assert found["loss"] == pytest.approx((4 + 1 + 9) / 3)


@pytest.mark.parametrize(
    ("task", "name", "text", "words"),
    [
        ("mrpc", "dev", "Quality\t#1\t#2\ta\tb\n1\t0\t0\tone\n", "line 2: 4 columns, and mrpc"),
        ("mrpc", "dev", "Quality\t#1\t#2\ta\tb\n2\t0\t0\tx\ty\n", "column 0: the label is '2'"),
        ("rte", "train", "index\ta\tb\tlabel\n0\tx\ty\n", "line 2: 3 columns, and rte needs 4"),
        ("rte", "train", "index\ta\tb\tlabel\n0\tx\ty\tneutral\n", "the label is 'neutral'"),
        ("sts-b", "dev", "\t".join("abcdefghij") + "\n" + "\t".join("0bcdefghix"), "not a number"),
        ("cola", "train", "", "holds no examples"),
        ("cola", "train", "gj04\t1\t\t\udcff", "line 1: not UTF-8"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, task, name, text, words):
    path = tmp_path / f"{name}.tsv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceError) as told:
        glue.read(tmp_path, task, name)
    assert words in str(told.value)
    assert str(path) in str(told.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"train\.tsv cannot be read"):
        glue.read(tmp_path, "mrpc", "train")
    with pytest.raises(ValueError, match="no task of GLUE; there is cola, sst-2"):
        glue.read(tmp_path, "squad", "train")
    with pytest.raises(ValueError, match="ax has no split 'train'"):
        glue.read(tmp_path, "ax", "train")
    assert glue.find("SST2") == "sst-2"


def glue_run(folder, task, figures, files):
    """What eval.py leaves of a run."""
    (folder / "predictions_7").mkdir(parents=True)
    config = {"task": "glue", "data": {"name": task}}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "eval_7.json").write_text(json.dumps(figures))
    for name in files:
        (folder / "predictions_7" / name).write_text("index\tprediction\n0\t1\n")
    return folder


def test_runs_are_put_together_for_the_server(tmp_path):
    glue_run(tmp_path / "a", "cola", {"matthews": 0.5, "loss": 1.0}, ["CoLA.tsv"])
    figures = {"accuracy": 0.8, "dev_mismatched/accuracy": 0.7}
    glue_run(tmp_path / "b", "mnli", figures, ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"])
    command = [sys.executable, "tools/glue.py", f"--runs={tmp_path}/*", f"--zip={tmp_path}/s.zip"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cola       71.4  matthews 50.0" in done.stdout
    assert "mnli       90.8  accuracy 80.0, accuracy_mismatched 70.0" in done.stdout
    assert "62.5 over 2 tasks" in done.stdout
    assert "GLUE's server wants these as well: MRPC.tsv" in done.stdout
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["CoLA.tsv", "AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"]
    without = glue_run(tmp_path / "d", "rte", {}, [])
    (without / "predictions_7").rmdir()
    (without / "eval_best.json").write_text('{"step": 5, "accuracy": 0.6}')
    three = [*command[:2], f"--runs={tmp_path}/[abd]"]
    done = subprocess.run(three, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rte        89.2  accuracy 60.0" in done.stdout
    done = subprocess.run([*three, command[-1]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "d has no predictions; first: python eval.py" in done.stderr
    (tmp_path / "c").mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "c is not the folder of a run" in done.stderr


TFDS_LABELS = {  # the first and the last class there, by our names
    "cola": ("0", "1"),
    "sst-2": ("0", "1"),
    "mrpc": ("0", "1"),
    "qqp": ("0", "1"),
    "sts-b": (0.0, 4.5),
    "mnli": ("entailment", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("0", "1"),
}


@pytest.mark.parametrize("task", TFDS_LABELS)
def test_a_task_is_read_from_tfds(task, tmp_path, monkeypatch):
    """Columns, classes and splits are those of TFDS's own builder; the examples are made up."""
    name = {"sst-2": "sst2", "sts-b": "stsb"}.get(task, task)
    builder = tfds_glue.Glue(config=name, data_dir=tmp_path, file_format="array_record")
    texts = [column for column in builder.info.features if column not in ("label", "idx")]
    classes = getattr(builder.info.features["label"], "num_classes", None)
    labels = (0, classes - 1) if classes else TFDS_LABELS[task]

    def examples(split):
        for number in range(2):
            label = -1 if split.startswith("test") else labels[number]
            record = {column: f"{split} {number}, {column}" for column in texts}
            yield number, {**record, "label": label, "idx": number}

    splits = ["train", "validation", "test"]
    if task == "mnli":
        splits = ["train", *(f"{s}_{of}" for s in splits[1:] for of in ("matched", "mismatched"))]
    monkeypatch.setattr(builder, "_split_generators", lambda _: {s: examples(s) for s in splits})
    builder.download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    for split in ["train", "dev", "test", *(["dev_mismatched"] if task == "mnli" else [])]:
        there = split.replace("dev", "validation")
        if task == "mnli" and split in ("dev", "test"):
            there += "_matched"
        found = sorted(glue.read(f"tfds:glue/{name}", task, split))
        for number, example in enumerate(found):
            expected = [f"{there} {number}, {column}" for column in texts]
            assert [text for text in example[1:3] if text is not None] == expected
            assert example.label == (None if split == "test" else TFDS_LABELS[task][number])
    other = "rte" if task != "rte" else "wnli"
    with pytest.raises(SourceError, match=f"and {other} is tfds:glue/{other} there"):
        glue.read(f"tfds:glue/{name}", other, "train")
