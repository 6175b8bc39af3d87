"""What is installed, what it needs, and what it does not need."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from albert.data.tokenizer import Tokenizer
from albert.interop import formats, huggingface_tokenizer
from models import random_weights

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "requirements"
# Where a package is imported by another name than it is installed by.
IMPORTED_AS = {
    "ai-edge-litert": "ai_edge_litert",
    "prometheus-client": "prometheus_client",
    "orbax-checkpoint": "orbax",
    "tensorflow-datasets": "tensorflow_datasets",
    "absl-py": "absl",
    "scikit-learn": "sklearn",
    "backports.zstd": "backports",
}


def lines(path):
    text = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in text if line]


def packages(path):
    """Names of the packages in a list."""
    return [re.match(r"[\w.-]+", line)[0] for line in lines(path)]


def imported_as(name):
    return IMPORTED_AS.get(name, name)


def test_a_model_loads_with_the_packages_for_that_alone(tmp_path, vocabulary):
    """Without Orbax, TFDS, Numba, Grain, TensorBoard and whatever else training needs."""
    weights = random_weights(vocab_size=96, max_position_embeddings=40)
    weights.tokenizer = Tokenizer(vocabulary)
    formats.write(weights, tmp_path / "hf", "huggingface")
    formats.write(weights, tmp_path / "json", "huggingface")
    (tmp_path / "json" / huggingface_tokenizer.SENTENCEPIECE).unlink()
    absent = [*map(imported_as, packages(LISTS / "train.txt")), "tensorflow", "tensorstore"]
    absent.remove("absl")  # flax imports it
    code = f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
import albert

for folder in ("hf", "json"):
    model = albert.load(folder)
    print(model.encode(["a river"]).shape, len(model.fill_mask("a [MASK]")[0]))
model.save("again", format="huggingface")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(ROOT),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 16) 5"] * 2


def environment(path):
    return {**os.environ, "PYTHONPATH": str(path)}


def test_every_requirement_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    base = project["dependencies"]["file"]
    named = {*base}
    for extra in project["optional-dependencies"].values():
        named |= {extra["file"]} if isinstance(extra["file"], str) else {*extra["file"]}
    # Each list is that of an extra or of the project itself, and is also installed by a file at the
    # top that holds nothing else.
    assert named == {f"requirements/{path.name}" for path in LISTS.iterdir()}
    assert lines(ROOT / "requirements.txt") == [f"-r {name}" for name in base]
    included = set()
    for path in ROOT.glob("requirements*.txt"):
        assert all(line.startswith("-r ") for line in lines(path)), path
        included |= {line.removeprefix("-r ") for line in lines(path)}
    assert named <= included
    everything = [name for path in LISTS.iterdir() for name in packages(path)]
    assert sorted({*everything} | {"jax"}) == sorted({*everything})
    assert [name for name in everything if everything.count(name) > 1] == ["jax", "jax"]  # jax[tpu]
    assert not any(line.startswith("-") for path in LISTS.iterdir() for line in lines(path))


def test_what_the_package_imports_is_required():
    required = {
        imported_as(name)
        for file in ("inference.txt", "train.txt")
        for name in packages(LISTS / file)
    }
    extras = {
        room: {imported_as(name) for file in files for name in packages(LISTS / file)}
        for room, files in (
            ("serving", ("serve.txt", "export.txt")),
            ("export", ("export.txt", "litert.txt")),
            ("search", ("search.txt",)),
        )
    }
    extras["serving"].add("starlette")
    extras["interop/saturation.py"] = {"onnxruntime"}  # of whoever opens a program
    known = required | set(sys.stdlib_module_names) | {"albert"}
    for path in (ROOT / "albert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in names:
                own = path.relative_to(ROOT / "albert")
                if any(
                    name.partition(".")[0] in extras.get(k, ()) for k in (str(own), own.parts[0])
                ):
                    continue
                assert name.partition(".")[0] in known | {"apache_beam"}, f"{path}: {name}"


@pytest.mark.slow
def test_what_is_installed_works_from_another_folder(tmp_path):
    """Built and installed as pip does, but for the packages that it needs, which are here."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = files.stdout.splitlines() if not files.returncode else []
    if not names:
        pytest.skip("needs git and a checkout")
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    installed = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"),
            *("--target", installed, source),
        ],
        check=True,
    )
    there = {path.name for path in installed.iterdir()}
    assert {"albert", "configs"} <= there
    assert not there & {"tests", "tools", "benchmarks", "train", "train.py", "eval.py"}
    assert not (installed / "configs" / "ablations").exists()
    code = (
        "import albert, configs.default\n"
        f"assert albert.__file__.startswith({str(installed)!r}), albert.__file__\n"
        "config = albert.config('configs/quickstart.py:tiny', train={'num_steps': 20})\n"
        "print(config.train.num_steps, config.model.hidden_size)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=environment(installed),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "20 32\n", done.stderr
