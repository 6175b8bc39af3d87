"""Names made from what users write, and what programs print and set."""

import io
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from albert import cli
from albert.runtime.console import tell, warn
from albert.runtime.paths import LiteralPath, file_name_part

ROOT = Path(__file__).resolve().parent.parent

letters = st.characters() | st.sampled_from("aA/.-_ é\u0301\\:*?[]тÄßﬁ℡")
texts = st.text(letters, max_size=40) | st.text("ab/-.", max_size=200)


def same_on_any_disk(name):
    """What file systems that know no case, and those that put letters together, compare."""
    return unicodedata.normalize("NFKC", name.upper().lower())


@given(texts, texts)
@example("a/b.txt", "a-b.txt")
@example("тест.txt", "проба.txt")
@example("A.txt", "a.txt")
@example("é", "e\u0301")
@example("", "-")
@example("a/b", file_name_part("a/b"))
@example("x" * 280 + "a", "x" * 280 + "b")
@example("ß", "ss")
@example("℡", "tel")
def test_other_texts_have_other_names(one, other):
    names = file_name_part(one), file_name_part(other)
    assert (one == other) == (same_on_any_disk(names[0]) == same_on_any_disk(names[1]))


@given(texts | st.sampled_from(["con", "NUL.txt", "a.", ".a", "..", "com1.x.y", "\udcff"]))
def test_names_are_short_and_valid_everywhere(text):
    name = file_name_part(text)
    assert 0 < len(name.encode()) <= 69
    assert not set(name) & set('/\\:*?"<>|[] ')
    assert not any(unicodedata.category(letter)[0] in "CZ" for letter in name)
    assert name[0] not in ".-"
    assert name[-1] not in ". "
    assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name.lower())
    assert file_name_part(text) == name
    assert name.casefold() == name


@pytest.mark.parametrize("text", ["all", "python-docs", "1e-05", "small.txt", "тест.txt", "हिन्दी"])
def test_plain_words_are_their_own_name(text):
    assert file_name_part(text) == unicodedata.normalize("NFKC", text)


def test_names_can_be_read_and_are_files(tmp_path):
    assert re.fullmatch(r"data-wiki-тест.txt-[0-9a-f]{8}", file_name_part("/data/Wiki/тест.txt"))
    long = file_name_part("/very" * 60 + "/held-out.txt")
    assert re.search(r"very-held-out\.txt-[0-9a-f]{8}$", long)
    for text in ("a/b", "x" * 300, "тест" * 80, "a\nb", "~/x*[1]"):
        (tmp_path / f"eval_125000_{file_name_part(text)}_nsp.json.tmp").write_text("")


@pytest.mark.parametrize("name", ["a[1]b*?", "plain", "**"])
def test_a_glob_below_a_folder_of_any_name_finds_what_is_there(tmp_path, name):
    folder = LiteralPath(str(tmp_path / name))
    assert list(folder.glob("*")) == []
    (folder / "in[0]" / "deep").mkdir(parents=True)
    (folder / "in[0]" / "deep" / "process_0").write_text("")
    assert [p.name for p in folder.glob("in*")] == ["in[0]"]
    assert [p.name for p in folder.glob("in*/deep/process_*")] == ["process_0"]
    assert list(folder.glob("other*")) == []


# Printing.


def test_what_an_encoding_lacks_is_printed_as_numbers(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    tell("Ärger: тест", stream)
    assert raw.getvalue() == rb"\xc4rger: \u0442\u0435\u0441\u0442" + b"\n"


def test_warnings_say_which_process_warns(capsys):
    warn("the disk is full.")
    warn("the disk is full.", 3)
    printed = capsys.readouterr().out
    assert printed == "Warning: the disk is full.\nWarning (process 3): the disk is full.\n"


def test_programs_print_any_text_anywhere(tmp_path):
    """As they do where the output is a file or a pipe of a machine that knows no other letters."""
    code = (
        "from albert import cli\nimport sys\n"
        "def main():\n    print('тест'); print('тест', file=sys.stderr)\n"
        "cli.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == rb"\u0442\u0435\u0441\u0442" + b"\n"
    assert done.stderr == rb"\u0442\u0435\u0441\u0442" + b"\n"


@pytest.mark.slow
def test_text_of_any_letters_where_only_ascii_is_printed(shared, tmp_path):
    text = shared / "cases" / "stdout" / "de_ru.txt"
    fields = [
        f"--config.data.train_sources={text}",
        f"--config.data.folder={tmp_path / 'prepared'}",
        "--config.data.strip_accents=False",
        "--config.model.vocab_size=200",
        "--config.data.seq_length=32",
        "--config.data.max_predictions=5",
        "--config.train.num_steps=3",
        "--config.train.batch_size=8",
        "--config.optimizer.warmup_steps=1",
        "--config.data.valid_fraction=0.2",
    ]
    config = "--config=configs/base.py:tiny"
    work = f"--workdir={tmp_path / 'run'}"
    for program in (
        ["train.py", config, work, *fields],
        ["eval.py", work],
        ["tools/show_batch.py", config, *fields],
    ):
        done = subprocess.run(
            [sys.executable, *program],
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\\u04" in done.stdout


# The environment of programs.


def test_the_package_sets_no_variable_when_it_is_imported():
    code = (
        "import os\nbefore = dict(os.environ)\n"
        "import albert.checkpoints.store, albert.inference, albert.train.loop\n"
        "changed = {k: v for k, v in os.environ.items() if before.get(k) != v}\n"
        "print({k for k in changed if not k.startswith(('TPU_', 'KMP_'))})"  # jax's and numba's own
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.fixture
def libtpu(tmp_path, monkeypatch):
    """As if the TPU compiler was installed, and nothing else that jax could use."""
    (tmp_path / "packages" / "libtpu").mkdir(parents=True)
    (tmp_path / "packages" / "libtpu" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(cli.metadata, "entry_points", lambda group: [])
    return tmp_path / "machine"


def test_no_tpu_is_looked_for_where_there_is_none(libtpu):
    assert cli.has_only_an_idle_tpu_library({}, libtpu)
    assert cli.has_only_an_idle_tpu_library({"JAX_PLATFORMS": ""}, libtpu)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("dev/accel0", ""),
        ("dev/vfio/0", ""),
        ("sys/bus/pci/devices/0000:00:04.0/vendor", "0x1ae0\n"),
    ],
)
def test_a_tpu_is_never_hidden(libtpu, path, content):
    (libtpu / path).parent.mkdir(parents=True)
    (libtpu / path).write_text(content)
    assert not cli.has_only_an_idle_tpu_library({}, libtpu)


def test_nothing_else_is_hidden(libtpu, monkeypatch):
    vendor = libtpu / "sys/bus/pci/devices/0000:00:01.0/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    assert cli.has_only_an_idle_tpu_library({}, libtpu)
    for variable in ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_LIBRARY_PATH", "TPU_NAME"):
        assert not cli.has_only_an_idle_tpu_library({variable: "x"}, libtpu)
    # A GPU's plugin: jax chooses between it and the CPU.
    monkeypatch.setattr(cli.metadata, "entry_points", lambda group: [group])
    assert not cli.has_only_an_idle_tpu_library({}, libtpu)
