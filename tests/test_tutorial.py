"""The very commands of docs/tutorial.md, in its order, in an empty folder, made small by TINY."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/tutorial.md"
NEEDED = (
    "albert",
    "configs",
    "tools",
    "train.py",
    "eval.py",
)  # of a checkout, to run in its folder
WAIT = 300  # seconds for a command
LARGEST_PICTURE = 60_000  # bytes


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the page, in its place, and what the test changes in it.

    Attributes:
      begins: how it begins on the page.
      left: looks at the folder and at what the command has printed; None: it is not run.
      replaced: text that stands in it once, and what is run in its place. `ADDRESS` is that of
        the service which was started last.
      added: behind it.
      serves: it goes on until Ctrl-C. It is looked at when it has printed its address.
    """

    begins: str
    left: Callable[[Path, str], None] | None = None
    replaced: tuple[tuple[str, str], ...] = ()
    added: str = ""
    serves: bool = False

    def tiny(self, command: str) -> str:
        for old, new in self.replaced:
            assert command.count(old) == 1, f"{old!r} stands {command.count(old)} times: {command}"
            command = command.replace(old, new)
        return f"{command} {self.added}" if self.added else command


def text_is_there(folder, printed):
    for package in ("absl", "flax", "optax"):
        lines = (folder / f"text/{package}.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) > 50
        assert {record["package"] for record in records} == {package}
        assert all(len(record["text"].split()) >= 20 for record in records)


def statistics_are_there(folder, printed):
    assert [*folder.glob("prepared/vocabulary-*/tokenizer.model")]
    assert json.loads((folder / "runs/stats.json").read_text())["leaked"] == 0
    assert is_picture(folder / "runs/stats.png")
    assert "text/" in printed


def rows_are_shown(folder, printed):
    assert re.search(r"\{\S+ > \[MASK\]\}", printed)


def is_pretrained(folder, printed):
    assert [*(folder / "runs/docs/checkpoints").glob("60*")]
    assert (folder / "runs/docs/tokenizer.model").is_file()
    assert "Held-out text at step 60" in printed
    lines = (folder / "runs/docs/metrics.jsonl").read_text().splitlines()
    losses = [r["mlm_loss"] for r in map(json.loads, lines) if r["group"] == "valid"]
    assert losses[-1] < losses[0]


def curves_are_shown(folder, printed):
    url = f"{address_in(printed)}/data/plugin/scalars/tags"
    run = "docs/tensorboard"
    end = time.monotonic() + WAIT
    while "valid/mlm_loss" not in fetched(url).get(run, ()):  # it reads the logs while it serves
        assert time.monotonic() < end, "TensorBoard does not show the held-out loss"
        time.sleep(0.2)


def is_classifier(folder, printed):
    assert [*(folder / "runs/package/checkpoints").glob("20*")]
    assert re.search(r"dev at step \d+, the best", printed)


def pictures_are_drawn(folder, printed):
    (pictures,) = (folder / "runs/package").glob("pictures_*")
    assert is_picture(pictures / "dev_confusion.png")


def classifies(folder, printed):
    assert re.search(r"Class\(label='(absl|flax|optax)', probabilities=", printed)


def pairs_are_there(folder, printed):
    train, dev = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("pairs.jsonl", "pairs-dev.jsonl")
    )
    assert len(train) > 5 * len(dev) > 50
    assert {record["score"] for record in dev} == {0, 1}
    assert not {record["text_a"] + record["text_b"] for record in train} & {
        record["text_a"] + record["text_b"] for record in dev if record["score"]
    }


def has_vectors(folder, printed):
    assert [*(folder / "runs/vectors/checkpoints").glob("20*")]
    assert re.search(r"spearman +-?\d", printed)


def cosines_are_drawn(folder, printed):
    (pictures,) = (folder / "runs/vectors").glob("pictures_*")
    assert is_picture(pictures / "dev_cosines.png")


def is_exported(folder, printed):
    manifest = json.loads((folder / "runs/vectors-onnx/manifest.json").read_text())
    assert manifest["programs"].keys() == {"float32", "int8"}
    for program in manifest["programs"].values():
        assert (folder / "runs/vectors-onnx" / program).is_file()
        assert program in printed


def is_indexed(folder, printed):
    assert re.search(r"500 sentences, unit vectors of 32 numbers", printed)
    assert (folder / "runs/index/manifest.json").is_file()


def answers_on_a_page(folder, printed):
    page = urllib.request.urlopen(f"{address_in(printed)}/search", timeout=WAIT)
    assert b"<form" in page.read()


def answers(folder, printed):
    results = json.loads(printed)["results"]
    assert len(results) == 3
    for found in results:
        line = (folder / found["file"]).read_text("utf-8").splitlines()[found["line"] - 1]
        assert " ".join(found["text"].split()) in " ".join(json.loads(line)["text"].split())


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


