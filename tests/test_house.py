"""The rooms of the house and which way imports run; see docs/design.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A folder of the package may import itself and the folders in front of it.
FOLDERS = [
    "runtime",
    "models",
    "data",
    "checkpoints",
    "interop",
    "export",
    "tasks",
    "train",
    "diagnostics",
    "answers",
    "inference",
    "search",
    "serving",
    "cli",
    "programs",
]


def modules():
    for path in sorted((ROOT / "albert").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder(name):
    return [*name.split("."), ""][1]


def test_imports_run_one_way():
    order = {name: place for place, name in enumerate(FOLDERS)}
    for name, tree in modules():
        if name == "albert":
            continue
        assert folder(name) in order, f"{name}: its folder is not in tests/test_house.py"
        for imported in imports(tree):
            if folder(imported) in order and imported.startswith("albert."):
                one_way = order[folder(imported)] <= order[folder(name)]
                assert one_way, f"{name} imports {imported}"


def test_the_package_knows_neither_configs_nor_tools_nor_tensorflow():
    for name, tree in modules():
        roots = {i.split(".")[0] for i in imports(tree)}
        assert not roots & {"configs", "tools", "train", "eval", "tests", "tensorflow"}, name


def test_data_never_imports_jax():
    for name, tree in modules():
        if name.startswith("albert.data"):
            assert not {i.split(".")[0] for i in imports(tree)} & {"jax", "flax", "optax"}, name


@pytest.mark.parametrize(
    "module",
    [
        "albert",
        "albert.train.loop",
        "albert.train.evaluate",
        "albert.inference",
        "albert.cli",
        "train",
    ],
)
def test_importing_starts_no_device_and_no_tensorflow(module):
    code = (
        f"import {module}, sys\n"
        "assert 'tensorflow' not in sys.modules\n"
        "if 'jax' in sys.modules:\n"
        "    from jax._src import xla_bridge\n"
        "    assert not xla_bridge._backends, 'a device was started'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "program",
    [
        "train.py",
        "eval.py",
        "tools/show_batch.py",
        "tools/convert.py",
        "tools/prepare.py",
        "tools/corpus_stats.py",
        "tools/sweep.py",
        "tools/report.py",
        "tools/squad.py",
        "tools/exits.py",
        "tools/capacity.py",
        "tools/check_checkpoint.py",
        "tools/serve.py",
        "tools/search_index.py",
        "tools/launch.py",
    ],
)
def test_help_teaches_without_loading_jax(program):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{program}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{program}', run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert f"python {program}" in done.stdout


def test_the_tests_that_the_docs_name_exist():
    named = set()
    for path in (ROOT / "docs").glob("*.md"):
        named |= set(re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", path.read_text()))
    assert len(named) > 20
    for file, function in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {function}" in source, f"{file}::{function}"
