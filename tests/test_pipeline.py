import dataclasses
import gc
import os
import pickle
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from albert.data.loader import BatchSource, heldout_batch, iterate
from albert.data.pretraining.plan import CorpusPlan
from albert.data.scratch import Scratch
from rows import OPTIONS, make_examples, read_corpus


@pytest.fixture(params=[0, 4], ids=["unpacked", "packed"])
def examples(corpus, tokenizer, request):
    return make_examples(corpus, tokenizer, dataclasses.replace(OPTIONS, packing=request.param))


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("workers", [0, 1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_batches_in_order_from_any_step(examples, workers):
    source = BatchSource(examples, 8, tuple(range(8)), 12)
    batches = list(iterate(source, 5, workers))
    assert len(batches) == 7
    for step, batch in enumerate(batches, 5):
        assert_same(batch, source[step])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_batch_by_rows(examples, processes):
    """Each makes its own rows only, from nothing that another made."""
    whole = BatchSource(examples, 8, tuple(range(8)), 10)[3]
    parts = []
    for process in range(processes):
        rows = tuple(range(process * 8 // processes, (process + 1) * 8 // processes))
        own = pickle.loads(pickle.dumps(BatchSource(examples, 8, rows, 10)))
        parts.append(own[3])
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_the_order_of_rows_outlives_a_change_of_processes(examples):
    """Five steps on two processes, the rest on four: the rows of a run on one."""
    alone = BatchSource(examples, 8, tuple(range(8)), 10)
    found = []
    for step in range(10):
        processes = 2 if step < 5 else 4
        rows = np.arange(8).reshape(processes, -1)
        parts = [BatchSource(examples, 8, tuple(r), 10)[step] for r in rows.tolist()]
        found.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    for step, batch in enumerate(found):
        assert_same(batch, alone[step])


def test_held_out_rows_past_the_end_count_for_nothing(examples):
    batch = heldout_batch(examples, 8, range(8), 1, 13)
    assert_same({n: v[4] for n, v in batch.items()}, examples[12])
    assert (batch["sop_labels"][5:] == -1).all()
    assert not batch["mlm_weights"][5:].any()
    assert not batch["attention_mask"][5:].any()


def test_a_broken_row_reaches_the_caller(examples):
    @dataclasses.dataclass(frozen=True)
    class Broken(BatchSource):
        def __getitem__(self, step):
            if step == 2:
                raise ValueError("row 17 is broken")
            return super().__getitem__(step)

    with pytest.raises(ValueError, match="row 17 is broken"):
        list(iterate(Broken(examples, 8, tuple(range(8)), 4), 0, 0))


def test_a_worker_plans_nothing(tmp_path, text, tokenizer):
    """What planning needs and reading does not is gone before the workers start."""
    corpus = read_corpus(text, tokenizer, tmp_path)
    for packing in (0, 4):
        options = dataclasses.replace(OPTIONS, packing=packing)
        source = BatchSource(make_examples(corpus, tokenizer, options), 8, tuple(range(8)), 6)
        expected = [source[step] for step in range(6)]
        (corpus.path / "document_starts.npy").rename(tmp_path / "away.npy")
        for step, batch in enumerate(iterate(source, 0, 2)):
            assert_same(batch, expected[step])
        (tmp_path / "away.npy").rename(corpus.path / "document_starts.npy")


def test_an_epoch_is_planned_once_by_all_who_share_it(corpus, tokenizer, monkeypatch):
    examples = make_examples(corpus, tokenizer)
    rows = [3 * examples.rows_per_epoch + row for row in range(5)]
    others = [pickle.loads(pickle.dumps(examples)) for _ in range(3)]
    planned = []
    original = CorpusPlan._plan_epoch
    monkeypatch.setattr(
        CorpusPlan,
        "_plan_epoch",
        lambda self, number: planned.append(number) or original(self, number),
    )
    batches = [each.batch(rows) for each in [*others, examples]]
    assert planned == [3]
    for batch in batches:
        assert_same(batch, batches[0])


def test_workers_that_start_together_share_one_plan(corpus, tokenizer, monkeypatch):
    """Grain pickles for each worker in a thread of its own."""
    folders = []
    make = Scratch.__init__

    def slowly(self):
        make(self)
        folders.append(self.folder)
        time.sleep(0.2)

    monkeypatch.setattr(Scratch, "__init__", slowly)
    examples = make_examples(corpus, tokenizer)
    with ThreadPoolExecutor(4) as threads:
        sent = list(threads.map(lambda _: pickle.dumps(examples), range(4)))
    assert len(folders) == 1
    for each in sent:
        assert pickle.loads(each).plans[0]._scratch.folder == folders[0]


def test_a_plan_outlives_the_process_that_shared_it(corpus, tokenizer):
    examples = make_examples(corpus, tokenizer)
    expected = examples.batch(range(8))
    sent = pickle.dumps(examples)
    folder = examples.plans[0]._scratch.folder
    assert any(folder.iterdir())
    del examples
    gc.collect()
    assert not folder.exists()
    assert_same(pickle.loads(sent).batch(range(8)), expected)


def test_a_full_folder_for_temporary_files_is_told(corpus, tokenizer, monkeypatch):
    examples = make_examples(corpus, tokenizer)
    expected = examples.batch(range(8))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.warns(UserWarning, match=r"No space left on device.*plans for itself"):
            again = pickle.loads(pickle.dumps(examples))
        with pytest.warns(UserWarning, match="No space left on device"):
            assert_same(again.batch(range(8)), expected)


def test_what_a_killed_owner_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = tmp_path / "albert-scratch-old"
    old.mkdir()
    (old / "owner.lock").touch()
    living = Scratch()
    for folder in (old, living.folder):
        os.utime(folder, (0, 0))
    again = Scratch()
    assert sorted(tmp_path.iterdir()) == sorted([living.folder, again.folder])
