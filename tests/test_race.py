"""RACE's files, features and training, equal to those of the released program; and any other
multiple choice."""

import json
import zlib

import jax
import numpy as np
import pytest
from flax.core import meta

import albert
from albert.data.sources.base import SourceError
from albert.data.tokenizer import Tokenizer
from albert.models.encoder import Albert
from albert.runtime.fields import ConfigError
from albert.tasks import race
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from configs.finetune import race as race_config
from exports import assert_its_program_is_judged_alike
from finetuning import ENCODER, FIELDS, GOLDEN, check_three_steps

OWN = GOLDEN / "race_own_text"
LABELS = {"label_ids": "labels"}


@pytest.fixture(scope="module")
def released_tokenizer(shared):
    return Tokenizer(shared / "data" / "vocab" / "30k-clean.model")


def test_passages_are_read_as_the_released_program_reads_them():
    found = race.read(OWN / "passages.jsonl")
    golden = json.loads((OWN / "examples.json").read_text())
    assert [each.label for each in found] == [each["label"] for each in golden]
    for ours, theirs in zip(found, golden, strict=True):
        assert ours.id.startswith(theirs["example_id"])
        assert len(ours.options) == len(theirs["endings"])


def test_every_layout_gives_the_same_questions(tmp_path):
    expected = race.read(OWN / "passages.jsonl")
    passages = [json.loads(line) for line in (OWN / "passages.jsonl").read_text().splitlines()]
    for name in ("one", "lines"):
        for passage in passages:
            folder = tmp_path / name / "dev" / passage["level"]
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / (passage["id"] if name == "one" else "all.txt")
            with open(file, "a", encoding="utf-8") as out:
                out.write(json.dumps(passage) + "\n")
        assert race.read(tmp_path / name, "dev") == expected
        assert race.read(tmp_path / name / "dev") == expected
    (tmp_path / "dev.jsonl").write_text((OWN / "passages.jsonl").read_text())
    assert race.read(tmp_path, "dev") == expected


def test_features_are_the_released_programs(released_tokenizer):
    questions = race.read(OWN / "passages.jsonl")
    with np.load(OWN / "features.npz") as golden:
        for length, last in ((512, 128), (96, 24)):
            ours = race.features(questions, released_tokenizer, length, last)
            for theirs, name in (FIELDS | LABELS).items():
                expected = golden[f"L{length}_qa{last}/{theirs}"]
                np.testing.assert_array_equal(ours[name], expected, err_msg=name)


def test_features_of_the_real_dev_set_are_the_released_programs(shared, released_tokenizer):
    path = shared / "golden" / "finetuning" / "race_real" / "questions.json"
    golden = json.loads(path.read_text())["whole_dev"]
    questions = race.read(shared / "data" / "race", "dev")
    assert len(questions) == golden["questions"]
    levels = [question.level for question in questions]
    assert (levels.count("middle"), levels.count("high")) == (golden["middle"], golden["high"])
    ours = race.features(questions, released_tokenizer)
    for theirs, name in (FIELDS | LABELS).items():
        assert zlib.crc32(ours[name].astype("<i4").tobytes()) == golden["crc32"][theirs], name


def choice_task() -> race.MultipleChoice:
    """The pure functions of the task."""
    task = race.MultipleChoice.__new__(race.MultipleChoice)
    task.labels, task.kind = (), "choice"
    fields = {"labels": 1, "dropout": 0.0, "kind": "choice"}
    task.model = Albert(ENCODER, ("classifier",), {"classifier": fields})
    return task


def test_three_steps_are_the_released_programs():
    task = choice_task()
    logits, arrays = check_three_steps(task, "race", "race", options=np.full(4, 4, np.int32))
    np.testing.assert_allclose(jax.nn.softmax(logits), arrays["out/probabilities"], atol=2e-5)
    assert np.argmax(logits, -1).tolist() == arrays["out/predictions"].tolist()


def test_an_option_that_is_not_there_is_never_chosen():
    task = choice_task()
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 100, (2, 4, 10)).astype(np.int32)
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    params = meta.unbox(jax.jit(lambda: task.init(task.model, jax.random.key(0)))())
    logits = jax.jit(task._logits)
    all_there = logits(params, rows | {"options": np.array([4, 4])})
    some = logits(params, rows | {"options": np.array([4, 2])})
    np.testing.assert_array_equal(some[0], all_there[0])
    np.testing.assert_array_equal(some[1, :2], all_there[1, :2])
    assert (jax.nn.softmax(some)[1, 2:] == 0).all()


def test_accuracy_of_each_level():
    questions = [
        race.Question("a", "", "q", ("x", "y"), label, level)
        for label, level in ((0, "middle"), (1, "middle"), (1, "high"), (0, "high"), (1, "high"))
    ]
    found = race.accuracies(questions, [0, 0, 1, 0, 0])
    assert found == pytest.approx(
        {"accuracy": 3 / 5, "accuracy_middle": 1 / 2, "accuracy_high": 2 / 3}
    )
    assert race.accuracies([questions[0]._replace(level="")], [0]) == {"accuracy": 1.0}


