import dataclasses

import pytest

from dandolo.config import Config, ConfigError, parse, refuse_public_without_keys
from dandolo.config.schema import Key, Listen, Server

CANARY = "sk-Canary0123456789ABCDEFcanary"
ENVIRON = {"K": CANARY, "HOME": "/home/x"}
LOCAL = '[[providers]]\nname = "local"\nbase_url = "http://127.0.0.1:11434/v1"\n'
PEERS = LOCAL + "[cache]\nsecret = { env = 'K' }\n[cache.peers]\nname = 'a'\nlisten = ['unix:/run/a']\n"
KEY = "[[keys]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\n"


def problems(text):
    try:
        parse(text, "d.toml", ENVIRON)
    except ConfigError as error:
        refused = error
    else:
        return []
    assert CANARY not in str(refused)
    return [str(one) for one in refused.problems]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (LOCAL + LOCAL, "d.toml:5: providers[1].name: is the same name as providers[0].name"),
        (LOCAL + LOCAL.replace("local", "Local"), "providers[1].name"),
        (LOCAL + KEY + KEY.replace("'a'", "'b'"), "keys[1]: is the same key as keys[0]"),
        (LOCAL + KEY + KEY.replace("'a'", "'A'").replace("0", "1"), "keys[1].name"),
        (
            LOCAL + "[models]\nfast = ['locl/x']\n",
            'd.toml:5: models.fast[0]: unknown provider "locl": did you mean "local"?',
        ),
        (LOCAL + "[models]\nfast = ['venice/x']\n", "provider venice is not configured"),
        (LOCAL + "[models]\nfast = ['local/x']\nslow = ['fast']\n", "an alias cannot point at another alias"),
        (LOCAL + "[models]\nfast = ['local/x']\nFAST = ['local/y']\n", 'equals the alias "fast"'),
        (LOCAL + "[models]\nfast = ['local/x', 'local/x']\n", "twice"),
        (LOCAL + "[models]\nfast = []\n", "expected 1 to 32"),
        (LOCAL + "[models]\nauto = ['local/x']\n", "is taken"),
        (LOCAL + "[[providers.models]]\nid='llama'\n[models]\nfast = ['local/lama']\n", 'did you mean "llama"?'),
        (LOCAL + "[[providers.models]]\nid='a'\n[[providers.models]]\nid='a'\n", "same id"),
        (
            LOCAL + "probe = { model = 'b' }\n[[providers.models]]\nid='a'\n",
            'd.toml:4: providers[0].probe.model: observed "b", expected one of the provider\'s models',
        ),
        (LOCAL + "probe = { }\n", "providers[0].probe.model: is missing"),
        (LOCAL + "probe = 'a'\n", "providers[0].probe"),
        (LOCAL + "[[providers.models]]\nid='a'\ncapabilities=['toolz']\n", 'did you mean "tools"?'),
        (LOCAL + "[[providers.models]]\nid='a'\ncapabilities=['tools','tools']\n", "twice"),
        (LOCAL + "[[providers.models]]\nid='a'\noutput_tokens_max=0\n", "output_tokens_max"),
        (LOCAL + "[routing.weights]\nlatency=0\nerrors=0\nload=0\ncost=0\n", "all 0"),
        (LOCAL + "[routing.weights]\nlatency=-1\n", "expected a number"),
        (LOCAL + "[auto]\nquality = 1.5\n", "auto.quality: observed 1.5, expected a number: 0 to 1"),
        (LOCAL + "[auto]\nmax_latency = 5\n", "without a unit"),
        (LOCAL + "[[auto.models]]\n", "auto.models[0].name: is missing"),
        (LOCAL + "[[auto.models]]\nname='auto'\n", "cannot be auto itself"),
        (LOCAL + "[[auto.models]]\nname='a'\n[[auto.models]]\nname='a'\n", "is the same name as auto.models[0].name"),
        (LOCAL + "[[auto.models]]\nname='a'\nquality={coding=1}\n", "quality.coding: unknown use case"),
        (LOCAL + "[[auto.models]]\nname='a'\nquality={code=2}\n", "quality.code: expected a number: 0 to 1"),
        (LOCAL + "[[auto.models]]\nname='a'\nquality=1\n", "expected a table such as"),
        (LOCAL + "[[auto.models]]\nname='a'\ncapabilities=['hearing']\n", "tools | vision"),
        (
            LOCAL + "[[providers.models]]\nid='llama'\n[[auto.models]]\nname='lama'\n",
            'd.toml:7: auto.models[0].name: is no alias and no listed model: did you mean "llama"?',
        ),
        (LOCAL + "[limits]\nrequest_line_bytes_max='64KiB'\n", "header_bytes_max"),
        (LOCAL + "[limits]\nbody_memory_max='16MiB'\n", "limits.body_bytes_max"),
        (LOCAL + "[timeouts]\nbody_idle='2m'\nbody_total='1m'\n", "body_total"),
        (LOCAL + "http_idle = '1h'\n", "http_max_age"),
        (LOCAL + "[server]\nproxy_protocol = true\n", "needs trusted_proxies"),
        (LOCAL + "[server]\ncors_origins = ['*']\n", "without keys"),
        (LOCAL + "[server]\nadmin = '127.0.0.1:8080'\n", "is also listen[0]"),
        (
            LOCAL
            + KEY
            + "slots_reserved = 0.6\n"
            + KEY.replace("'a'", "'b'").replace("0", "1")
            + "slots_reserved = 0.6\n",
            "adds up",
        ),
        ("[server]\nannotate = true\n", "providers: is missing"),
        (LOCAL.replace("11434", "8080"), "own listener"),
        (LOCAL + "key = { env = 'K' }\n[[providers.accounts]]\nkey = { env = 'K' }\n", "has both key and accounts"),
        (LOCAL + "[[providers.accounts]]\n[[providers.accounts]]\n", "same owner"),
        (LOCAL + "accounts = []\n", "is empty"),
        ("[[providers]]\nname='a'\nprofile='azure'\n", "profile azure has no address"),
        ("[[providers]]\nname='a'\nbase_url='http://169.254.169.254/v1'\n", "link-local"),
        (PEERS.replace("name = 'a'\n", ""), "cache.peers.name: is missing"),
        (PEERS.replace("secret = { env = 'K' }\n", ""), "needs cache.secret"),
        (PEERS.replace("[cache]", "[cache]\nlevels = ['redis']"), 'needs "memory" in cache.levels'),
        (
            PEERS + "peers = ['10.0.0.2:7000']\n",
            "cache.peers.peers[0]: 10.0.0.2:7000 is reached over a network: set tls",
        ),
        (PEERS.replace("unix:/run/a", "127.0.0.1:0"), "cache.peers.listen[0]: observed 127.0.0.1:0, expected a host"),
        (PEERS + "peers = [':7000']\n", "cache.peers.peers[0]: observed :7000, expected a host"),
        (PEERS + "peers = ['unix:relative']\n", "absolute path"),
        (PEERS + "tls = { cert = '/none' }\n", "cache.peers.tls.key: is missing"),
        (PEERS.replace("'a'", "'a b'"), "cache.peers.name"),
    ],
)
def test_what_does_not_go_together(text, where):
    found = problems(text)
    assert [one for one in found if where in one], found


