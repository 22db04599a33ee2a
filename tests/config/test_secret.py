import copy
import dataclasses
import hashlib
import json
import os
import pickle

import pytest

from dandolo.config.problem import Unfit
from dandolo.config.secret import Secret, resolve

CANARY = "sk-Canary0123456789ABCDEFcanary"


def test_a_secret_is_shown_nowhere():
    secret = Secret(CANARY)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "%s" % secret, repr([secret])):  # noqa: UP031
        assert CANARY not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(AttributeError):
        secret._value = "x"
    assert copy.deepcopy(secret) is secret
    assert secret.reveal() == CANARY
    assert secret.digest() == hashlib.sha256(CANARY.encode()).digest()


def test_secrets_compare_by_value():
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"


def test_from_the_environment(tmp_path):
    assert resolve({"env": "X"}, {"X": CANARY}, tmp_path) == Secret(CANARY)


@pytest.mark.parametrize("environ", [{}, {"X_KEY": ""}])
def test_an_unset_variable_is_named(tmp_path, environ):
    with pytest.raises(Unfit, match="X_KEY"):
        resolve({"env": "X_KEY"}, environ, tmp_path)
    assert resolve({"env": "X_KEY"}, environ, tmp_path, unset_is_none=True) is None


@pytest.mark.parametrize("data", [b"abc", b"abc\n", b"abc\r\n"])
def test_one_newline_at_the_end_of_a_file_is_not_part_of_the_secret(tmp_path, data):
    (tmp_path / "key").write_bytes(data)
    assert resolve({"file": "key"}, {}, tmp_path) == Secret("abc")
    assert resolve({"file": str(tmp_path / "key")}, {}, tmp_path / "elsewhere") == Secret("abc")
    assert resolve({"credential": "key"}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path) == Secret("abc")


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"a\n\n", b"a\rb", b"a\0b", "schlüssel".encode(), b" a", b"a ", b"a\tb", b"x" * 20_000, b"\x7f"],
)
def test_unfit_contents_are_refused_without_being_shown(tmp_path, data):
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(Unfit):
        resolve({"file": "key"}, {}, tmp_path)


def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unfit, match="regular file"):
        resolve({"file": "pipe"}, {}, tmp_path)


@pytest.mark.parametrize("name", ["../key", "..", "a/b", "", "a\0b"])
def test_a_credential_cannot_leave_its_directory(tmp_path, name):
    with pytest.raises(Unfit):
        resolve({"credential": name}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        {"env": CANARY},
        {"file": CANARY},
        {"credential": CANARY},
        {CANARY: CANARY},
        {"env": CANARY, "file": CANARY},
        {"env": [CANARY]},
        [CANARY],
        {"env": "BAD"},
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(tmp_path, value):
    with pytest.raises(Unfit) as caught:
        resolve(value, {"BAD": CANARY + "\n", "CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_literal_is_told_what_to_write_instead(tmp_path):
    with pytest.raises(Unfit, match="env = "):
        resolve("abc", {}, tmp_path)


def test_dataclasses_that_hold_a_secret_do_not_show_it():
    from dandolo.config.schema import Account

    account = Account(key=Secret(CANARY))
    assert CANARY not in repr(account)
    assert CANARY not in repr(dataclasses.asdict(account))
