"""Redis URLs: every form, and reasons that never show what may be a password."""

from __future__ import annotations

import pytest

from dandolo.config import parse
from dandolo.config.problem import Unfit
from dandolo.config.redisurl import RedisUrl, parse_redis_url
from dandolo.config.secret import Secret

CANARY = "sk-hunter2"

FORMS = [
    ("redis://127.0.0.1", RedisUrl(host="127.0.0.1")),
    ("redis://cache.example:6380/", RedisUrl(host="cache.example", port=6380)),
    ("redis://127.0.0.1/3", RedisUrl(host="127.0.0.1", database=3)),
    ("redis://[::1]:7000/0", RedisUrl(host="::1", port=7000)),
    ("rediss://a", RedisUrl(host="a", tls=True)),
    ("redis+cluster://a:7000", RedisUrl(host="a", port=7000, cluster=True)),
    ("rediss+cluster://a/0", RedisUrl(host="a", tls=True, cluster=True)),
    ("redis://:p%40ss%3A@a", RedisUrl(host="a", password=Secret("p@ss:"))),
    ("redis://me:secret@a/1", RedisUrl(host="a", username="me", password=Secret("secret"), database=1)),
    ("unix:///run/redis/redis.sock", RedisUrl(path="/run/redis/redis.sock")),
    ("unix://me:secret@/r.sock", RedisUrl(path="/r.sock", username="me", password=Secret("secret"))),
    ("unix://:s%2Fs@/r.sock", RedisUrl(path="/r.sock", password=Secret("s/s"))),
]

UNFIT = [
    f"http://:{CANARY}@a",
    f"redis://:{CANARY}@",
    f"redis://:{CANARY}@a/x",
    f"redis://:{CANARY}@a/1/2",
    f"redis://:{CANARY}@a/-1",
    f"redis://:{CANARY}@a/12345",
    f"redis://:{CANARY}@a:99999",
    f"redis://:{CANARY}@a?db=1",
    f"redis://{CANARY}@a",
    f"redis+cluster://:{CANARY}@a/1",
    f"unix://:{CANARY}@",
    f"unix://{CANARY}@/r.sock",
    f"unix:{CANARY}",
    f"unix://:{CANARY}@/" + "r" * 107,
]


@pytest.mark.parametrize(("url", "expected"), FORMS, ids=[row[0] for row in FORMS])
def test_every_form_says_where_and_as_whom(url: str, expected: RedisUrl) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize("url", UNFIT)
def test_what_does_not_fit_is_told_without_being_shown(url: str) -> None:
    with pytest.raises(Unfit) as caught:
        parse_redis_url(url)
    assert CANARY not in str(caught.value)


def test_where_is_said_without_as_whom() -> None:
    for url, where in (
        (f"redis://me:{CANARY}@[::1]:7000/2", "[::1]:7000"),
        (f"redis://:{CANARY}@a", "a:6379"),
        (f"unix://:{CANARY}@/r.sock", "unix:/r.sock"),
    ):
        assert str(parse_redis_url(url)) == where
        assert CANARY not in repr(parse_redis_url(url))


def test_the_file_takes_the_same_forms() -> None:
    provider = '[[providers]]\nname = "venice"\nprofile = "venice"\nkey = { env = "K" }\n'
    environ = {"K": "k" * 30, "URL": "rediss://me:secret@a:6380/2", "HOME": "/h"}
    config = parse(provider + '[cache.redis]\nurl = { env = "URL" }\n', "d", environ)
    assert parse_redis_url(config.cache.redis.url.reveal()).username == "me"
    config = parse(provider + '[cache.redis]\nurl = "unix:///run/r.sock"\n', "d", environ)
    assert parse_redis_url(config.cache.redis.url.reveal()).path == "/run/r.sock"