@pytest.mark.parametrize(
    "more",
    [
        "",
        "headers = { 'X-Title' = 'a b' }\n",
        "forward_headers = ['X-Mine', 'x-other']\n",
        "[models]\nfast = ['local/meta-llama/llama-3:free', 'openrouter/x']\n'gpt-4.1' = ['local/x']\n",
        # Defaults may be above what the file sets: the lower bound holds.
        "[limits]\nin_flight_max = 10\n[timeouts]\ntotal = '30s'\n",
        "[limits]\nbody_memory_max = '128MiB'\n",
        PEERS.removeprefix(LOCAL) + "peers = ['unix:/run/a', 'unix:/run/b']\n",
        "[cache]\nsecret = { env = 'K' }\n[cache.peers]\nname = 'a'\n",
        "[server]\ndrain_delay = '0s'\nheartbeat = 0\n",
    ],
)
def test_what_goes_together(more):
    assert problems(LOCAL + more) == []


@pytest.mark.parametrize(
    "header",
    [
        "Host", "Content-Length", "content_length", "Transfer-Encoding", "TE", "Connection", "Upgrade", "Keep-Alive",
        "Proxy-Connection", "Trailer", "Authorization", "Proxy-Authorization", "x-api-key", "API-Key", "Cookie",
        "X-Forwarded-For", "Forwarded", "Expect", "Accept-Encoding", "a b", "a:b", "", "ä", "a\\nb",
    ],
)  # fmt: skip
def test_headers_that_cannot_be_configured(header):
    assert problems(LOCAL + f'headers = {{ "{header}" = "{CANARY}" }}\n')
    assert problems(LOCAL + f'forward_headers = ["{header}"]\n')


