import argparse
import hashlib
import re

import pytest

from dandolo.cli import keys
from dandolo.config import parse


def run(*argv):
    parser = argparse.ArgumentParser()
    keys.add_arguments(parser)
    return keys.run(parser.parse_args(argv))


def test_a_key_is_printed_once_with_the_lines_to_paste(capsys):
    assert run("create", "web") == 0
    out = capsys.readouterr().out
    key = out.splitlines()[0]
    assert re.fullmatch(r"dnd_[A-Za-z0-9_-]{32}", key)
    assert out.count(key) == 1
    provider = '[[providers]]\nname = "l"\nbase_url = "http://127.0.0.1:1/v1"\n'
    config = parse(out[out.index("[[keys]]") :] + provider, "d", {"HOME": "/h"})
    assert config.keys[0].name == "web"
    assert config.keys[0].digest == hashlib.sha256(key.encode()).digest()


def test_two_keys_differ():
    assert keys.new_key() != keys.new_key()


@pytest.mark.parametrize("name", ["a b", 'x"\nsha256 = "', "", "a" * 65])
def test_a_name_that_would_break_the_file_is_refused(name, capsys):
    assert run("create", name) == 2
    assert capsys.readouterr().out == ""
