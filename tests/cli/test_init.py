import argparse
import os

import pytest

from dandolo.cli import init
from dandolo.config import load
from dandolo.config.known import KNOWN, key_variable


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in KNOWN:
        monkeypatch.delenv(key_variable(name), raising=False)
    parser = argparse.ArgumentParser()
    init.add_arguments(parser)
    return lambda *argv: init.run(parser.parse_args(argv))


def test_the_file_is_valid_once_the_variable_is_set(run, tmp_path, capsys):
    assert run() == 0
    assert "VENICE_API_KEY" in capsys.readouterr().out
    config = load(tmp_path / "dandolo.toml", {"VENICE_API_KEY": "k" * 30, "HOME": "/h"})
    assert [one.name for one in config.providers] == ["venice"]
    assert len((tmp_path / "dandolo.toml").read_text().splitlines()) < 260


def test_the_providers_are_those_of_the_environment(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROQ_API_KEY", "g" * 30)
    monkeypatch.setenv("OPENAI_API_KEY", "o" * 30)
    assert run("mine.toml") == 0
    assert "g" * 30 not in capsys.readouterr().out + (tmp_path / "mine.toml").read_text()
    assert [one.name for one in load(tmp_path / "mine.toml", os.environ).providers] == ["openai", "groq"]


def test_a_file_is_replaced_only_when_forced(run, tmp_path, capsys):
    (tmp_path / "dandolo.toml").write_text("mine")
    assert run() == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "dandolo.toml").read_text() == "mine"
    assert run("--force") == 0
    assert (tmp_path / "dandolo.toml").read_text() != "mine"


def test_a_folder_that_is_not_there_is_said(run, capsys):
    assert run("none/d.toml") == 1
    assert "cannot write" in capsys.readouterr().err
