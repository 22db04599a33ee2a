import dataclasses
import hashlib
from ipaddress import ip_network
from pathlib import Path

import pytest

from dandolo.config import ConfigError, Secret, from_environment, load, parse
from dandolo.config.schema import Config, Limits, Listen, Timeouts

CANARY = "sk-Canary0123456789ABCDEFcanary"
ENVIRON = {"VENICE_API_KEY": CANARY, "DANDOLO_CACHE_SECRET": "c" * 32, "HOME": "/home/x"}
MINIMAL = """\
[[providers]]
name = "venice"
profile = "venice"
key = { env = "VENICE_API_KEY" }
"""
# The documented file, whole; "…" is to be filled in.
CONTRACT = Path(__file__).with_name("contract.toml").read_text()


def refused(text, environ=ENVIRON):
    with pytest.raises(ConfigError) as caught:
        parse(text, "d.toml", environ)
    assert CANARY not in str(caught.value)
    assert caught.value.exit_code == 78
    return str(caught.value)


def contract(tmp_path: Path) -> str:
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("gateway.example")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    values = {
        'cert = "…", key = "…"': 'cert = "cert.pem", key = "key.pem"',
        'sha256 = "…"': f'sha256 = "{"ab" * 32}"',
        '"X-Title" = "…"': '"X-Title" = "Dandolo"',
        'api_version = "…"': 'api_version = "2024-10-21"',
        'ca = "…"': 'ca = "ca.pem"',
    }
    text = CONTRACT
    for old, new in values.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def test_a_table_for_auto_is_read_whole():
    text = (
        MINIMAL
        + """
[auto]
max_latency = "2s"
max_cost_usd = 0
cost_weight = 4
[[auto.models]]
name = "venice/llama-3.3-70b"
quality = { question = 1, code = 0.7 }
context_tokens = 65_536
capabilities = ["tools"]
latency = "800ms"
[[auto.models]]
name = "other"
"""
    )
    auto = parse(text, "d.toml", ENVIRON).auto
    assert (auto.max_latency, auto.max_cost_usd, auto.quality, auto.cost_weight) == (2.0, 0.0, 0.8, 4.0)
    first, second = auto.models
    assert dict(first.quality) == {"question": 1.0, "code": 0.7}
    assert (first.context_tokens, first.capabilities, first.latency) == (65_536, ("tools",), 0.8)
    assert (dict(second.quality), second.context_tokens, second.capabilities, second.latency) == ({}, None, None, None)


def test_the_contract_works_as_written(tmp_path):
    config = parse(contract(tmp_path), str(tmp_path / "dandolo.toml"), ENVIRON)
    assert config.server.listen == (Listen("tcp", "127.0.0.1", 8080),)
    assert config.server.tls is not None
    assert config.server.tls.cert == tmp_path / "cert.pem"
    assert config.server.trusted_proxies == (ip_network("10.0.0.0/8"),)
    assert config.server.state_dir == Path("/var/lib/dandolo")
    assert config.server.forward_proxy is None
    # The contract writes out every default of these two sections.
    assert config.limits == Limits()
    assert config.timeouts == Timeouts()
    (key,) = config.keys
    assert (key.name, key.digest, key.priority, key.concurrent) == ("ci", b"\xab" * 32, "high", 64)
    assert key.models == ("fast", "venice/*")
    assert key.tags == {"team": "web"}
    (provider,) = config.providers
    assert provider.accounts[0].owner == "alice"
    assert provider.accounts[0].key == Secret(CANARY)
    assert provider.models[0].input_usd_per_mtok == 0.7
    assert provider.defaults == {"venice_parameters": {"include_venice_system_prompt": False}}
    assert config.models == {"fast": ("venice/llama-3.3-70b",)}
    assert config.routing.attempts_max == 3
    assert config.cache.levels == ("memory", "redis", "sqlite")
    assert config.cache.sqlite.bytes_max == 10 << 30
    assert any("openrouter is not configured" in one for one in config.warnings)
    assert CANARY not in repr(config)


def test_one_provider_is_enough():
    config = parse(MINIMAL, "d.toml", ENVIRON)
    assert config.providers[0].base_url == "https://api.venice.ai/api/v1"
    assert dataclasses.replace(config, providers=(), source="", lines={}, server=Config().server) == Config()
    assert config.warnings == ()


