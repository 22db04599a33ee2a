"""`dandolo serve` as a process: start, signals, reload, listeners, exit codes. Real sockets, simulated providers."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from dandolo import cli
from dandolo.cli import keys
from dandolo.sim import Fault, Script, SimProvider, SimThread

KEY = "dnd_0123456789abcdefghijklmnopqrstuv"
KEYS = f'[[keys]]\nname = "ci"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'
BEARER = (("Authorization", f"Bearer {KEY}"),)
CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SLOW = Script(tokens=20, tokens_per_s=20.0)
"""A stream of a second."""


@pytest.fixture(scope="module")
def sims():
    with SimThread(SimProvider("one"), SimProvider("two"), SimProvider("slow", script=SLOW)) as running:
        yield running


@pytest.fixture
def serve(begin):
    return lambda *words, **more: begin("serve", *words, **more)


# -- start ---------------------------------------------------------------------------------------------------------


def test_ready_line_first_answer_log_line_and_orderly_end(serve, configure, sims):
    served = serve("--config", configure(sims["one"])).ready()
    line = next(line for line in served.err.splitlines() if "ready in" in line)
    assert f"http://127.0.0.1:{served.port}" in line
    assert "providers: one" in line
    assert f"admin: http://127.0.0.1:{served.admin}" in line
    status, answer = served.chat()
    assert (status, answer["model"]) == (200, "m")
    served.kill(signal.SIGINT)
    assert served.wait() == 0
    (logged,) = map(json.loads, served.out.splitlines())
    assert (logged["status"], logged["endpoint"], logged["provider"], logged["model"]) == (200, "chat", "one", "m")


@pytest.mark.promise("55")
def test_nothing_is_asked_of_providers_at_start(serve, configure):
    with SimThread(SimProvider("quiet")) as sims:
        served = serve("--config", configure(sims["quiet"])).ready()
        assert served.ask("/readyz")[0] == 200
        assert served.of_admin("/healthz")[0] == 200
        assert sims["quiet"].connections_opened == 0


def test_file_in_the_working_directory_is_found(serve, configure, sims):
    configure(sims["one"])
    assert serve().ready().chat()[0] == 200


def test_providers_from_the_environment_alone(serve, sims):
    env = {"OPENAI_API_KEY": "sk-env-0123456789", "OPENAI_BASE_URL": sims["one"].base_url}
    served = serve("--port", 0, "--admin", "127.0.0.1:0", env=env).ready()
    assert served.chat()[0] == 200
    assert sims["one"].requests[-1].header("authorization") == "Bearer sk-env-0123456789"
    assert "sk-env" not in served.err + served.out


def test_flags_win_over_the_file(serve, configure, sims):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path = configure(sims["one"], listen=f'"127.0.0.1:{taken.getsockname()[1]}"')
        served = serve("--config", path, "--port", 0, "--log-format", "logfmt").ready()
        assert served.port != taken.getsockname()[1]
        assert served.chat()[0] == 200
    served.kill(signal.SIGINT)
    assert served.wait() == 0
    assert "status=200" in served.out


def test_warnings_and_workers_are_said_once_at_start(serve, configure, sims):
    key = '[[keys]]\nname = "ci"\nkey = { env = "SHORT" }\n'
    served = serve("--config", configure(sims["one"], more=key), "--workers", 4, env={"SHORT": "k" * 12}).ready()
    assert served.err.count("may be guessed") == 1
    assert "workers: 4" in served.err
    bearer = (("Authorization", f"Bearer {'k' * 12}"),)
    assert "dandolo_workers 4\n" in served.of_admin("/metrics", headers=bearer)[1]


def test_connections_are_bounded_by_descriptors(serve, configure, sims):
    served = serve("--config", configure(sims["one"]), through=("sh", "-c", 'ulimit -n 200; exec "$@"', "sh")).ready()
    assert "connections_max is lowered from 10000 to 80" in served.err
    assert served.chat()[0] == 200


def test_start_imports_neither_simulation_nor_other_http_clients():
    unwanted = {"h11", "http.client", "dandolo.sim", "dandolo.cli.demo"}
    code = f"import sys, dandolo.cli.serve, dandolo.cli.service, dandolo.cli.work; print({unwanted} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_first_key_that_comes_by_a_reload_is_wanted_by_the_admin_listener_too(serve, configure, sims):
    served = serve("--config", configure(sims["one"])).ready()
    assert served.of_admin("/admin/routes")[0] == 200
    configure(sims["one"], more=KEYS)
    served.kill(signal.SIGHUP)
    served.says("reloaded")
    assert served.of_admin("/admin/routes")[0] == 401
    assert served.of_admin("/metrics", headers=BEARER)[0] == 200
    status, answer = served.of_admin("/admin/routes", headers=BEARER)
    assert (status, json.loads(answer)["error"]["code"]) == (403, "admin_key_needed")


# -- why it does not start -----------------------------------------------------------------------------------------


@pytest.mark.promise("53")
def test_broken_configuration_is_78_with_every_problem(serve, configure, sims):
    path = configure(sims["one"], server="workres = 1", more='[timeouts]\nconnect = "soon"\n')
    served = serve("--config", path)
    assert served.wait() == 78
    assert "dandolo.toml:5: server.workres: unknown key: did you mean workers?" in served.err
    assert "timeouts.connect" in served.err


def test_no_provider_at_all_is_78(serve):
    served = serve()
    assert served.wait() == 78
    assert "VENICE_API_KEY" in served.err


@pytest.mark.parametrize("how", ["file", "flag"])
def test_public_address_without_keys_is_refused(serve, configure, sims, how):
    if how == "file":
        served = serve("--config", configure(sims["one"], listen='"0.0.0.0:0"'))
    else:
        served = serve("--config", configure(sims["one"]), "--host", "0.0.0.0")
    assert served.wait() == 78
    assert "can be reached from other machines and no key is configured" in served.err
    assert "ready" not in served.err


def test_public_address_with_keys(serve, configure, sims):
    served = serve("--config", configure(sims["one"], more=KEYS), "--host", "0.0.0.0").ready()
    assert served.chat()[0] == 401
    assert served.chat(headers=BEARER)[0] == 200
    assert served.of_admin("/metrics")[0] == 401
    assert served.of_admin("/metrics", headers=BEARER)[0] == 200
    assert served.of_admin("/readyz")[0] == 200


@pytest.mark.parametrize(("which", "hint"), [("listen", "--port"), ("admin", "--admin")])
def test_port_in_use_is_1_and_says_what_to_do(serve, configure, sims, which, hint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        path = configure(sims["one"], **({"listen": f'"{where}"'} if which == "listen" else {"admin": where}))
        served = serve("--config", path)
        assert served.wait() == 1
    assert f"cannot listen on {where}: Address already in use" in served.err
    assert hint in served.err
    assert len(served.err.strip().splitlines()) <= 2


def test_certificate_bundle_that_is_none_is_78(serve, configure, tmp_path, sims):
    (tmp_path / "ca.pem").write_text("no certificate")
    path = configure(more='[[providers]]\nname = "x"\nbase_url = "https://x.invalid/v1"\nca = "ca.pem"\n')
    served = serve("--config", path)
    assert served.wait() == 78
    assert "dandolo.toml:9: providers[0].ca: cannot be used: " in served.err


def test_gateway_that_would_call_itself_is_78(serve):
    env = {"OPENAI_API_KEY": "sk-env-0123456789", "OPENAI_BASE_URL": "http://localhost:9/v1"}
    served = serve("--port", 9, env=env)
    assert served.wait() == 78
    assert "http://localhost:9/v1 is Dandolo's own listener 127.0.0.1:9" in served.err


# -- listeners -----------------------------------------------------------------------------------------------------


def test_unix_socket_listener(serve, configure, sims, tmp_path):
    path = str(tmp_path / "http.sock")
    served = serve("--config", configure(sims["one"], listen=f'"unix:{path}"')).ready()
    assert f"unix:{path}" in served.err
    assert served.ask(CHAT, {**STREAM, "stream": False}, where=path)[0] == 200


PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_socket_passed_by_systemd_replaces_the_listeners(serve, configure, sims):
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        passed.listen()
        through = (sys.executable, "-c", PASS, str(passed.fileno()))
        served = serve("--config", configure(sims["one"]), through=through, fds=(passed.fileno(),)).ready()
        assert served.port == passed.getsockname()[1]
        assert served.chat()[0] == 200


def test_public_socket_passed_by_systemd_needs_keys_too(serve, configure, sims):
    with socket.socket() as passed:
        passed.bind(("0.0.0.0", 0))
        passed.listen()
        through = (sys.executable, "-c", PASS, str(passed.fileno()))
        served = serve("--config", configure(sims["one"]), through=through, fds=(passed.fileno(),))
        assert served.wait() == 78
    assert "can be reached from other machines" in served.err


def test_metrics_count_requests_and_show_the_state(serve, configure, sims):
    served = serve("--config", configure(sims["one"])).ready()
    assert served.chat()[0] == 200
    status, text = served.of_admin("/metrics")
    assert status == 200
    assert 'dandolo_requests_total{endpoint="chat",status="200",provider="one"' in text
    assert 'dandolo_slots_in_use{account="one"} 0' in text
    assert "dandolo_config_reload_successful 1" in text
    assert served.ask("/metrics")[0] == 404


# -- the end -------------------------------------------------------------------------------------------------------


def test_sigterm_lets_a_running_stream_finish(serve, configure, sims, eventually):
    served = serve("--config", configure(sims["slow"], server='drain_timeout = "20s"')).ready()
    with served.connect() as connection:
        connection.send(CHAT, STREAM)
        status, fields = connection.head()
        assert status == 200
        served.kill(signal.SIGTERM)
        served.says("1 requests under way")
        assert connection.body(fields).endswith(b"data: [DONE]\n\n")
    assert served.wait() == 0


@pytest.mark.promise("52", "55")
def test_readiness_fails_first_while_requests_are_still_taken(serve, configure, sims, tmp_path):
    path = configure(sims["one"])
    path.write_text(path.read_text().replace('drain_delay = "0s"', 'drain_delay = "10m"'))
    served = serve("--config", path).ready()
    served.kill(signal.SIGTERM)
    served.says("ending")
    assert served.ask("/readyz")[0] == 503
    assert served.of_admin("/readyz")[0] == 503
    assert served.of_admin("/healthz")[0] == 200
    assert served.chat()[0] == 200
    served.kill(signal.SIGTERM)
    assert served.wait() == 128 + signal.SIGTERM


@pytest.mark.promise("52")
def test_second_signal_cuts_what_is_under_way(serve, configure):
    with SimThread(SimProvider("stuck", script=Script(default_fault=Fault("stall", after=2)))) as sims:
        served = serve("--config", configure(sims["stuck"])).ready()
        with served.connect() as connection:
            connection.send(CHAT, STREAM)
            assert connection.head()[0] == 200
            served.kill(signal.SIGINT)
            served.says("ending")
            served.kill(signal.SIGINT)
            assert served.process.wait(5) == 128 + signal.SIGINT


# -- reload --------------------------------------------------------------------------------------------------------


def test_sighup_swaps_the_configuration_and_running_requests_end_as_they_began(serve, configure, sims):
    served = serve("--config", configure(sims["slow"])).ready()
    with served.connect() as connection:
        connection.send(CHAT, STREAM)
        status, fields = connection.head()
        assert status == 200
        configure(sims["two"], more=KEYS)
        served.kill(signal.SIGHUP)
        served.says("reloaded")
        assert served.chat()[0] == 401
        assert served.ask(CHAT, {**STREAM, "stream": False}, BEARER)[1]["x-dandolo-provider"] == "two"
        assert connection.body(fields).endswith(b"data: [DONE]\n\n")
    served.kill(signal.SIGINT)
    assert served.wait() == 0


def test_bodies_held_across_a_reload_are_let_go_of(serve, configure, sims):
    def held():
        text = served.of_admin("/metrics")[1]
        return int(text.partition("\ndandolo_request_body_bytes ")[2].partition("\n")[0])

    def becomes(wanted):
        end = time.monotonic() + 10
        while not wanted(held()):
            assert time.monotonic() < end
            time.sleep(0.01)

    served = serve("--config", configure(sims["one"])).ready()
    with served.connect() as connection:
        rest = connection.send(CHAT, STREAM, keep_back=10)
        becomes(lambda size: size > 0)
        served.kill(signal.SIGHUP)
        served.says("reloaded")
        assert held() > 0
        connection.sock.sendall(rest)
        assert connection.head()[0] == 200
    becomes(lambda size: size == 0)


def test_broken_file_keeps_the_configuration_that_was_there(serve, configure, sims):
    served = serve("--config", configure(sims["one"])).ready()
    configure(sims["two"], server="workres = 1", more='[timeouts]\nconnect = "soon"\n')
    served.kill(signal.SIGHUP)
    served.says("reload refused")
    assert "server.workres: unknown key" in served.err
    assert "timeouts.connect" in served.err
    assert served.ask(CHAT, {**STREAM, "stream": False})[1]["x-dandolo-provider"] == "one"
    assert "dandolo_config_reload_successful 0" in served.of_admin("/metrics")[1]
    configure(sims["two"])
    served.kill(signal.SIGHUP)
    served.says("reloaded")
    assert "dandolo_config_reload_successful 1" in served.of_admin("/metrics")[1]


def test_reload_never_opens_the_gateway_to_everybody(serve, configure, sims):
    served = serve("--config", configure(sims["one"], more=KEYS)).ready()
    configure(sims["one"])
    served.kill(signal.SIGHUP)
    served.says("the last key is gone")
    assert served.chat()[0] == 401


def test_changed_listeners_are_said_to_wait_for_the_next_start(serve, configure, sims):
    served = serve("--config", configure(sims["one"])).ready()
    configure(sims["one"], listen='"127.0.0.1:1"')
    served.kill(signal.SIGHUP)
    served.says("server.listen changes at the next start, not by a reload: a successor finds")
    assert served.chat()[0] == 200


# -- the service manager -------------------------------------------------------------------------------------------


def test_service_manager_is_told(serve, configure, sims, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        served = serve("--config", configure(sims["one"]), env=env)
        assert manager.recv(4096).startswith(b"READY=1\n")
        assert manager.recv(4096) == b"WATCHDOG=1\n"

        def others():
            while (said := manager.recv(4096)) == b"WATCHDOG=1\n":
                pass
            return said

        served.kill(signal.SIGHUP)
        assert others().startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert others().startswith(b"READY=1\n")
        served.kill(signal.SIGTERM)
        assert others().startswith(b"STOPPING=1\n")
        assert served.wait() == 0


# -- the command line itself ---------------------------------------------------------------------------------------


def test_version_help_and_unknown_commands(begin):
    version, unknown, none = begin("--version"), begin("sevre"), begin()
    assert (version.wait(), unknown.wait(), none.wait()) == (0, 2, 2)
    assert version.out.startswith("dandolo ")
    assert "invalid choice: 'sevre'" in unknown.err


def test_keys_create_from_the_command_line(begin):
    made = begin("keys", "create", "ci", "--print")
    assert made.wait() == 0
    assert 'name = "ci"' in made.out


@pytest.mark.parametrize("words", [("--port", "70000"), ("--host", "a b"), ("--admin", "nowhere")])
def test_flags_that_make_no_sense_are_2(serve, words):
    served = serve(*words)
    assert served.wait() == 2
    assert "expected" in served.err


def test_mistake_of_ours_is_one_line(monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr(keys, "run", fail)
    assert cli.main(["keys", "create"]) == cli.EX_SOFTWARE
    assert capsys.readouterr().err == "dandolo keys: internal error: RuntimeError: something nobody thought of\n"


def test_reader_of_our_output_may_leave(begin, configure, sims):
    done = begin("check", configure(sims["one"]), through=("sh", "-c", '"$@" | true', "sh"))
    done.wait()
    assert done.err == ""
