"""Workers and their control process under load: reloaded, replaced, killed. Real processes, keep-alive connections,
and not one request that fails for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness import Gateway, Provider, chat, get, request, until
from load import Load

from dandolo.sim import Script, SimProvider, SimThread

QUICK = Script(latency_s=0.001)
DELAY = "300ms"
"""Long enough for every client of a busy load to hear `Connection: close`."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(directory: Path, *, workers: int = 2, fixed: bool = False, **more: Any) -> Iterator[Gateway]:
    """A gateway with workers, and a provider that answers at once. `fixed`: at ports known beforehand."""
    server: dict[str, object] = {"workers": workers, "drain_delay": DELAY, "drain_timeout": "10s"}
    if fixed:
        server |= {"listen": [f"127.0.0.1:{free_port()}"], "admin": f"127.0.0.1:{free_port()}"}
    server |= more.pop("server", {})
    more.setdefault("toml", "[cache]\nlevels = []\n")
    directory.mkdir(exist_ok=True)
    sim = SimProvider("sim", script=more.pop("script", QUICK))
    with SimThread(sim), Gateway(directory, [sim], server=server, **more) as gateway:
        yield gateway


def passing(stack: ExitStack) -> dict[str, Any]:
    """What makes a gateway run under a service manager that holds its listening socket."""
    passed = stack.enter_context(socket.socket())
    passed.bind(("127.0.0.1", 0))
    passed.listen(100)
    script = (
        "import os, sys\nos.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\nos.execv(sys.argv[2], sys.argv[2:])"
    )
    return {"through": [sys.executable, "-c", script, str(passed.fileno())], "pass_fds": [passed.fileno()]}


def total(gateway: Gateway) -> float:
    """Requests that were answered, as Prometheus is told."""
    return sum(value for name, value in gateway.metrics().items() if name.startswith("dandolo_requests_total"))