def test_a_loaded_configuration_cannot_be_changed():
    config = parse(MINIMAL + '[models]\nfast = ["venice/x"]\n', "d.toml", ENVIRON)
    with pytest.raises(TypeError):
        config.models["slow"] = ()
    with pytest.raises(TypeError):
        config.providers[0].headers["A"] = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.annotate = True


def test_all_problems_are_found_with_their_lines():
    text = refused(
        '[server]\nlisten = ["nowhere"]\nworkers = 0\n[timeout]\nx = 1\n[[providers]]\nname = "a b"\n'
        'profil = "venice"\nkey = { env = "UNSET_KEY" }\n[[keys]]\nname = "ci"\nsha256 = "abc"\n'
    )
    lines = {line.split(": ")[0] + " " + line.split(": ")[1] for line in text.splitlines()}
    assert lines == {
        "d.toml:2 server.listen[0]",
        "d.toml:3 server.workers",
        "d.toml:4 timeout",
        "d.toml:6 providers[0].base_url",
        "d.toml:7 providers[0].name",
        "d.toml:8 providers[0].profil",
        "d.toml:9 providers[0].key",
        "d.toml:12 keys[0].sha256",
    }
    assert "did you mean timeouts?" in text
    assert "did you mean profile?" in text
    assert "UNSET_KEY is unset" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = \n", "d.toml:1: not valid TOML"),
        ("a = 1\na = 2\n", "d.toml:2: not valid TOML"),
        ("a = [", "not valid TOML"),
        ("x = " + "[" * 50_000, "nested too deep"),
        ("x = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_text_that_is_not_toml(text, expected):
    assert expected in refused(text)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match="dandolo init"):
        load(tmp_path / "none.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"# \n# \xfc\n")
    with pytest.raises(ConfigError, match=r"latin\.toml:2: not UTF-8"):
        load(tmp_path / "latin.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, {})
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(tmp_path / "bom.toml", ENVIRON).providers


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("[limits]\nheaders_max = 0\n", "0 does not mean unlimited"),
        ('[limits]\nbody_bytes_max = "0B"\n', "0 does not mean unlimited"),
        ('[timeouts]\nconnect = "0s"\n', "0 does not mean unlimited"),
        ("[timeouts]\ntotal = 600\n", '"600s" for seconds'),
        ("[limits]\nheaders_max = true\n", "expected a whole number"),
        ("[limits]\nheaders_max = 100.0\n", "expected a whole number"),
        ('[timeouts]\nkeep_alive_idle = "2h"\n', "expected 1s to 1h"),
        ("[server]\ntotal = 1\n", "belongs in [timeouts]"),
        ("[server]\nport = 1\n", "did you mean listen?"),
        ("[[server]]\n", "expected a table"),
        ("[server]\nlisten = []\n", "expected 1 to 64"),
        ('[server]\nlisten = "127.0.0.1:1"\n', "expected an array"),
        ("[keys]\nname = 'x'\n", "write [[keys]]"),
        ("[[keys]]\nname = 'x'\n", "needs sha256"),
        (f"[[keys]]\nname = 'x'\nsha256 = '{'0' * 64}'\nkey = {{ env = 'VENICE_API_KEY' }}\n", "keep one"),
        (f"[[keys]]\nname = 'x'\nsha256 = '{CANARY}'\n", "64 hexadecimal digits"),
        (f"[[keys]]\nname = 'x'\nkey = '{CANARY}'\n", "never written in the file"),
        (f"[[keys]]\nname = 'x'\nsha256 = '{'0' * 64}'\npriority = 'hgih'\n", 'did you mean "high"?'),
        (f"[[keys]]\nname = 'x'\nsha256 = '{'0' * 64}'\nbudget_usd_per_day = 0\n", "0 does not mean unlimited"),
        (f"[[keys]]\nname = 'x'\nsha256 = '{'0' * 64}'\nbudget_usd_per_day = nan\n", "expected a number"),
        ("[models]\ngpt-4.1 = ['venice/x']\n", "needs quotes"),
        ("[server]\nstate_dir = 'relative'\n", "absolute"),
        ("[server]\ntls = { cert = 'none.pem' }\n", "key: is missing"),
        (f"[server]\ntls = {{ cert = '{CANARY}', key = 'none.pem' }}\n", 'cannot read file "none.pem"'),
        ("[cache.redis]\nurl = 'http://x'\n", "redis://"),
        (f"[cache.redis]\nurl = 'redis://:{CANARY}@x'\n", "credentials"),
        (f"[server]\nforward_proxy = 'http://u:{CANARY}@x'\n", "credentials"),
        ("[cache]\nlevels = ['memory', 'memory']\n", "twice"),
        ("mood = 3\n", "unknown key"),
        ("[routing]\nattempts_max = 99\n", "expected 1 to 10"),
    ],
)
def test_what_is_refused(more, expected):
    assert expected in refused(MINIMAL + more)


