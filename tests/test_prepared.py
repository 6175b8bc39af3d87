"""What is prepared is enough: the raw text may be gone, moved, touched, copied or changed."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from albert.data.corpus import writer as corpus_writer
from albert.data.pretraining.prepare import prepare, prepare_valid
from albert.data.sources import files
from albert.data.sources.base import SourceError
from albert.train.config import check
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from conftest import VOCABULARY, write_text

DAY = 86_400


@pytest.fixture
def data(tiny, tmp_path):
    """The data section of a run on text of its own, which trains its vocabulary."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number, name in enumerate("ab"):
        made = write_text(folder / f"{name}.txt", 60, seed=number)
        os.utime(made, (DAY, DAY))
    tiny.data.train_sources = (str(folder),)
    tiny.data.tokenizer = ""
    tiny.data.folder = str(tmp_path / "prepared")
    return check(tiny).data


@pytest.fixture
def read(monkeypatch):
    """The files that are read from beginning to end."""
    names = []
    original = files._digest
    monkeypatch.setattr(
        files, "_digest", lambda file: names.append(os.path.basename(file)) or original(file)
    )
    return names


def made_again(monkeypatch):
    monkeypatch.setattr(corpus_writer, "_write_on_cores", lambda *_: pytest.fail("made again"))


def assert_same_rows(ours, theirs):
    assert ours.identity == theirs.identity
    for split in ("train", "valid"):
        a, b = (getattr(d, split).batch(range(12)) for d in (ours, theirs))
        for name, values in a.items():
            np.testing.assert_array_equal(values, b[name], err_msg=name)


def test_text_that_is_gone_is_not_missed(data, tmp_path, monkeypatch, capfd):
    first = prepare(data, VOCABULARY, 0)
    shutil.rmtree(tmp_path / "text")
    made_again(monkeypatch)
    capfd.readouterr()
    assert data.text_problems() == []
    assert_same_rows(prepare(data, VOCABULARY, 0), first)
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"{tmp_path}/text: the text is gone (There is no file {tmp_path}/text" in told[0]
    assert f"is used, {first.train.plans[0].corpus.path}." in told[0]
    # And to evaluate, with the vocabulary of the run.
    valid = prepare_valid(
        dataclasses.replace(data, tokenizer=str(first.tokenizer.path)), first.tokenizer
    )
    np.testing.assert_array_equal(
        valid.batch(range(4))["input_ids"], first.valid.batch(range(4))["input_ids"]
    )
    # On another machine as well, and with other versions of the libraries.
    shutil.move(data.folder, tmp_path / "elsewhere")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    moved = dataclasses.replace(data, folder=str(tmp_path / "elsewhere"))
    assert_same_rows(prepare(moved, VOCABULARY, 0), first)


def test_what_was_never_prepared_is_missed(data, tmp_path):
    first = prepare(data, VOCABULARY, 0)
    shutil.rmtree(tmp_path / "text")
    other = dataclasses.replace(data, max_documents=7, tokenizer=str(first.tokenizer.path))
    with pytest.raises(
        SourceError, match=r"There is no file(.|\n)*prepared before, in .* for other max_documents"
    ):
        prepare(other, VOCABULARY, 0)
    with pytest.raises(SourceError, match="No vocabulary that was trained on it"):
        prepare(dataclasses.replace(data, character_coverage=0.99), VOCABULARY, 0)
    elsewhere = dataclasses.replace(data, folder=str(tmp_path / "empty"))
    assert "There is no file" in elsewhere.text_problems()[0]
    with pytest.raises(SourceError, match="There is no file"):
        prepare(elsewhere, VOCABULARY, 0)


