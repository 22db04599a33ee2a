"""Where the workers of a host stand among those that share its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from dandolo.config import Config, parse
from dandolo.config.address import parse_listen
from dandolo.gateway.membership import membership_of

START = "[[providers]]\nname='p'\nbase_url='http://127.0.0.1:9/v1'\n[cache]\nsecret = { env = 'K' }\n"


def config(toml: str, directory: Path, before: str = "") -> Config:
    state = f"[server]\nstate_dir = '{directory}/state'\n{before}"
    return parse(state + START + toml, "d", {"K": "k" * 30, "HOME": "/h"})


def places(*texts: str) -> tuple[object, ...]:
    return tuple(map(parse_listen, texts))


def test_workers_of_a_host_share_without_being_told(tmp_path: Path) -> None:
    found = membership_of(config("", tmp_path), 1, 2)
    assert found is not None
    path = f"unix:{tmp_path}/state/peers.sock"
    assert (found.name, found.listen, found.peers) == ("worker-1", places(f"{path}.1"), places(path))


def test_nothing_is_shared_where_it_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert membership_of(config("", tmp_path), 0, 1) is None
    assert membership_of(config("levels = []\n", tmp_path), 0, 4) is None
    assert membership_of(config("", tmp_path / ("d" * 100)), 0, 4) is None
    assert "too long for a Unix socket" in caplog.text
    assert membership_of(config("[cache.peers]\nname = 'a'\n", tmp_path), 0, 1) is None
    listens = "[cache.peers]\nname = 'a'\nlisten = ['unix:/run/a']\n"
    assert membership_of(config(listens, tmp_path, "privacy = true\n"), 0, 4) is None
    assert not (tmp_path / "state").exists()


def test_one_worker_stands_where_it_is_configured(tmp_path: Path) -> None:
    toml = "[cache.peers]\nname = 'a'\nlisten = ['unix:/run/a']\npeers = ['unix:/run/a', 'unix:/run/b']\n"
    found = membership_of(config(toml, tmp_path))
    assert found is not None
    assert (found.name, found.listen, found.peers) == ("a", places("unix:/run/a"), places("unix:/run/b"))


def test_workers_of_a_host_know_each_other_by_sockets_in_its_state_folder(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/state/peers.sock"
    of = [membership_of(config("[cache.peers]\nname = 'a'\n", tmp_path), slot, 3) for slot in range(3)]
    assert [one.name for one in of if one] == ["a-0", "a-1", "a-2"]
    assert [one.listen for one in of if one] == [places(path), places(f"{path}.1"), places(f"{path}.2")]
    assert [one.peers for one in of if one] == [
        places(f"{path}.1", f"{path}.2"),
        places(path, f"{path}.2"),
        places(path, f"{path}.1"),
    ]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_their_ports_follow_the_first_ones_and_their_own_host_is_not_dialled_over_the_network(tmp_path: Path) -> None:
    # Files that must exist are not what this is about: a plain place with the shape of TLS would need real ones.
    toml = "[cache.peers]\nname = 'a'\nlisten = ['unix:/run/a']\npeers = ['unix:/run/a.1', 'unix:/run/b']\n"
    found = membership_of(config(toml, tmp_path), 1, 2)
    assert found is not None
    assert (found.listen, found.peers) == (places("unix:/run/a.1"), places("unix:/run/b", "unix:/run/a"))


def test_a_state_folder_too_deep_for_a_socket_is_told(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with pytest.raises(OSError, match="too long for a Unix socket"):
        membership_of(config("[cache.peers]\nname = 'a'\n", deep), 0, 2)
