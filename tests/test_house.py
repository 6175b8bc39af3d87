"""The rooms of the house and which way imports run; see docs/design.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each room may import of the package. A later room may import every earlier one.
ROOMS = [
    ["albert", "albert.running"],
    ["albert.places"],
    [
        "albert.running.signals",
        "albert.running.watchdog",
        "albert.running.console",
        "albert.checksums",
    ],
    ["albert.manifest", "albert.orbax_io"],
    ["albert.data.tokenizer", "albert.data.store", "albert.data.reading", "albert.data.sentences"],
    ["albert.data.files", "albert.data.python_docs", "albert.data.masking"],
    ["albert.data.text_files"],
    ["albert.data.tables"],
    ["albert.data.sources", "albert.data.corpus", "albert.data.corpus_parts"],
    ["albert.data.vocabulary", "albert.data.corpus_writer", "albert.data.plan"],
    ["albert.data.corpus_beam", "albert.data.examples"],
    ["albert.data.statistics", "albert.data.pipeline", "albert.data.prepare"],
    ["albert.parameter_sharing"],
    ["albert.model_config"],
    ["albert.model", "albert.optimiser", "albert.sharding", "albert.checkpoint", "albert.metrics"],
    ["albert.losses"],
    ["albert.train_step", "albert.config"],
    ["albert.interop.weights"],
    ["albert.interop.huggingface_tokenizer"],
    ["albert.interop.original", "albert.interop.huggingface", "albert.interop.workdir"],
    ["albert.interop.formats", "albert.interop.reshare"],
    ["albert.pretrained", "albert.init_from", "albert.cost", "albert.evaluation"],
    ["albert.running.lock", "albert.running.identity", "albert.running.log"],
    ["albert.running.saving", "albert.running.stopping"],
    ["albert.running.divergence"],
    ["albert.loop", "albert.diagnostics"],
    ["albert.claims.compiled", "albert.claims.verdicts", "albert.claims.energy"],
    ["albert.claims.tpu"],
    ["albert.claims.measure", "albert.claims.page"],
    ["albert.sweeps.grid"],
    ["albert.sweeps.plan"],
    ["albert.sweeps.runner", "albert.sweeps.results"],
    ["albert.sweeps.plots"],
    ["albert.cli"],
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
# Imported by a function when it is called, so that the rest costs nothing.
LAZY = {("albert", "albert.pretrained")}
# These know nothing of the rest of the package.
ALONE = ["albert.parameter_sharing", "albert.losses", "albert.optimiser", "albert.sharding",
         "albert.checksums", "albert.places",
         "albert.running.signals", "albert.running.watchdog", "albert.running.console"]  # fmt: skip
# And these only what stands here.
KNOWN = {
    "albert.manifest": ["albert.checksums", "albert.places"],
    "albert.metrics": ["albert.places"],
    "albert.orbax_io": ["albert.places"],
    "albert.checkpoint": ["albert.manifest", "albert.orbax_io", "albert.places"],
    "albert.model_config": ["albert.parameter_sharing"],
    "albert.model": ["albert.model_config"],
}


EMPTY = ("albert.data", "albert.interop", "albert.sweeps", "albert.claims")


def modules():
    for path in sorted((ROOT / "albert").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imports(tree, top_level_only=False):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from package import module" means the module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in LEVEL else node.module for name in names)


def test_imports_run_one_way():
    for name, tree in modules():
        if name in (*EMPTY, "albert.running"):
            continue
        assert name in LEVEL, f"{name} has no room in tests/test_house.py"
        ours = [i for i in imports(tree) if i.split(".")[0] == "albert" and i != "albert"]
        for imported in ours:
            one_way = LEVEL[imported] < LEVEL[name] or (name, imported) in LAZY
            assert one_way, f"{name} imports {imported}"
            assert name not in ALONE, f"{name} imports {imported}"
            known = KNOWN.get(name, ours)
            assert imported in known, f"{name} imports {imported}"


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
    ["albert", "albert.loop", "albert.evaluation", "albert.pretrained", "albert.cli", "train"],
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
        "tools/check_checkpoint.py",
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


def test_no_file_is_too_long():
    for path in (ROOT / "albert").rglob("*.py"):
        assert path.read_text().count("\n") <= 400, path


def test_the_tests_that_the_docs_name_exist():
    named = set()
    for path in (ROOT / "docs").glob("*.md"):
        named |= set(re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", path.read_text()))
    assert len(named) > 20
    for file, function in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {function}" in source, f"{file}::{function}"
