"""Checkpoints by themselves: what is written, what is found damaged, what is refused."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from albert.checkpoints import manifest, orbax
from albert.checkpoints import store as checkpoint_module
from albert.checkpoints.agreement import CannotAgree, agreed_error
from albert.checkpoints.checksums import array_sums, host_sums
from albert.checkpoints.store import CheckpointError, Checkpoints

ROOT = Path(__file__).resolve().parent.parent
# What Orbax writes last of all, and nothing here reads.
UNREAD = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def trees(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "layer": {"kernel": rng.normal(size=(40, 30)).astype(np.float32)},
        "bias": rng.normal(size=7).astype(np.float32),
    }
    training = {"step": np.int32(seed), "moments": [rng.normal(size=(40, 30)).astype(np.float32)]}
    return jax.tree.map(jnp.asarray, (params, training))


@contextlib.contextmanager
def opened(folder, **options):
    with contextlib.closing(Checkpoints(folder, **options)) as checkpoints:
        yield checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of steps 3 and 7; to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder, create=True, keep_last=2) as checkpoints:
        for step in (3, 7):
            checkpoints.save(step, *trees(step), {"data": {}}, loss=step / 10)
    return folder


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def restored(folder, step):
    with opened(folder) as checkpoints:
        return checkpoints.restore(step, *like(trees(step)))


# Sums.


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), max_size=4),
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool", "float16"]),
    seed=st.integers(0, 1000),
)
def test_sums_on_devices_and_on_the_host_are_the_same(shape, dtype, seed):
    raw = np.random.default_rng(seed).integers(
        0, 256, [*shape, jnp.dtype(dtype).itemsize], np.uint8
    )
    x = raw.view(jnp.dtype(dtype)).reshape(shape) if dtype != "bool" else raw[..., 0] > 127
    on_device = np.asarray(jax.jit(array_sums)({"x": x}))[0].tolist()
    assert tuple(on_device) == host_sums(x)


def test_sums_do_not_depend_on_the_mesh():
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (P(), P("a"), P("b", "a"), P(None, ("a", "b"))):
        spread = jax.device_put(x, NamedSharding(mesh, spec))
        assert tuple(np.asarray(jax.jit(array_sums)([spread]))[0].tolist()) == host_sums(x)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 999), bit=st.integers(0, 31), other=st.integers(0, 999))
def test_any_flipped_bit_and_any_exchange_changes_both_sums(place, bit, other):
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    before = host_sums(x)
    flipped = x.copy()
    flipped.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
    assert all(a != b for a, b in zip(host_sums(flipped), before, strict=True))
    if x[place] != x[other]:
        exchanged = x.copy()
        exchanged[[place, other]] = x[[other, place]]
        assert host_sums(exchanged) != before


def test_sums_of_arrays_larger_than_what_is_summed_at_once():
    x = np.random.default_rng(0).integers(0, 2**32, (1 << 18) * 2 + 5, dtype=np.uint32)
    assert tuple(np.asarray(jax.jit(array_sums)([x]))[0].tolist()) == host_sums(x)


# What is there.


def test_a_checkpoint_comes_back_on_devices_and_on_the_host(saved):
    for step in (3, 7):
        params, training = restored(saved, step)
        for ours, theirs in zip(
            jax.tree.leaves((params, training)), jax.tree.leaves(trees(step)), strict=True
        ):
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    with opened(saved) as checkpoints:
        host = checkpoints.restore_arrays(7, "params")
        assert host["bias"].tobytes() == np.asarray(trees(7)[0]["bias"]).tobytes()
        assert checkpoints.info(7) == {"data": {}, "loss": 0.7}
        assert checkpoints.losses() == {3: 0.3, 7: 0.7}
        assert checkpoints.newest_sound(pytest.fail) == 7


def test_only_what_is_large_is_written_in_parts(tmp_path, monkeypatch):
    """A part is cut by a program of its own: many small arrays on many devices would be as many."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rng = np.random.default_rng(0)
    host = {"small": rng.normal(size=(64, 48)), "large": rng.normal(size=(2048, 1031))}
    params = jax.device_put({k: v.astype(np.float32) for k, v in host.items()}, everywhere)
    cut = []
    in_dim = jax.lax.slice_in_dim
    monkeypatch.setattr(
        jax.lax, "slice_in_dim", lambda x, *a, **k: cut.append(x) or in_dim(x, *a, **k)
    )
    with opened(tmp_path / "checkpoints", create=True) as checkpoints:
        checkpoints.save(0, params, None, {}, None)
        checkpoints.wait()
        arrays = checkpoints.restore_arrays(0, "params")
    assert [x.shape for x in cut] == [(2048, 1031)] * 8
    for name, value in host.items():
        assert arrays[name].tobytes() == value.astype(np.float32).tobytes()


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_no_flipped_bit_is_restored_silently(saved, tmp_path):
    """200 of them, at random places of random files; every file gets some."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    rng = np.random.default_rng()
    names = files_of(folder / "7")
    assert len(names) > 15
    expected = jax.tree.leaves(trees(7))
    for number in range(200):
        name = names[number % len(names)]
        path = folder / "7" / name
        whole = path.read_bytes()
        place, bit = rng.integers(len(whole)), rng.integers(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        told = []
        if name in UNREAD:
            for ours, theirs in zip(jax.tree.leaves(restored(folder, 7)), expected, strict=True):
                assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
        else:
            with opened(folder) as checkpoints:
                assert checkpoints.newest_sound(told.append) == 3, (name, place, bit)
                with pytest.raises(CheckpointError, match="checkpoints/7 is not sound"):
                    checkpoints.restore_params(7, like(trees(7)[0]))
            assert (name if name != manifest.NAME else "manifest.json") in told[0]
        path.write_bytes(whole)


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed", "replaced"])
def test_no_damaged_file_is_restored_silently(saved, tmp_path, how):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for name in set(files_of(folder / "7")) - UNREAD:
        path = folder / "7" / name
        whole = path.read_bytes()
        if how == "removed":
            path.unlink()
        elif how == "replaced":
            path.write_bytes((folder / "3" / "params" / "_METADATA").read_bytes()[: len(whole)])
        else:
            path.write_bytes(whole[: len(whole) // 2 if how == "truncated" else 0])
        if not path.exists() or path.read_bytes() != whole:
            with opened(folder) as checkpoints:
                told = []
                assert checkpoints.newest_sound(told.append) == 3, name
                assert "not sound" in told[0]
        path.write_bytes(whole)


def test_what_does_not_belong_there_is_told(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    (folder / "7" / "params" / "more").write_text("")
    (folder / "8").mkdir()
    (folder / "9").mkdir()
    (folder / "9" / "params").mkdir()
    (folder / "notes").mkdir()
    told = []
    with opened(folder) as checkpoints:
        assert checkpoints.newest_sound(told.append) == 3
        assert checkpoints.steps() == [3, 7]
    assert "9 is not sound: it has no manifest.json: it was not finished" in told[0]
    assert "8 is not sound: the folder is empty" in told[1]
    assert "7 is not sound: params/more does not belong there" in told[2]


def test_when_none_is_sound_there_is_no_new_beginning(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in (3, 7):
        (folder / str(step) / "info" / "metadata").write_text("{}")
    with opened(folder) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.newest_sound(lambda text: None)
    assert "None of the checkpoints" in str(error.value)
    assert str(error.value).count("info/metadata has 2 bytes instead of") == 2


def test_none_at_all_is_a_beginning(tmp_path):
    with opened(tmp_path / "checkpoints", create=True) as checkpoints:
        assert checkpoints.newest_sound(pytest.fail) is None


def test_other_leaves_are_refused_and_all_of_them_named(saved):
    params, training = trees(7)
    params["layer"]["kernel"] = params["layer"]["kernel"].astype(jnp.bfloat16)
    params["new"] = params.pop("bias")
    training["moments"][0] = training["moments"][0].T
    with opened(saved) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(7, *like((params, training)))
    assert str(error.value).splitlines()[1:] == [
        "  params/new is missing",
        "  params/bias is too many",
        "  params/layer/kernel is float32 [40, 30] and should be bfloat16 [40, 30]",
        "  training/moments/0 is float32 [40, 30] and should be float32 [30, 40]",
    ]


# Saving.


def test_what_was_written_wrong_is_never_a_checkpoint(tmp_path, monkeypatch):
    """The arrays on disk are others than those on the devices: the older checkpoint stays."""
    folder = tmp_path / "checkpoints"
    with opened(folder, create=True, keep_last=1) as checkpoints:
        checkpoints.save(1, *trees(1), {}, None)
        checkpoints.wait()
        original = checkpoint_module.read_arrays

        def damaged(path):
            tree = original(path)
            first = jax.tree.leaves(tree)[0]
            first.reshape(-1).view(np.uint8)[0] ^= 1
            return tree

        monkeypatch.setattr(checkpoint_module, "read_arrays", damaged)
        checkpoints.save(2, *trees(2), {}, None)
        with pytest.raises(CheckpointError, match=r"of step 2 is not what was to be saved: .*dam"):
            checkpoints.wait()
        assert [p.name for p in folder.iterdir()] == ["1"]
        monkeypatch.undo()
        checkpoints.save(3, *trees(3), {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [3]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("other_fails", [False, True])
@pytest.mark.parametrize("own", [None, MemoryError("no more")])
def test_processes_agree_on_what_went_wrong(monkeypatch, capsys, index, other_fails, own):
    """All raise or none; whoever is not heard for the first process warns by itself."""

    def gather(flag):
        assert flag.dtype == bool
        return np.insert(np.array([other_fails]), index, flag)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    error = agreed_error(own)
    assert (error is None) == (own is None and not other_fails)
    if own is not None:
        assert error is own
    elif other_fails:
        assert isinstance(error, CheckpointError)
        assert str(error) == f"process {1 - index} failed and says why"
    told = "Warning (process 1): MemoryError: no more\n" if own is not None and index else ""
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("handler", [ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler])
@pytest.mark.parametrize("failing", [{1}, {2}, {1, 2}])
def test_what_fails_while_its_caller_waits_is_raised_and_the_next_save_works(
    tmp_path, monkeypatch, handler, failing
):
    original, calls, mended = handler.async_save, [], []

    async def save(*arguments, **more):
        calls.append(1)
        if len(calls) in failing and not mended:
            raise MemoryError("no more")
        return await original(*arguments, **more)

    monkeypatch.setattr(handler, "async_save", save)
    folder = tmp_path / "checkpoints"
    with opened(folder, create=True) as checkpoints:
        if handler is ocp.JsonCheckpointHandler and 1 not in failing:
            checkpoints.save(0, *trees(1), {}, None)
            checkpoints.wait()
        with pytest.raises(MemoryError, match="no more"):
            checkpoints.save(1, *trees(1), {}, None)
        assert 1 not in checkpoints.folders()
        mended.append(1)
        checkpoints.save(1, *trees(1), {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [1]


def test_an_error_that_the_others_do_not_know_of_ends_the_process(tmp_path, monkeypatch):
    with opened(tmp_path / "checkpoints", create=True) as checkpoints:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda flag: np.array([flag] * 2))

        def fail(tree):
            raise MemoryError("no more")

        monkeypatch.setattr(checkpoint_module, "describe", fail)
        with pytest.raises(CannotAgree, match=r"step 1 together .*: MemoryError: no more\. It"):
            checkpoints.save(1, *trees(1), {}, None)
        monkeypatch.undo()


def test_an_old_checkpoint_that_stays_is_told_and_the_new_one_is_saved(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "checkpoints"

    def fail(path, suffix):
        raise PermissionError(13, "Permission denied", str(path))

    with opened(folder, create=True, keep_last=1) as checkpoints:
        checkpoints.save(1, *trees(1), {}, None)
        checkpoints.wait()
        monkeypatch.setattr(checkpoint_module, "remove_folder", fail)
        checkpoints.save(2, *trees(2), {}, None)
        assert checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
    told = capsys.readouterr().out
    assert "Warning: Step 2 is saved; an older checkpoint could not be removed: " in told
    assert "PermissionError: [Errno 13] Permission denied: '" in told


@pytest.mark.parametrize("name", ["a[1]b*?", "[!x]", "100% #1", "тест", "a\nb"])
def test_a_folder_may_have_any_name(tmp_path, name):
    """Patterns of a shell and of URLs among them."""
    folder = tmp_path / name / "checkpoints"
    with opened(folder, create=True, keep_last=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, *trees(step), {"a": step}, None)
            checkpoints.wait()
        assert checkpoints.steps() == [2]
        assert checkpoints.newest_sound(pytest.fail) == 2
    for ours, theirs in zip(
        jax.tree.leaves(restored(folder, 2)), jax.tree.leaves(trees(2)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with opened(folder) as checkpoints:
        checkpoints.check_arrays(2)


@pytest.mark.parametrize("name", ["a\\b", os.fsdecode(b"\xff")])
def test_where_no_checkpoint_can_be_written_it_is_told_at_the_start(tmp_path, name):
    """TensorStore takes a backslash for a separator, and no name that is not UTF-8."""
    with pytest.raises(CheckpointError, match=r"no checkpoint can be written: .*another folder"):
        Checkpoints(tmp_path / name / "checkpoints", create=True)


def hooks():
    """What is the whole process's."""
    return [
        sys.unraisablehook,
        warnings.showwarning,
        *(list(logging.getLogger(name).filters) for name in (None, "asyncio", "absl")),
    ]


