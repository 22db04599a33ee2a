"""What the README says to type, and the tables in it, are true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dandolo.api.endpoints import ENDPOINTS
from dandolo.cli import COMMANDS
from dandolo.config import parse
from dandolo.config.reference import markdown
from dandolo.sim import SimProvider, SimThread

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_table_of_keys_is_current():
    """To mend it: paste what `python -m dandolo.config` prints between the two markers."""
    _, begin, rest = README.partition("<!-- config: python -m dandolo.config -->")
    table, end, _ = rest.partition("<!-- /config -->")
    assert begin
    assert end
    assert table.strip() == markdown().strip()


def test_every_command_is_described():
    for name in COMMANDS:
        assert f"`dandolo {name}" in README


def test_every_parsed_endpoint_is_listed():
    for endpoint in ENDPOINTS.values():
        name = endpoint.path.removeprefix("/v1")
        assert name in README or name.rpartition("/")[2] in README or name.startswith("/image/")


def test_output_of_the_demo_has_the_form_that_is_shown():
    shown = re.search(r"```text\n(dandolo .*?)```", README, re.DOTALL)
    assert shown is not None
    done = subprocess.run(
        [sys.executable, "-m", "dandolo", "demo"], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )

    def form(text):
        return re.sub(r" *\d+(?:\.\d+)*", " N", text).strip()

    assert form(done.stdout) == form(shown[1])


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/dandolo demo",
        "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -q",
    ],
)
def test_first_commands_stand_there_literally(command):
    assert f"    {command}\n" in README


def test_tests_are_run_by_the_command_of_the_readme():
    run = (ROOT / ".ci" / "run").read_text()
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest -q" in run


def test_python_snippet_works(begin, configure, capsys):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet is not None
    with SimThread(SimProvider("venice")) as sims:
        served = begin("serve", "--config", configure(sims["venice"])).ready()
        names = {}
        exec(snippet[1].replace(":8080", f":{served.port}"), names)
        names["client"].close()
    assert "venice: hello model=llama-3.3-70b" in capsys.readouterr().out


def test_configuration_example_is_valid():
    example = next(text for text in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "[[providers]]" in text)
    digest = 'sha256 = "' + "0" * 64 + '"'
    config = parse(
        example.replace('sha256 = "…"', digest), "README", {"VENICE_API_KEY": "v" * 30, "OPENROUTER_API_KEY": "o" * 30}
    )
    assert [provider.name for provider in config.providers] == ["venice", "openrouter"]
    assert not config.warnings
