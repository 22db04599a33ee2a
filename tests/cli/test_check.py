import argparse

import pytest

from dandolo.cli import check
from dandolo.control.keys import Keys

CANARY = "sk-Canary0123456789ABCDEFcanary"
GOOD = """\
[[keys]]
name = "ci"
sha256 = "%s"
rpm = 5
[[providers]]
name = "venice"
profile = "venice"
key = { env = "VENICE_API_KEY" }
headers = { X-Private = "%s" }
[models]
fast = ["venice/llama"]
""" % ("0" * 64, CANARY)  # noqa: UP031


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "ANTHROPIC_API_KEY", "DANDOLO_KEY", "DANDOLO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VENICE_API_KEY", CANARY)
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return lambda *argv: check.run(parser.parse_args(argv))


def test_what_would_run_is_shown_without_secrets(run, tmp_path, capsys):
    (tmp_path / "d.toml").write_text(GOOD)
    assert run("d.toml") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert CANARY not in out
    assert "0" * 64 not in out
    for part in (
        "d.toml: valid",
        "127.0.0.1:8080",
        "venice: venice, https://api.venice.ai",
        "1 account",
        "fast = venice/llama",
    ):
        assert part in out
    assert "5 requests a minute" in out


def test_problems_go_to_standard_error_with_78(run, tmp_path, capsys):
    (tmp_path / "d.toml").write_text(GOOD + 'slow = ["nobody/x"]\n[server]\nlisten = ["x"]\n')
    assert run("d.toml") == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["d.toml:12", "models.slow[0]"],
        ["d.toml:14", "server.listen[0]"],
    ]


def test_a_public_address_without_keys_is_refused(run, tmp_path, capsys):
    (tmp_path / "d.toml").write_text('[server]\nlisten = ["0.0.0.0:80"]\n' + GOOD[GOOD.index("[[providers]]") :])
    assert run("d.toml") == 78
    assert "d.toml:2: server.listen[0]: 0.0.0.0:80" in capsys.readouterr().err


def test_keys_of_the_database_close_the_gateway(run, tmp_path, capsys):
    state = tmp_path / "state"
    (tmp_path / "d.toml").write_text(f'[server]\nstate_dir = "{state}"\n' + GOOD[GOOD.index("[[providers]]") :])
    assert run("d.toml") == 0
    assert "key        none: open access from this machine" in capsys.readouterr().out
    with Keys(state) as keys:
        keys.create("web", {}, 1e9)
    assert run("d.toml") == 0
    assert "key        none in the file; those that `dandolo keys list` shows hold" in capsys.readouterr().out


def test_without_a_file_the_environment_is_checked(run, capsys):
    assert run() == 0
    assert "environment: valid" in capsys.readouterr().out


def test_the_file_in_the_folder_is_the_default(run, tmp_path, capsys):
    (tmp_path / "dandolo.toml").write_text(GOOD)
    assert run() == 0
    assert "dandolo.toml: valid" in capsys.readouterr().out


def test_a_missing_file_is_a_problem(run, capsys):
    assert run("none.toml") == 78
    assert "none.toml: no such file" in capsys.readouterr().err