# A read that failed may complain of its closed loop later than anybody waits for it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hooks_and_filters_of_the_process_are_as_they_were(saved, tmp_path, monkeypatch):
    """After reading and saving; once either failed, its threads may complain at any time."""
    while orbax._silences:  # of what failed in other tests
        orbax.end_one_error_is_enough()
    before = hooks()
    restored(saved, 7)
    assert hooks() == before
    shutil.copytree(saved, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "7" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"damaged")
    with opened(tmp_path / "checkpoints", create=True) as checkpoints:
        monkeypatch.setattr(checkpoints, "problems", lambda step: [])
        checkpoints._verified[7] = json.loads((saved / "7" / manifest.NAME).read_text())
        for read in (
            lambda: checkpoints.restore_arrays(7, "params"),
            lambda: checkpoints.restore_params(7, like(trees(7)[0])),
        ):
            with pytest.raises(CheckpointError, match="cannot be read"):
                read()
            assert hooks() != before
            orbax.end_one_error_is_enough()
            assert hooks() == before
        checkpoints.save(8, *trees(8), {}, None)
        checkpoints.wait()
        assert hooks() == before
        monkeypatch.setattr(checkpoint_module, "describe_on_host", lambda tree: {})
        checkpoints.save(9, *trees(9), {}, None)
        with pytest.raises(CheckpointError, match="is not what was to be saved"):
            checkpoints.wait()
        assert hooks() != before
        orbax.end_one_error_is_enough()
    assert hooks() == before


