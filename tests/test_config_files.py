"""Config files: found from any working folder, read in a notebook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import albert
from albert import cli
from albert.runtime.fields import ConfigError
from albert.train.config import Config, check
from albert.train.config_files import find_config
from configs import base

ROOT = Path(__file__).resolve().parent.parent


def test_a_config_of_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/base.py:v1,tiny") == f"{ROOT / 'configs/base.py'}:v1,tiny"
    assert find_config("configs/nothing.py") == "configs/nothing.py"
    assert find_config("base.py") == "base.py"
    # One that is there comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("")
    assert find_config("configs/base.py:tiny") == "configs/base.py:tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/mine.py:a") == f"{tmp_path}/mine.py:a"


def test_flags_name_it_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = f"{ROOT / 'configs/base.py'}:tiny"
    for before, after in {
        "--config=configs/base.py:tiny": f"--config={found}",
        "-config=configs/base.py:tiny": f"-config={found}",
        "configs/base.py:tiny": found,  # behind --config and a space
        "--config=mine.py": "--config=mine.py",
        "--config.data.folder=configs/base.py": "--config.data.folder=configs/base.py",
        "--workdir=configs/base.py": "--workdir=configs/base.py",
    }.items():
        assert cli._with_config_found(before) == after


def test_train_takes_it_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config=configs/base.py:tiny", "--describe"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert not os.listdir(tmp_path)


def test_a_notebook_gets_the_config_that_train_gets():
    values = base.get_config("tiny")
    values.train.num_steps = 12
    values.seed = 3
    config = albert.config("configs/base.py:tiny", **{"train.num_steps": 12, "seed": 3})
    assert isinstance(config, Config)
    assert config == check(values)
    assert config == albert.config("configs/base.py:tiny", train={"num_steps": 12}, seed=3)


def test_lists_and_paths_become_what_fields_are(text):
    config = albert.config("configs/base.py:tiny", data={"train_sources": [text]})
    assert config.data.train_sources == (str(text),)
    pairs = albert.config("configs/base.py:tiny", sharding={"rules": [["vocab", ["tensor"]]]})
    assert pairs.sharding.rules == (("vocab", ("tensor",)),)


def test_everything_that_is_wrong_is_told_at_once():
    overrides = {
        "train.num_stepps": 1,
        "trian": {"num_steps": 1},
        "train": 5,
        "seed.value": 1,
        "data.max_documents": "many",
        "model": {"hidden_size": 33},
    }
    with pytest.raises(ConfigError) as caught:
        albert.config("configs/base.py:tiny", **overrides)
    text = str(caught.value)
    assert "train.num_stepps is not a field; did you mean num_steps?" in text
    assert "trian is not a field; did you mean train?" in text
    assert "train is a section; set one of its fields, such as train." in text
    assert "seed is a field and not a section of fields" in text
    assert "data.max_documents is 'many', a str; it must be of type int" in text


def test_a_file_that_is_no_config_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no config file nothing\.py"):
        albert.config("nothing.py")
    with pytest.raises(ConfigError, match="unknown config argument 'tinny'; there is v1, v2"):
        albert.config("configs/base.py:tinny")
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.py has no function get_config"):
        albert.config(tmp_path / "mine.py")