PASSAGE = {"article": "a", "questions": ["q"], "options": [["x", "y"]], "answers": ["A"]}
OWN_QUESTION = {"context": "a", "question": "q", "options": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (PASSAGE | {"answers": ["C"]}, "question 0: answer is 'C' and there are 2 options"),
        (PASSAGE | {"answers": ["A", "B"]}, "are of different number"),
        (PASSAGE | {"options": None}, "there is no list 'options'"),
        (PASSAGE | {"questions": [3]}, "there is no text 'question'"),
        (PASSAGE | {"options": [["x"]]}, "there are 1 options; a choice needs two"),
        (OWN_QUESTION | {"answer": "z"}, "answer is 'z'; it must be a number from 0, a letter"),
        (OWN_QUESTION | {"options": "xy"}, "options is 'xy'; it must be a list of texts"),
        (OWN_QUESTION | {"context": None}, "there is no text 'context'"),
        (OWN_QUESTION | {"question": "", "options": ["", " "]}, "its options are empty"),
    ],
)
def test_questions_that_are_wrong_are_named(tmp_path, record, words):
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(SourceError) as told:
        race.read(tmp_path, "dev")
    assert words in str(told.value)
    assert f"{path}, line 1" in str(told.value)


def test_answers_may_be_written_in_three_ways(tmp_path):
    path = tmp_path / "own.jsonl"
    records = [OWN_QUESTION | {"answer": answer} for answer in (1, "B", "y", None)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [question.label for question in race.read(path)] == [1, 1, 1, None]
    with pytest.raises(SourceError, match="There is no"):
        race.read(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="has no folder middle or high"):
        race.read(tmp_path)


def write_questions(path, count, seed=0):
    """Made-up questions whose answer is the option that the context names; some have three."""
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            things = rng.permutation(["the river", "a letter", "the wheel", "a garden"]).tolist()
            options = things[: 3 + number % 2]
            answer = int(rng.integers(len(options)))
            record = {
                "context": f"The captain often carries {options[answer]}.",
                "question": "What does he carry? _" if number % 3 else "What does he carry?",
                "options": options,
                "answer": answer,
            }
            file.write(json.dumps(record) + "\n")
    return path


@pytest.mark.slow
def test_a_run_is_trained_evaluated_loaded_and_asked(run, tmp_path, capsys):
    config = race_config.get_config("tiny")
    config.init_from = str(run)
    config.data.train = str(write_questions(tmp_path / "train.jsonl", 64))
    config.data.dev = str(write_questions(tmp_path / "dev.jsonl", 20, seed=1))
    config.data.test = config.data.dev
    config.data.predict = (config.data.dev,)
    config.data.folder = str(tmp_path / "prepared")
    config.data.workers = 0
    config.train.num_steps, config.optimizer.warmup_steps = 10, 1
    figures = train(check(config), tmp_path / "run").figures["dev"]
    assert_its_program_is_judged_alike(tmp_path / "run", tmp_path / "onnx")
    assert figures.keys() == {"loss", "accuracy", "majority", "calibration_error"}
    capsys.readouterr()
    evaluate_run(tmp_path / "run", "latest", Options())
    printed = capsys.readouterr().out
    assert "dev at step 10" in printed
    assert "test at step 10" in printed
    lines = (tmp_path / "run" / "predictions_10" / "0_dev.tsv").read_text().splitlines()[1:]
    model = albert.load(tmp_path / "run" / "checkpoints" / "10")
    questions = race.read(tmp_path / "dev.jsonl")
    right = 0
    for line, question in zip(lines, questions, strict=True):
        found = model.choose(question.context, question.question, question.options)
        assert line.split("\t")[1] == str(found.number)
        assert found.option == question.options[found.number]
        assert sum(found.probabilities) == pytest.approx(1)
        right += found.number == question.label
    assert right / len(questions) == pytest.approx(figures["accuracy"])
    for form in ("albert", "huggingface"):
        model.save(tmp_path / form, form)
        asked = questions[0].context, questions[0].question, questions[0].options
        assert albert.load(tmp_path / form).choose(*asked) == model.choose(*asked)
    with pytest.raises(ValueError, match="at least two texts"):
        model.choose("a", "b", "cd")


def test_what_cannot_be_chosen_is_told(run, tmp_path):
    with pytest.raises(ValueError, match="was not fine-tuned to choose"):
        albert.load(run).choose("a", "b", ["c", "d"])
    config = race_config.get_config("tiny")
    config.init_from = str(run)
    config.data.max_question = 100
    with pytest.raises(ConfigError) as told:
        check(config)
    for words in (
        "data.train is empty; name a folder of RACE",
        "data.max_question is 100; it must be from 1 to seq_length - 3, 61",
    ):
        assert words in str(told.value)
    config = race_config.get_config("v1,tiny")
    config.init_from, config.data.options = str(run), 3
    config.data.train = config.data.dev = str(write_questions(tmp_path / "q.jsonl", 4))
    with pytest.raises(SourceError, match=r"4 options; set --config\.data\.options=4"):
        race.MultipleChoice.read(check(config), training=True)
