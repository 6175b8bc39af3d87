"""Compiled functions where neither the checkout nor a home can be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CODE = """
import numpy as np
from albert.data.pretraining.masking import choose_masked
starts = np.ones(4, bool)
print(len(choose_masked(starts, 2, 1, np.full(8, 0.5))))
"""


@pytest.mark.parametrize("room", [True, False], ids=["temporary folder", "nowhere"])
def test_the_package_is_imported_where_nothing_can_be_written(tmp_path, room):
    """Simulated by files where folders should be: who runs as root may write anywhere."""
    shutil.copytree(
        ROOT / "albert", tmp_path / "albert", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "albert" / "data" / "pretraining" / "__pycache__").write_text("")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    kept = temporary / f"albert-numba-{os.getuid()}"
    if not room:
        kept.write_text("")
    (tmp_path / "home").write_text("")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))
    }
    environment |= {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    assert bool(list(kept.rglob("*.nbi"))) == room
    assert (tmp_path / "home").is_file()


def test_starting_workers_leaves_the_environment_as_it_is(monkeypatch):
    from albert.data.loader import _start_quiet_resource_tracker

    for value in (None, "error"):
        if value is None:
            monkeypatch.delenv("PYTHONWARNINGS", raising=False)
        else:
            monkeypatch.setenv("PYTHONWARNINGS", value)
        _start_quiet_resource_tracker()
        assert os.environ.get("PYTHONWARNINGS") == value