def fetched(url):
    with urllib.request.urlopen(url, timeout=WAIT) as answer:
        return json.load(answer)


def address_in(printed):
    return re.search(r"http://[\w.]+:\d+", printed)[0]


SIX_PACKAGES = ", ".join(
    f"'text/{package}.jsonl'"
    for package in ("python", "numpy", "scipy", "jax", "matplotlib", "sklearn")
)

# One for each command of the page, in its order.
TINY = (
    Command("python3 -m venv"),  # not run: it installs what these tests run in
    Command(
        "python - <<'END'\nimport json, pathlib, sysconfig",
        text_is_there,
        replaced=(('("python", *PACKAGES)', '("absl", "flax", "optax")'),),
    ),
    Command(
        "python tools/corpus_stats.py",
        statistics_are_there,
        replaced=(("quickstart.py", "quickstart.py:tiny"),),
    ),
    Command(
        "python tools/show_batch.py",
        rows_are_shown,
        replaced=(("quickstart.py", "quickstart.py:tiny"),),
    ),
    Command(
        "python train.py --config=configs/quickstart.py",
        is_pretrained,
        replaced=(("quickstart.py", "quickstart.py:tiny"),),
    ),
    Command("tensorboard", curves_are_shown, added="--port=0", serves=True),
    Command(
        "python train.py --config=configs/finetune/texts.py",
        is_classifier,
        replaced=(
            ("texts.py", "texts.py:tiny"),
            (SIX_PACKAGES, "'text/absl.jsonl', 'text/flax.jsonl', 'text/optax.jsonl'"),
        ),
    ),
    Command("python eval.py --workdir=runs/package", pictures_are_drawn),
    Command('python -c "import albert', classifies),
    Command("python - <<'END'\nimport json, pathlib\n", pairs_are_there),
    Command(
        "python train.py --config=configs/finetune/contrastive.py",
        has_vectors,
        replaced=((":pairs", ":pairs,tiny"), ("--config.train.epochs=2", "")),
    ),
    Command("python eval.py --workdir=runs/vectors", cosines_are_drawn),
    Command("python tools/export.py", is_exported),
    Command("python tools/search_index.py", is_indexed, added="--max_sentences=500"),
    Command("python tools/serve.py", answers_on_a_page, added="--port=0", serves=True),
    Command("curl", answers, replaced=(("http://127.0.0.1:8000", "ADDRESS"),)),
)


def blocks_of(page):
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)


def commands_of(page):
    return [content.rstrip("\n") for language, content in blocks_of(page) if language == "bash"]


def test_the_test_knows_every_command_of_the_page():
    page = PAGE.read_text("utf-8")
    assert {language for language, _ in blocks_of(page)} == {"bash", "text"}
    commands = commands_of(page)
    assert len(commands) == len(TINY)
    for command, tiny in zip(commands, TINY, strict=True):
        assert command.startswith(tiny.begins)
        assert tiny.left is None or tiny.tiny(command)
    for requirements in re.findall(r"-r (\S+)", commands[0]):
        assert (ROOT / requirements).is_file()


def test_the_pictures_of_the_page_are_there_and_small():
    shown = set(re.findall(r"!\[[^\]]+\]\(tutorial/([^)]+)\)", PAGE.read_text("utf-8")))
    there = {path.name: path for path in (ROOT / "docs/tutorial").iterdir()}
    assert shown == there.keys()
    for path in there.values():
        assert is_picture(path)
        assert path.stat().st_size < LARGEST_PICTURE


@pytest.mark.slow
def test_the_way_can_be_gone(tmp_path):
    for needed in NEEDED:
        (tmp_path / needed).symlink_to(ROOT / needed)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device, as on a laptop
        "PYTHONUNBUFFERED": "1",
    }
    address = None
    with contextlib.ExitStack() as services:
        for command, tiny in zip(commands_of(PAGE.read_text("utf-8")), TINY, strict=True):
            if tiny.left is None:
                continue
            changed = tiny.tiny(command)
            if "ADDRESS" in changed:
                changed = changed.replace("ADDRESS", address)
            if tiny.serves:
                printed = services.enter_context(serving(changed, tmp_path, environment))
                address = address_in(printed)
            else:
                printed = printed_by(changed, tmp_path, environment)
            tiny.left(tmp_path, printed)


def printed_by(command, folder, environment):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def serving(command, folder, environment):
    """Yields what a service has printed when its address is there; ends it by Ctrl-C."""
    log = folder / f"{command.split()[0]}.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + WAIT
        while not re.search(r"http://[\w.]+:\d+.*\n", log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(WAIT)
        finally:
            process.kill()
