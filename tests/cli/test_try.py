"""`dandolo try`: one question to each account, and an honest line about each."""

import re

import pytest

from dandolo.sim import Script, SimProvider, SimThread, free_port

GOOD, WRONG = "sk-good-0123456789abcdef", "sk-wrong-0123456789abcdef"


@pytest.fixture(scope="module")
def sims():
    paced = Script(first_token_s=0.005, tokens_per_s=2000)
    with SimThread(
        SimProvider("alpha", "venice", paced, key=GOOD, models=("text-embedding-x", "venice-chat")),
        SimProvider("beta", "openrouter", paced),
        SimProvider("claude", "anthropic", paced),
        SimProvider("broken", script=Script(error_rate=1.0)),
    ) as running:
        yield running


@pytest.fixture
def attempt(begin, tmp_path):
    def run(config, *words):
        (tmp_path / "dandolo.toml").write_text(config)
        done = begin("try", "hello", *words, env={"GOOD": GOOD, "WRONG": WRONG})
        code = done.wait()
        assert GOOD not in done.out + done.err
        assert WRONG not in done.out + done.err
        return code, done.out, done.err

    return run


def provider(sim, *, profile="generic", more=""):
    return f'[[providers]]\nname = "{sim.name}"\nprofile = "{profile}"\nbase_url = "{sim.base_url}"\n{more}\n'


def test_first_chat_model_of_the_providers_own_list_is_asked(attempt, sims):
    config = provider(sims["alpha"], profile="venice", more='key = { env = "GOOD" }')
    code, out, err = attempt(config)
    assert (code, err) == (0, "")
    assert re.match(
        r"alpha +ok +venice-chat, connect \d+ ms, first token \d+ ms, total \d+ ms, \d+ \+ \d+ tokens, \$0\.\d+\n"
        r" +alpha: hello model=venice-chat",
        out,
    )
    assert b'"stream":true' in sims["alpha"].requests[-1].body.replace(b" ", b"")


def test_configured_model_and_its_price_are_used(attempt, sims):
    models = '[[providers.models]]\nid = "m-1"\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    code, out, _ = attempt(provider(sims["broken"], more=models) + provider(sims["claude"], profile="anthropic"))
    assert code == 1
    assert re.search(r"broken +failed +m-1: ", out)
    assert re.search(r"claude +ok +sim-small, .*first token", out)


def test_each_account_is_asked_by_itself(attempt, sims):
    accounts = 'accounts = [{ owner = "ann", key = { env = "GOOD" } }, { owner = "bob", key = { env = "WRONG" } }]'
    code, out, _ = attempt(provider(sims["alpha"], profile="venice", more=accounts), "--model", "venice-chat")
    assert code == 1
    assert re.search(r"alpha/ann +ok ", out)
    assert re.search(r"alpha/bob +failed  venice-chat: .*credentials", out)


def test_nobody_there_is_said_with_the_address(attempt):
    port = free_port()
    code, out, _ = attempt(f'[[providers]]\nname = "gone"\nbase_url = "http://127.0.0.1:{port}/v1"\n')
    assert code == 1
    assert re.search(rf"gone +failed  no connection to 127\.0\.0\.1:{port}", out)


def test_plain_answer_and_one_provider_only(attempt, sims):
    config = provider(sims["beta"], profile="openrouter") + provider(sims["broken"])
    code, out, _ = attempt(config, "--no-stream", "--provider", "beta", "--model", "beta/sim-large")
    assert code == 0
    assert "broken" not in out
    assert "first token" not in out
    assert '"sim-large"' in sims["beta"].requests[-1].body.decode()
    assert "stream" not in sims["beta"].requests[-1].body.decode()


def test_gateways_own_keys_and_certificates_are_not_in_the_way(attempt, sims):
    keys = '[[keys]]\nname = "ci"\nkey = { env = "GOOD" }\nmodels = ["nothing"]\n'
    assert attempt(provider(sims["beta"], profile="openrouter") + keys)[0] == 0


def test_unknown_provider_is_2_and_broken_configuration_78(attempt, sims):
    code, _, err = attempt(provider(sims["beta"]), "--provider", "betta")
    assert code == 2
    assert "configured: beta" in err
    assert attempt("[[providers]]\n")[0] == 78
