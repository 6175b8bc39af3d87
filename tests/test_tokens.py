"""Labels of words: files, rows, figures, and a run from its data to `tag`."""

import json

import numpy as np
import pytest

import albert
from albert.checkpoints import CheckpointError
from albert.data.labelled.words import word_sequences
from albert.data.sources.base import SourceError
from albert.data.tokenizer import CLS, SEP, UNK
from albert.interop import formats
from albert.runtime.fields import ConfigError
from albert.tasks import tokens
from albert.tasks.tokens import TokenLabels
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from configs.finetune import tokens as tokens_config
from exports import assert_its_program_is_judged_alike
from faults import killed_at
from runs import assert_bit_equal, final_params

CONLL = """-DOCSTART- -X- O

The DT O
captain NN B-PER
sleeps VB O

Winter NN B-TIME
music NN I-TIME
"""


def test_both_kinds_of_files_give_the_same_sentences(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    found = tokens.read(tmp_path / "a.conll")
    assert found == [
        ("0", ("The", "captain", "sleeps"), ("O", "B-PER", "O")),
        ("1", ("Winter", "music"), ("B-TIME", "I-TIME")),
    ]
    with open(tmp_path / "a.jsonl", "w") as file:
        for sentence in found:
            file.write(json.dumps({"tokens": sentence.words, "labels": sentence.labels}) + "\n")
    assert tokens.read(tmp_path / "a.jsonl") == found
    unlabelled = [sentence._replace(labels=None) for sentence in found]
    for name in ("a.conll", "a.jsonl"):
        assert tokens.read(tmp_path / name, labels=None) == unlabelled


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.conll", "The DT O\ncaptain\n", "line 2: one column; a word and its label are needed"),
        ("a.conll", "\n\n", "holds no sentences"),
        ("a.conll", "x O\n\udcff O\n", "line 2: not UTF-8"),
        ("a.jsonl", '{"tokens": ["a"]}\n', "line 1: labels is None; it must be a list of texts"),
        ("a.jsonl", '{"tokens": ["a"], "labels": ["O", "O"]}\n', "there are 1 tokens and 2 labels"),
        ("a.jsonl", '{"tokens": [], "labels": []}\n', "line 1: tokens is empty"),
        ("a.jsonl", '{"tokens": "a b", "labels": []}\n', "tokens is 'a b'; it must be a list"),
    ],
)
def test_sentences_that_are_wrong_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceError) as told:
        tokens.read(path)
    assert words in str(told.value)
    assert str(path) in str(told.value)


class Letters:
    """A vocabulary of letters; "-" has no piece."""

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text if letter != "-"] for text in texts]


def test_long_sentences_go_on_in_another_row():
    found = word_sequences([["ab", "cde", "f"], ["-", "wxyz"], []], Letters(), 6)
    rows = [
        found.rows.ids[begin:end].tolist()
        for begin, end in zip(found.rows.starts, found.rows.starts[1:], strict=False)
    ]
    a, b, c, d, e, f, w, x, y, z = map(ord, "abcdefwxyz")
    assert rows == [
        [CLS, a, b, SEP],
        [CLS, c, d, e, f, SEP],
        [CLS, UNK, SEP],
        [CLS, w, x, y, z, SEP],
        [CLS, SEP],
    ]
    assert found.sentences.tolist() == [0, 0, 1, 1, 2]
    assert [found.first_pieces(row).tolist() for row in range(5)] == [[1], [1, 4], [1], [1], []]
    assert (
        found.words.tolist() == [-1, 0, -1, -1, -1, 1, -1, -1, 2, -1, -1, 0, -1, -1, 1] + [-1] * 6
    )
    assert found.empty == 1
    cut = word_sequences([["abcdefgh"]], Letters(), 6)
    assert cut.rows.ids.tolist() == [CLS, a, b, c, d, SEP]


def test_figures_of_entities_and_of_other_labels():
    labels = [["B-PER", "I-PER", "O"], ["B-LOC", "O"]]
    predictions = [["B-PER", "I-PER", "O"], ["B-PER", "O"]]
    found = tokens.figures(labels, predictions)
    assert found == pytest.approx({"accuracy": 4 / 5, "f1": 0.5, "precision": 0.5, "recall": 0.5})
    assert tokens.figures(labels, [["O"] * 3, ["O"] * 2])["f1"] == 0.0
    assert tokens.figures([["NN", "VB"]], [["NN", "NN"]]) == {"accuracy": 0.5}