def test_a_damaged_file_is_told_in_one_sentence(saved, tmp_path):
    """Not in pages of tracebacks besides, at once or at the end of the program."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "7" / "params").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"damaged")
    code = f"""
import sys
from pathlib import Path
from albert.checkpoints.store import Checkpoints, CheckpointError
from albert.checkpoints.orbax import read_arrays, read_item
folder = Path({str(tmp_path / "checkpoints")!r})
try:
    read_arrays(folder / "7" / "params")
except Exception as error:
    print("could not be read:", type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("could not be read: ")
    assert done.stderr == ""


def test_what_is_saved_again_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    """A save that fails, and one that is killed, leave the checkpoint that they were to replace."""
    folder = tmp_path / "checkpoints"
    with opened(folder, create=True) as checkpoints:
        checkpoints.save(3, *trees(3), {}, None)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "_verify_saved", lambda self: 1 / 0)
            checkpoints.save(3, *trees(4), {}, 0.5)
            with pytest.raises(ZeroDivisionError):
                checkpoints.wait()
        assert os.listdir(folder) == ["3"]
        assert checkpoints.losses() == {}
    (folder / "3").rename(folder / "3.replaced")  # killed while the new one was written
    with opened(folder, create=True) as checkpoints:
        assert checkpoints.steps() == [3]
        np.testing.assert_array_equal(
            checkpoints.restore_arrays(3, "params")["bias"], trees(3)[0]["bias"]
        )
        checkpoints.save(3, *trees(3), {}, 0.5)
        checkpoints.wait()
        assert os.listdir(folder) == ["3"]
        assert checkpoints.losses() == {3: 0.5}