@pytest.mark.parametrize("value", ["a\\r\\nB: c", "\\u0000", " a", "é", "a\\u007f"])
def test_header_values_that_cannot_be_configured(value):
    assert problems(LOCAL + f'headers = {{ X = "{value}" }}\n')


def test_a_name_that_is_a_profile_is_no_profile_yet():
    with pytest.raises(ConfigError) as refused:
        parse('[[providers]]\nname = "venice"\n', "d", {"HOME": "/h"})
    assert 'profile generic has no address of its own; profile = "venice" has' in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "api.example/v1", "ftp://x/v1", "http://", "http:///v1", f"https://u:{CANARY}@x/v1", "https://x/v1?a=b",
        "https://x/v1#a", "https://x:0/", "https://x:99999/", "https://x y/", "https://[::1/v1", "https://ü/", "",
    ],
)  # fmt: skip
def test_base_urls_that_are_refused(url):
    assert problems(LOCAL.replace("http://127.0.0.1:11434/v1", url))


def test_a_request_default_cannot_be_what_the_caller_asks():
    assert problems(LOCAL + "defaults = { stream = true }\n")
    assert problems(LOCAL + "defaults = { a = { b = [1979-05-27] } }\n")
    assert problems(LOCAL + "defaults = { a = nan }\n")


@pytest.mark.parametrize(
    "where",
    [
        "0.0.0.0:80",
        "[::]:80",
        ":80",
        "10.0.0.1:80",
        "gateway.example:80",
        "[::ffff:127.0.0.1]:80",
        "localhost.example:1",
    ],
)
@pytest.mark.parametrize("key", ["listen", "admin"])
def test_a_public_address_without_keys_is_refused(where, key):
    value = f"['{where}']" if key == "listen" else f"'{where}'"
    config = parse(f"[server]\n{key} = {value}\n" + LOCAL, "d.toml", ENVIRON)
    with pytest.raises(ConfigError, match=r"d\.toml:2: server\." + key):
        refuse_public_without_keys(config)
    refuse_public_without_keys(parse(f"[server]\n{key} = {value}\n" + LOCAL + KEY, "d.toml", ENVIRON))


@pytest.mark.parametrize("where", ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80", "unix:/run/a.sock"])
def test_a_local_address_needs_no_keys(where):
    refuse_public_without_keys(parse(f"[server]\nlisten = ['{where}']\n" + LOCAL, "d.toml", ENVIRON))


def test_addresses_from_flags_are_judged_too():
    public = Server(listen=(Listen("tcp", "0.0.0.0", 1),))
    with pytest.raises(ConfigError, match=r"server\.listen\[0\]"):
        refuse_public_without_keys(Config(server=public))
    refuse_public_without_keys(dataclasses.replace(Config(server=public), keys=(Key(name="a", digest=b"0" * 32),)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:65536", "expected 0 to 65535"),
        ("8080", "127.0.0.1:8080"),
        ("unix:relative", "absolute"),
        ("unix:/" + "a" * 107, "at most 107 bytes"),
        ("[::g]:1", "HOST:PORT"),
        ("999.1.1.1:1", "not an IP address"),
        ("http://x:1", "HOST:PORT"),
        ("::1:80", "HOST:PORT"),
    ],
)
def test_bad_listen_addresses(text, expected):
    assert expected in "\n".join(problems(f"[server]\nlisten = ['{text}']\n" + LOCAL))


def test_a_network_with_host_bits_is_told_what_was_meant():
    assert "10.0.0.0/8" in "\n".join(problems("[server]\ntrusted_proxies = ['10.1.0.0/8']\n" + LOCAL))


def test_a_certificate_that_is_none_is_refused_at_once(tmp_path):
    (tmp_path / "c.pem").write_text("nothing")
    text = f"[server]\ntls = {{ cert = '{tmp_path}/c.pem', key = '{tmp_path}/c.pem' }}\n" + LOCAL
    assert any("server.tls: cannot be used" in one for one in problems(text))


def test_a_key_over_plain_http_is_warned_of():
    text = "[[providers]]\nname='a'\nbase_url='http://api.example/v1'\nkey={ env='K' }\n"
    assert any("unencrypted" in one for one in parse(text, "d", ENVIRON).warnings)
    assert parse(LOCAL + "key = { env = 'K' }\n", "d", ENVIRON).warnings == ()


def test_authority_that_is_no_certificate_is_told_with_its_place(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    text = LOCAL + f"ca = '{tmp_path}/ca.pem'\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "d.toml", {})
    assert "providers[0].ca: cannot be used" in str(caught.value)
    assert "expected a PEM file of certificates" in str(caught.value)