@pytest.mark.parametrize("value", ["{}", "1", "'x'", "[]", "[1]", "true", "1979-05-27", "[[1]]", "{ a = {} }", "inf"])
def test_every_key_refuses_or_takes_any_kind_of_value(value):
    from dandolo.config.spec import keys_of, walk

    for path, many, cls in walk(Config):
        header = ".".join(path)
        for name in keys_of(cls):
            before = "[[providers]]\n" if path[0] == "providers" and len(path) > 1 else ""
            text = f"{before}{'[[' if many else '['}{header}{']]' if many else ']'}\n{name} = {value}\n"
            with pytest.raises(ConfigError) as caught:
                parse(text + "[[unknown]]\n", "d.toml", ENVIRON)
            assert all(problem.line for problem in caught.value.problems)


def test_keys_are_kept_as_digests():
    config = parse(MINIMAL + "[[keys]]\nname = 'x'\nkey = { env = 'VENICE_API_KEY' }\n", "d.toml", ENVIRON)
    assert config.keys[0].digest == hashlib.sha256(CANARY.encode()).digest()


def test_state_dir_follows_the_environment():
    for environ, expected in (
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x/state", "HOME": "/h"}, "/x/state/dandolo"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/dandolo"),
    ):
        assert parse(MINIMAL, "d", {**ENVIRON, **environ}).server.state_dir == Path(expected)


def test_a_proxy_variable_may_be_unset_a_provider_key_may_not():
    text = MINIMAL + "[server]\nforward_proxy = { env = 'HTTPS_PROXY' }\n"
    assert parse(text, "d", ENVIRON).server.forward_proxy is None
    proxied = parse(text, "d", {**ENVIRON, "HTTPS_PROXY": f"http://u:{CANARY}@proxy:3128"})
    assert proxied.server.forward_proxy is not None
    assert CANARY not in repr(proxied)
    assert "VENICE_API_KEY is unset" in refused(MINIMAL, {})


def test_the_environment_alone():
    config = from_environment(
        {
            "OPENAI_API_KEY": CANARY,
            "OPENAI_BASE_URL": "https://eu.example/v1",
            "GROQ_API_KEY": "g" * 30,
            "DANDOLO_KEY": "d" * 30,
        }
    )
    assert [(one.name, one.profile, one.base_url) for one in config.providers] == [
        ("openai", "openai", "https://eu.example/v1"),
        ("groq", "generic", "https://api.groq.com/openai/v1"),
    ]
    assert config.keys[0].digest == hashlib.sha256(b"d" * 30).digest()
    assert config.source == "environment"


def test_the_environment_without_a_provider_says_what_to_set():
    with pytest.raises(ConfigError, match="VENICE_API_KEY"):
        from_environment({"OPENAI_BASE_URL": "https://x/v1", "OPENAI_API_KEY": ""})


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"OPENAI_API_KEY": "k\n"}, "environment: OPENAI_API_KEY: "),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "ftp://x"}, "environment: OPENAI_BASE_URL: "),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"}, "own listener"),
        ({"OPENAI_API_KEY": "k", "DANDOLO_KEY": "a", "DANDOLO_API_KEY": "b"}, "differs"),
    ],
)
def test_problems_of_the_environment_name_the_variable(environ, named):
    with pytest.raises(ConfigError) as caught:
        from_environment(environ)
    assert named in str(caught.value)
    assert len(caught.value.problems) == 1