def test_left_overs_of_a_kill_are_cleared_away(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "7", folder / "9.orbax-checkpoint-tmp-123")
    shutil.copytree(folder / "7", folder / "1.removed")
    with opened(folder):
        assert len(list(folder.iterdir())) == 4  # whoever only reads touches nothing
    with opened(folder, create=True):
        assert sorted(p.name for p in folder.iterdir()) == ["3", "7"]


def test_writers_that_outlive_a_failed_save_leave_nothing(tmp_path, monkeypatch):
    """One adds files while its folder is being removed, and another after that."""
    folder = tmp_path / "checkpoints"
    late = folder / "3.orbax-checkpoint-tmp" / "params"
    over = threading.Event()

    def fail(self):
        def keep_writing():
            for number in range(300):
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    late.mkdir(parents=True, exist_ok=True)
                    (late / str(number)).write_text("")
            over.set()

        threading.Thread(target=keep_writing).start()
        raise OSError(28, "No space left on device")

    verify = Checkpoints._verify_saved
    monkeypatch.setattr(
        Checkpoints, "_verify_saved", lambda self: (fail if not over.is_set() else verify)(self)
    )
    with opened(folder, create=True) as checkpoints:
        checkpoints.save(3, *trees(), {}, None)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
        assert over.wait(20)
        late.mkdir(parents=True, exist_ok=True)
        checkpoints.save(4, *trees(), {}, None)
        checkpoints.wait()
        assert [path.name for path in folder.iterdir()] == ["4"]
        late.mkdir(parents=True)
    assert [path.name for path in folder.iterdir()] == ["4"]