def write_sentences(path, count=64, seed=0):
    """Made-up sentences in which two kinds of words are entities."""
    rng = np.random.default_rng(seed)
    kinds = {"captain": "B-PER", "river": "B-LOC"}
    lines = []
    for _ in range(count):
        words = rng.choice(["the", "captain", "a", "river", "slowly"], rng.integers(2, 12))
        lines += [f"{word} {kinds.get(word, 'O')}" for word in words.tolist()] + [""]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def own(run, tmp_path):
    """A config that fine-tunes the tiny run on made-up sentences."""
    config = tokens_config.get_config("tiny")
    config.init_from = str(run)
    config.data.train = (str(write_sentences(tmp_path / "train.conll")),)
    config.data.dev = (str(write_sentences(tmp_path / "dev.conll", 12, seed=1)),)
    config.data.folder = str(tmp_path / "prepared")
    config.data.seq_length = 32
    config.optimizer.name, config.optimizer.learning_rate = "optax.adamw", 1e-2
    config.train.num_steps = 20
    return config


@pytest.mark.slow
def test_a_run_learns_is_killed_evaluated_loaded_and_asked(own, tmp_path, capsys):
    own.data.predict = own.data.dev
    whole = train(check(own), tmp_path / "whole")
    assert_its_program_is_judged_alike(tmp_path / "whole", tmp_path / "onnx")
    figures = whole.figures["dev"]
    assert figures.keys() == {"accuracy", "f1", "precision", "recall"}
    assert figures["f1"] > 0.5
    with pytest.raises(MemoryError):
        train(check(own), tmp_path / "parts", watch=killed_at("log", 15))
    train(check(own), tmp_path / "parts")
    assert_bit_equal(final_params(tmp_path / "parts", 20), final_params(tmp_path / "whole", 20))

    capsys.readouterr()
    evaluate_run(tmp_path / "whole", "latest", Options())
    assert "  f1 " in capsys.readouterr().out
    predicted = tokens.read(tmp_path / "whole" / "predictions_20" / "0_dev.conll")
    dev = tokens.read(tmp_path / "dev.conll")
    assert [sentence.words for sentence in predicted] == [sentence.words for sentence in dev]
    again = tokens.figures([s.labels for s in dev], [s.labels for s in predicted])
    assert again == pytest.approx(figures)

    model = albert.load(tmp_path / "whole" / "checkpoints" / "20")
    assert model.labels == ("B-LOC", "B-PER", "O")
    text = " \n ".join(dev[0].words)
    found = model.tag(text)
    assert [tag.label for tag in found] == list(predicted[0].labels)
    assert [text[tag.start : tag.end] for tag in found] == list(dev[0].words)
    assert all(0.3 < tag.probability <= 1 for tag in found)
    long = model.tag(" ".join(["the captain slowly"] * 60))  # more than the model has positions
    assert len(long) == 180
    assert model.tag("") == []
    model.save(tmp_path / "hf", "huggingface")
    again = albert.load(tmp_path / "hf")
    assert again.tag(text) == found
    with pytest.raises(CheckpointError, match="has no head that labels tokens"):
        formats.original.write(formats.read(tmp_path / "hf"), tmp_path)


def test_held_out_sentences_are_enough_to_evaluate_and_may_be_few(own, run, tmp_path):
    own.train.eval_rows = 5
    (tmp_path / "train.conll").write_text("")
    saved = {"labels": ["B-LOC", "B-PER", "O"]}
    task = TokenLabels.to_evaluate(check(own), albert.load(run).tokenizer, saved)
    (dev,) = task.evaluations
    assert dev.num_rows == 5
    assert list(task.opening) == ["dev: judged by the first 5 of 12 sentences (train.eval_rows)."]


def test_what_cannot_be_learned_or_asked_is_told(own, run, tmp_path):
    with pytest.raises(ValueError, match="was not fine-tuned to label tokens"):
        albert.load(run).tag("the river")
    (tmp_path / "dev.conll").write_text("x B-ORG\n")
    with pytest.raises(SourceError, match="labels that the training sentences lack: 'B-ORG'"):
        train(check(own), tmp_path / "run")
    own.data.train, own.data.dev, own.data.dev_fraction = ("a.xml",), (), 2.0
    with pytest.raises(ConfigError) as told:
        check(own)
    assert "data.train: a.xml must end in .conll, .txt, .tsv, .jsonl" in str(told.value)
    assert "dev_fraction 2.0; it must be between 0 and 1" in str(told.value)
