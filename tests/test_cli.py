"""How programs end, whatever they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def ends(code, *before, **options):
    """How a program ends whose main function is `code`; `before`: what its command starts with."""
    text = f"from albert import cli\ndef main():\n    {code}\ncli.run(main, doc='A program.')"
    command = [*before, sys.executable, "-c", text]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nobody_has_to_read_to_the_end(unbuffered):
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = ends("print('a line')", stdout=write, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_told():
    done = ends("raise BrokenPipeError('of a worker')", stdout=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "BrokenPipeError: of a worker" in done.stderr


def test_nobody_has_to_read_at_all():
    done = ends("print('a line')", "bash", "-c", 'exec "$@" >&-', "bash")
    assert (done.returncode, done.stderr) == (0, "")