def gone(pid: int) -> bool:
    """Whether a process has ended; who its parent was does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# -- reload and replacement ----------------------------------------------------------------------------------------


@pytest.mark.promise("53")
def test_twenty_reloads_lose_no_request(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Load(gateway.port) as load:
        load.more(50)
        for count in range(1, 21):
            gateway.signal(signal.SIGHUP)
            until(lambda count=count: gateway.said().count('"reloaded ') == count, what="no reload")  # type: ignore[misc]
            load.more(5)
    assert load.failures == []
    assert load.opened == 8  # and no connection was closed


@pytest.mark.promise("53")
def test_all_workers_change_or_none(tmp_path: Path) -> None:
    with running(tmp_path, errors_expected=True) as gateway:
        good = gateway.config.read_text()
        gateway.config.write_text(good.replace("[cache]", "[cahce]"))
        gateway.signal(signal.SIGHUP)
        until(lambda: "reload refused" in gateway.said())
        assert "cahce: unknown key: did you mean cache?" in gateway.said()
        assert gateway.metrics()["dandolo_config_reload_successful"] == 0
        # Workers see it only when it is put to use.
        ca = tmp_path / "ca.pem"
        ca.write_text("no certificate")
        more = '[[providers]]\nname = "x"\nbase_url = "https://x.invalid/v1"\nheaders = { "X-Y" = "1" }\n'
        gateway.config.write_text(good + more)
        gateway.signal(signal.SIGHUP)
        until(lambda: '"reloaded ' in gateway.said())
        accounts = [
            {one["account"] for one in json.loads(gateway.admin(f"/admin/routes?worker={n}").body)["accounts"]}
            for n in (0, 1)
        ]
        assert accounts == [{"sim", "x"}] * 2


@pytest.mark.promise("54")
def test_replacing_all_workers_loses_no_request(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Load(gateway.port) as load, Load(gateway.port, connections=2, fresh=True) as new:
        load.more(50)
        before = gateway.workers()
        unready: list[int] = []
        gateway.signal(signal.SIGUSR2)
        while not all(map(gone, before)):
            answer = gateway.ask(get("/readyz", headers={"Connection": "close"}))
            if answer.status != 200:
                unready.append(answer.status)
        until(lambda: "all workers are replaced" in gateway.said())
        load.more(50)
        assert not set(gateway.workers()) & set(before)
        counted = total(gateway)
    assert load.failures + new.failures == []
    assert unready == []
    assert counted >= load.answers  # what the old ones had counted is still there


@pytest.mark.promise("54")
def test_restart_can_be_asked_for_by_operators(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, server={"drain_delay": "0s"}) as gateway:
        before = gateway.workers()
        data = b"POST /admin/restart HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", gateway.admin_port)) as sock:
            sock.sendall(data)
            assert sock.recv(12) == b"HTTP/1.1 202"
        until(lambda: len(gateway.workers()) == 1 and gateway.workers() != before, what="no new worker")


@pytest.mark.promise("54")
def test_a_worker_that_is_told_to_end_alone_is_followed_first(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Load(gateway.port) as load:
        load.more(50)
        (one, _) = gateway.workers()
        os.kill(one, signal.SIGTERM)
        until(lambda: gone(one), what="it goes on")
        load.more(50)
        until(lambda: len(gateway.workers()) == 2)
    assert load.failures == []


# -- deaths --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("54")
def test_a_killed_worker_takes_only_its_own_requests_with_it(tmp_path: Path) -> None:
    with running(tmp_path, errors_expected=True) as gateway:
        with Load(gateway.port, connections=16) as load, Load(gateway.port, connections=4, fresh=True) as new:
            load.more(100)
            one, other = gateway.workers()
            counted = total(gateway)
            held = connections_of(one)
            killed = time.monotonic()
            os.kill(one, signal.SIGKILL)
            until(lambda: len(set(gateway.workers()) - {one, other}) == 1, 5.0, "no successor")
            replaced_s = time.monotonic() - killed
            load.more(100)
            until(lambda: gateway.metrics()["dandolo_workers"] == 2)
            assert total(gateway) >= counted
        assert replaced_s < 1.0
        assert other in gateway.workers()
        # Connections that were the dead one's end; what waited in its queue, or came after, is answered.
        assert len(load.failures) + len(new.failures) <= held
        assert all("reset" in one.lower() or "ended" in one or "pipe" in one.lower() for one in load.failures)
        assert "ended after" in gateway.said()
        assert "SIGKILL" in gateway.said()


def connections_of(pid: int) -> int:
    """Sockets of a process: more than the connections of its clients, and all that its death can end."""
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    return sum(link.startswith("socket:") for link in links)


@pytest.mark.promise("54")
def test_a_worker_that_dies_again_and_again_is_brought_back_ever_later(tmp_path: Path) -> None:
    with running(tmp_path, errors_expected=True) as gateway:
        waits = []
        for _ in range(3):
            until(lambda: gateway.metrics()["dandolo_workers"] == 2, what="no successor")
            newest = gateway.workers()[-1]
            os.kill(newest, signal.SIGKILL)
            said = until(lambda: [line for line in gateway.said().splitlines() if f"process {newest})" in line])  # noqa: B023
            waits.append(json.loads(said[-1])["message"].rpartition("starts ")[2])
            assert gateway.ask(request()).status == 200
        # The first one killed may be either worker: the others are its successors.
        assert waits[0] == "now"
        assert waits[-1] in ("in 0.5 s", "in 1 s")


@pytest.mark.promise("54")
def test_the_control_process_killed_and_started_again_loses_no_request(tmp_path: Path) -> None:
    with running(tmp_path, fixed=True, errors_expected=True) as gateway:
        with Load(gateway.port) as load, Load(gateway.port, connections=2, fresh=True) as new:
            load.more(50)
            before = gateway.workers()
            os.kill(gateway.pid, signal.SIGKILL)
            assert gateway.wait() == -signal.SIGKILL
            counted = load.answers + new.answers
            load.more(100)  # orphans serve
            gateway.start()
            after = gateway.workers()
            until(lambda: all(map(gone, before)), what="orphans go on")
            load.more(100)
        assert load.failures + new.failures == []
        assert not set(after) & set(before)
        # What they told nobody meanwhile, they told the one who came.
        missing = load.answers + new.answers - counted
        until(lambda: total(gateway) >= missing, what="records of orphans are missing")
        assert gateway.metrics()["dandolo_records_dropped_total"] == 0


@pytest.mark.promise("54")
def test_control_process_killed_under_a_service_manager_that_holds_the_socket(tmp_path: Path) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(running(tmp_path, errors_expected=True, **passing(stack)))
        with Load(gateway.port) as load:
            load.more(50)
            before = gateway.workers()
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.wait()
            gateway.start()
            until(lambda: all(map(gone, before)), what="orphans go on")
            load.more(50)
    assert load.failures == []


@pytest.mark.promise("54")
def test_a_new_version_takes_over_without_losing_a_request(tmp_path: Path) -> None:
    with running(tmp_path, fixed=True) as gateway:
        with Load(gateway.port) as load, Load(gateway.port, connections=2, fresh=True) as new:
            load.more(50)
            old = gateway.pid
            successor = Gateway.beside(gateway, "--upgrade")
            try:
                successor.start()
                assert gateway.wait() == 0
                assert gone(old)
                load.more(50)
                assert total(successor) > 0
            except BaseException:
                successor.kill()
                raise
        assert successor.stop() == 0
        assert load.failures + new.failures == []
        gateway.start()


@pytest.mark.promise("54")
@pytest.mark.parametrize("held", ["by us", "by systemd"])
def test_a_process_starts_its_own_successor_and_ends(tmp_path: Path, held: str) -> None:
    with ExitStack() as stack:
        more = passing(stack) if held == "by systemd" else {}
        gateway = stack.enter_context(running(tmp_path, fixed=held == "by us", **more))
        with Load(gateway.port) as load, Load(gateway.port, connections=2, fresh=True) as new:
            load.more(50)
            old, before = gateway.pid, gateway.workers()
            gateway.signal(signal.SIGUSR1)
            until(lambda: all(map(gone, [old, *before])), 20.0, "the old one goes on")
            gateway.wait()
            load.more(50)
            assert gateway.said().count(" ready in ") == 2
        assert load.failures + new.failures == []
        (successor,) = [pid for pid in of_group(old) if "_worker" not in words(pid)]
        os.kill(successor, signal.SIGINT)
        until(lambda: gone(successor) and not of_group(old))
        gateway.start()


@pytest.mark.promise("54")
def test_a_successor_that_does_not_come_up_changes_nothing(tmp_path: Path) -> None:
    with running(tmp_path, fixed=True, errors_expected=True, workers=1) as gateway:
        gateway.config.write_text(gateway.config.read_text() + "nonsense")
        gateway.signal(signal.SIGUSR1)
        until(lambda: "ended with 78: this one goes on" in gateway.said())
        assert gateway.ask(request()).status == 200


def of_group(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name.isdigit() and int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.promise("54")
def test_a_second_one_at_the_same_address_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, fixed=True, workers=1) as gateway:
        second = Gateway.beside(gateway)
        with pytest.raises(AssertionError, match=r"(?s)exit 1: .*Address already in use .*--upgrade takes over"):
            second.start()
        assert gateway.ask(request()).status == 200


def test_without_a_fixed_port_nobody_can_follow_and_workers_end_with_their_control_process(tmp_path: Path) -> None:
    with running(tmp_path, errors_expected=True) as gateway:
        before = gateway.workers()
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.wait()
        until(lambda: all(map(gone, before)), what="workers are left over")


@pytest.mark.promise("54")
def test_a_worker_that_hangs_is_killed_and_its_clients_are_served_by_others(tmp_path: Path) -> None:
    with running(tmp_path, errors_expected=True) as gateway:
        one, other = gateway.workers()
        os.kill(one, signal.SIGSTOP)
        with Load(gateway.port, connections=2, fresh=True, pause_s=0.05) as load:
            until(lambda: gone(one), 20.0, "it hangs for ever")
            load.more(5)
        assert load.failures == []
        assert other in gateway.workers()
        assert load.slowest_s < 5.0
        assert "it is killed" in gateway.said()


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("52")
def test_after_the_delay_nobody_is_let_in_while_streams_finish(tmp_path: Path) -> None:
    slow = Script(tokens=20, tokens_per_s=10.0)
    with running(tmp_path, script=slow, server={"drain_delay": "200ms"}) as gateway:
        with gateway.client() as client:
            client.send(request(body=chat(stream=True)))
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 1)
            gateway.signal(signal.SIGTERM)

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", gateway.port)).close()
                except ConnectionRefusedError:
                    return True
                return False

            until(refused, what="somebody still listens")
            assert client.answer().body.endswith(b"data: [DONE]\n\n")
        assert gateway.wait() == 0


def test_every_request_has_its_line_whoever_served_it(tmp_path: Path) -> None:
    with running(tmp_path, workers=3) as gateway:
        with Load(gateway.port, connections=12) as load:
            load.more(200)
        until(lambda: total(gateway) == load.answers)
        gateway.stop()
        assert len(gateway.log_lines()) == load.answers
        gateway.start()


def test_memory_of_both_processes_together(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as gateway:
        assert gateway.ask(request()).status == 200
        assert gateway.rss_bytes() < 70 << 20


# -- a control process that stands still ---------------------------------------------------------------------------


def test_workers_serve_while_the_control_process_stands_still(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        with Load(gateway.port) as load, Load(gateway.port, connections=2, fresh=True) as new:
            load.more(20)
            before = gateway.workers()
            gateway.signal(signal.SIGSTOP)
            try:
                load.more(300)
                # Longer than a worker may be silent: what it says is in the pipe.
                time.sleep(3.0)
            finally:
                gateway.signal(signal.SIGCONT)
            load.more(20)
        assert load.failures + new.failures == []
        until(lambda: total(gateway) == load.answers + new.answers, what="records are missing")
        assert gateway.workers() == before
        assert gateway.metrics()["dandolo_records_dropped_total"] == 0


def test_a_secret_file_is_read_once_for_all_workers(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("sk-first-0123456789\n")
    sim = SimProvider("sim", key="sk-first-0123456789")
    provider = Provider(sim, key=None, options={"key": {"file": str(secret)}})
    server = {"workers": 1, "drain_delay": "0s"}
    with SimThread(sim), Gateway(tmp_path, [provider], server=server, errors_expected=True) as gateway:
        assert gateway.ask(request()).status == 200
        secret.write_text("sk-other-0123456789\n")
        before = gateway.workers()
        os.kill(before[0], signal.SIGKILL)
        until(lambda: gateway.workers() not in ([], before))
        # Its successor has what the control process read, not what the file says now.
        assert gateway.ask(request()).status == 200
        gateway.signal(signal.SIGHUP)
        until(lambda: '"reloaded ' in gateway.said())
        assert gateway.ask(request()).status == 401 or gateway.ask(request()).status >= 500
        assert "sk-" not in gateway.said()


def test_replaced_workers_and_reloads_take_up_a_renewed_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()

    def renew() -> None:
        issued = authority.issue_cert("localhost")
        for part, name in ((issued.cert_chain_pems[0], "cert.pem"), (issued.private_key_pem, "key.pem")):
            part.write_to_path(str(tmp_path / name))

    def served(port: int) -> object:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            return (secure.getpeercert() or {})["serialNumber"]

    renew()
    tls = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with running(tmp_path, workers=1, server={"tls": tls, "drain_delay": "0s"}) as gateway:
        before = served(gateway.port)
        renew()
        assert served(gateway.port) == before
        gateway.signal(signal.SIGUSR2)
        until(lambda: "all workers are replaced" in gateway.said())
        second = served(gateway.port)
        assert second != before
        # A reload needs no new workers for it.
        workers = gateway.workers()
        renew()
        gateway.signal(signal.SIGHUP)
        until(lambda: "changed server.tls" in gateway.said())
        assert served(gateway.port) not in (before, second)
        assert gateway.workers() == workers


# -- one for a state folder ----------------------------------------------------------------------------------------


def test_a_second_one_on_a_state_folder_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        text = gateway.config.read_text()
        other = tmp_path / "other.toml"
        other.write_text(text)
        command = [sys.executable, "-m", "dandolo", "serve", "--config", str(other)]
        environ = {**os.environ, "PROVIDER_KEY_0": "sk-provider-0123456789"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environ)
        assert done.returncode == 1
        assert f"process {gateway.pid} uses {tmp_path / 'state'} already" in done.stderr
        assert "server.state_dir" in done.stderr
        assert gateway.ask(request()).status == 200
        gateway.kill()
        # Nothing is left of the dead.
        gateway.start()
        assert gateway.ask(request()).status == 200


def test_who_takes_over_has_the_state_folder(tmp_path: Path) -> None:
    lock = tmp_path / "state/serve.lock"
    with running(tmp_path, fixed=True, errors_expected=True) as gateway:
        assert lock.read_text() == f"{gateway.pid}\n"
        successor = Gateway.beside(gateway, "--upgrade")
        with successor:
            gateway.wait()
            until(lambda: lock.read_text() == f"{successor.pid}\n")
            # Killed alone: its workers go on, and hold nothing.
            process = successor._process
            assert process is not None
            process.kill()
            process.wait()
            assert successor.ask(request()).status == 200
            successor._process = None
            successor.start()
            assert lock.read_text() == f"{successor.pid}\n"
            assert successor.ask(request()).status == 200


def test_keys_that_cannot_be_read_end_a_start_so_that_it_is_tried_again(tmp_path: Path) -> None:
    """78 would have a service manager give up, and sockets that are not let go of are told of as warnings."""
    with running(tmp_path, fixed=True, errors_expected=True) as gateway:
        (tmp_path / "state" / "keys.sqlite").write_bytes(b"no database" * 100)
        with pytest.raises(AssertionError, match=r"(?s)exit 1: .*keys\.sqlite cannot be used") as refused:
            Gateway.beside(gateway, "--upgrade").start()
        assert "Warning" not in str(refused.value)
        assert gateway.ask(request()).status == 200