def test_text_is_read_once_and_then_looked_at(data, tmp_path, read, monkeypatch):
    first = prepare(data, VOCABULARY, 0)
    assert sorted(read) == ["a.txt", "b.txt"]
    made_again(monkeypatch)
    assert_same_rows(prepare(data, VOCABULARY, 0), first)
    assert len(read) == 2
    # Touched: read once more, and found to be the same.
    os.utime(tmp_path / "text" / "a.txt", (2 * DAY, 2 * DAY))
    for _ in range(2):
        assert_same_rows(prepare(data, VOCABULARY, 0), first)
        assert read[2:] == ["a.txt"]
    # Copied with the prepared folder to another machine, where nothing has its path and time.
    for name in ("text", "prepared"):
        shutil.copytree(tmp_path / name, tmp_path / "far" / name, copy_function=shutil.copyfile)
    copy = dataclasses.replace(
        data,
        train_sources=(str(tmp_path / "far" / "text"),),
        folder=str(tmp_path / "far" / "prepared"),
    )
    assert_same_rows(prepare(copy, VOCABULARY, 0), first)


@pytest.mark.parametrize("place", ["begin", "middle", "end"])
def test_text_that_changed_in_nothing_but_a_sample_is_prepared_anew(data, tmp_path, capfd, place):
    """Of the same size and time as before."""
    path = write_text(tmp_path / "text" / "b.txt", 2000)
    os.utime(path, (DAY, DAY))
    first = prepare(data, VOCABULARY, 0)
    content = bytearray(path.read_bytes())
    at = {"begin": 5, "middle": len(content) // 2 + 9, "end": len(content) - 9}[place]
    content[at : at + 2] = b"xy"
    path.write_bytes(content)
    os.utime(path, (DAY, DAY))
    capfd.readouterr()
    again = prepare(data, VOCABULARY, 0, first.tokenizer)
    assert again.identity["train"] != first.identity["train"]
    told = capfd.readouterr().err
    assert "it is prepared anew, for other changed files (b.txt)" in told


def test_a_file_just_written_is_read_again(data, tmp_path, read):
    """It may change within the resolution of its time, in the middle of what is sampled."""
    path = tmp_path / "text" / "a.txt"
    write_text(path, 2000)
    prepare(data, VOCABULARY, 0)
    prepare(data, VOCABULARY, 0)
    assert read.count("a.txt") >= 2
    assert read.count("b.txt") == 1


def test_of_several_texts_that_are_gone_the_wanted_is_taken(data, tmp_path):
    first = prepare(data, VOCABULARY, 0)
    tokenizer = first.tokenizer
    write_text(tmp_path / "text" / "a.txt", 60, seed=9)
    second = prepare(data, VOCABULARY, 0, tokenizer)
    shutil.rmtree(tmp_path / "text")
    assert prepare(data, VOCABULARY, 0, tokenizer).identity == second.identity
    wanted = first.identity["train"]
    assert wanted != second.identity["train"]
    assert prepare(data, VOCABULARY, 0, tokenizer, wanted).identity == first.identity


def test_a_prepared_folder_that_cannot_be_written_is_enough(data, tmp_path, monkeypatch):
    first = prepare(data, VOCABULARY, 0)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("replace_text", "filelock.FileLock"):
        monkeypatch.setattr(f"albert.data.sources.files.{name}", refused)
    monkeypatch.setattr(os, "utime", refused)
    assert_same_rows(prepare(data, VOCABULARY, 0), first)


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_without_its_text(tiny, tmp_path, capsys):
    text = write_text(tmp_path / "a.txt", 120)
    tiny.data.train_sources = (str(text),)
    tiny.data.folder = str(tmp_path / "prepared")
    tiny.data.workers = 1
    tiny.train.num_steps = 4
    train(check(tiny), tmp_path / "run")
    text.unlink()
    tiny.train.num_steps = 6
    train(check(tiny), tmp_path / "run")
    evaluate_run(tmp_path / "run", "latest", Options(examples=0))
    printed = capsys.readouterr()
    assert printed.err.count("the text is gone") == 2
    assert (tmp_path / "run" / "eval_6.json").is_file()