def test_the_last_and_the_best_are_kept_and_damaged_later_ones_replace_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 4: None, 5: 3.5}
    with opened(folder, create=True, keep_last=2, keep_best=1) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, *trees(step), {}, loss)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    (folder / "5" / "info" / "metadata").write_text("{}")
    with opened(folder, create=True, keep_last=1) as checkpoints:
        assert checkpoints.newest_sound(lambda text: None) == 4
        checkpoints.save(5, *trees(6), {}, None)  # again, in place of the damaged one
        checkpoints.wait()
        assert checkpoints.steps() == [5]
        assert checkpoints.newest_sound(pytest.fail) == 5


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path):
    folder = tmp_path / "checkpoints"
    with opened(folder, create=True, keep_last=1, keep_best=1) as checkpoints:
        for step, loss in {1: 5.0, 2: float("nan"), 3: 3.0, 4: None}.items():
            checkpoints.save(step, *trees(step), {}, loss)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


def test_weights_alone_have_no_training(tmp_path):
    with opened(tmp_path / "checkpoints", create=True) as checkpoints:
        checkpoints.save(4, trees()[0], None, {}, None)
        checkpoints.wait()
        assert not checkpoints.has_training(4)
        with pytest.raises(CheckpointError, match=r"training/step is missing"):
            checkpoints.restore(4, *like(trees()))


def test_the_tool_says_which_are_sound(saved, tmp_path):
    def check(workdir):
        return subprocess.run(
            [sys.executable, "tools/check_checkpoint.py", str(workdir)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    done = check(saved.parent)
    assert done.returncode == 0, done.stderr
    assert "The newest sound one is step 7." in done.stdout
    shutil.copytree(saved, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "7" / "params" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-1])
    done = check(tmp_path)
    assert done.returncode == 1
    assert "step 3: sound" in done.stdout
    assert "step 7: NOT SOUND\n  params/manifest.ocdbt has" in done.stdout
    done = check(tmp_path / "nothing")
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr


def test_a_manifest_says_what_it_says(saved):
    text = json.loads((saved / "7" / manifest.NAME).read_text())
    assert text["leaves"]["params"]["bias"][:2] == ["float32", [7]]
    assert set(text["files"]) == set(files_of(saved / "7")) - UNREAD - {manifest.NAME}
