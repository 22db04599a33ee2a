"""The admin listener by HTTPS: who is let in, what a reload renews, and the commands that ask it."""

import hashlib
import http.client
import os
import signal
import ssl
import subprocess
import sys

import pytest
import trustme

from dandolo.sim import SimProvider, SimThread

from .conftest import environment

KEY = "dnd_0123456789abcdefghijklmnopqrstuv"
KEYS = f'[[keys]]\nname = "ops"\nadmin = true\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'


@pytest.fixture(scope="module")
def sims():
    with SimThread(SimProvider("one")) as running:
        yield running


class Papers:
    """A certificate for the listener, its authority, and one for an operator."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.authority, self.folder = trustme.CA(), folder
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.renew()
        self.operator = self.issued("operator.pem", self.authority)

    def renew(self):
        made = self.authority.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(str(self.key))
        self.cert.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))

    def issued(self, name, authority):
        path = self.folder / name
        authority.issue_cert("operator@example.org").private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def server(self, *, mutual=False):
        more = f', client_ca = "{self.ca}"' if mutual else ""
        return f'admin_tls = {{ cert = "{self.cert}", key = "{self.key}"{more} }}\n'


@pytest.fixture
def papers(tmp_path):
    return Papers(tmp_path / "papers")


def start(begin, configure, sims, papers, *, mutual=False, more=KEYS, **given):
    path = configure(sims["one"], server=papers.server(mutual=mutual), more=more, **given)
    served = begin("serve", "--config", path).ready()
    assert f"admin: https://127.0.0.1:{served.admin}" in served.err
    return served


def command(home, *words, key=KEY):
    return subprocess.run(
        [sys.executable, "-m", "dandolo", *map(str, words)],
        env=environment(home, DANDOLO_ADMIN_KEY=key),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=30,
    )


def shown(served):
    """The certificate that the listener shows now."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", served.admin)))


def test_commands_ask_by_https_and_trust_whom_they_are_told_to(begin, configure, sims, papers, tmp_path):
    served = start(begin, configure, sims, papers)
    where = f"https://127.0.0.1:{served.admin}"
    asked = {
        "status": ("status", "--once"),
        "usage": ("usage",),
        "cache": ("cache", "purge", "--all"),
        "keys": ("keys", "list"),
    }
    for name, words in asked.items():
        done = command(tmp_path, *words, "--admin", where, "--ca", papers.ca)
        assert (done.returncode, done.stderr) == (0, ""), name
        # Not by the system's list, which does not know this authority.
        done = command(tmp_path, *words, "--admin", where)
        assert done.returncode == 1, name
        assert "is not trusted" in done.stderr
        assert "--ca" in done.stderr
        # Nor without TLS.
        done = command(tmp_path, *words, "--admin", f"127.0.0.1:{served.admin}")
        assert done.returncode == 1, name
        assert "https://" in done.stderr
        assert "internal error" not in done.stderr
        # Whoever names an authority is not content with no TLS at all, and a file that is none is named.
        done = command(tmp_path, *words, "--admin", f"127.0.0.1:{served.admin}", "--ca", papers.ca)
        assert done.returncode == 1, name
        assert f"--admin https://127.0.0.1:{served.admin}" in done.stderr
        done = command(tmp_path, *words, "--admin", where, "--ca", tmp_path / "nowhere.pem")
        assert done.returncode == 1, name
        assert "nowhere.pem" in done.stderr
    wrong = command(tmp_path, "status", "--once", "--admin", f"https://127.0.0.1:{served.port}")
    assert wrong.returncode == 1
    assert "does not speak TLS" in wrong.stderr
    made = command(tmp_path, "keys", "create", "web", "--admin", where, "--ca", papers.ca)
    assert made.stdout.startswith("dnd_")
    assert KEY not in served.err + served.out


def test_the_configurations_own_certificate_is_known_and_no_other(begin, configure, sims, papers, tmp_path):
    # A port that a second start knows too.
    served = start(begin, configure, sims, papers)
    path = tmp_path / "dandolo.toml"
    text = path.read_text().replace('admin = "127.0.0.1:0"', f'admin = "127.0.0.1:{served.admin}"')
    path.write_text(text)
    for words in (("status", "--once"), ("keys", "list")):
        done = command(tmp_path, *words, "--config", path)
        assert (done.returncode, done.stderr) == (0, "")
    # A key is not made in the database instead where papers do not fit.
    done = command(tmp_path, "keys", "create", "web", "--config", path, "--ca", tmp_path / "nowhere.pem")
    assert (done.returncode, done.stdout) == (1, "")
    # Of the same authority, but another: nobody is told the key.
    papers.renew()
    done = command(tmp_path, "status", "--once", "--config", path)
    assert done.returncode == 1
    assert "another certificate" in done.stderr


def test_a_certificate_is_renewed_by_a_reload_and_a_broken_one_is_not(begin, configure, sims, papers):
    served = start(begin, configure, sims, papers)
    context = ssl.create_default_context(cafile=papers.ca)
    first = shown(served)
    kept = http.client.HTTPSConnection("127.0.0.1", served.admin, timeout=20, context=context)
    kept.request("GET", "/healthz")
    assert kept.getresponse().read() == b'{"status":"ok"}'
    papers.renew()
    assert shown(served) == first
    served.kill(signal.SIGHUP)
    served.says("reloaded ")
    second = shown(served)
    assert second != first
    # Who was connected goes on.
    kept.request("GET", "/healthz")
    assert kept.getresponse().status == 200
    kept.close()
    papers.cert.write_text("not a certificate")
    served.kill(signal.SIGHUP)
    served.says("reload refused")
    assert shown(served) == second
    assert "server.admin_tls" in served.err


def test_callers_are_asked_for_a_certificate_beside_their_key(begin, configure, sims, papers, tmp_path):
    served = start(begin, configure, sims, papers, mutual=True)
    where = ("--admin", f"https://127.0.0.1:{served.admin}", "--ca", papers.ca)
    assert command(tmp_path, "status", "--once", *where, "--cert", papers.operator).returncode == 0
    stranger = papers.issued("stranger.pem", trustme.CA())
    for more in ((), ("--cert", stranger)):
        done = command(tmp_path, "status", "--once", *where, *more)
        assert done.returncode == 1
        assert "--cert" in done.stderr, done.stderr
    # A certificate is no key.
    done = command(tmp_path, "status", "--once", *where, "--cert", papers.operator, key="dnd_wrong")
    assert done.returncode == 1
    assert "DANDOLO_ADMIN_KEY" in done.stderr


def test_old_protocols_and_plain_http_get_nothing(begin, configure, sims, papers):
    served = start(begin, configure, sims, papers)
    connection = http.client.HTTPConnection("127.0.0.1", served.admin, timeout=20)
    connection.request("GET", "/healthz")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()
    old = ssl.create_default_context(cafile=papers.ca)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match=r"TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    connection = http.client.HTTPSConnection("127.0.0.1", served.admin, timeout=20, context=old)
    with pytest.raises(OSError):
        connection.request("GET", "/healthz")
    connection.close()


def test_a_unix_socket_stays_plain(begin, configure, sims, papers, tmp_path):
    path = configure(sims["one"], server=papers.server(), admin=f"unix:{tmp_path}/admin.sock")
    served = begin("serve", "--config", path).ready()
    assert served.ask("/healthz", where=f"{tmp_path}/admin.sock")[0] == 200
    assert command(tmp_path, "status", "--once", "--config", path).returncode == 0


@pytest.mark.parametrize("secured", [False, True])
def test_a_plain_listener_for_other_machines_is_warned_of(begin, configure, sims, papers, secured, tmp_path):
    server = papers.server() if secured else ""
    path = configure(sims["one"], server=server, more=KEYS)
    served = begin("serve", "--config", path, "--admin", "0.0.0.0:0").ready()
    assert ("reached over a network unencrypted" in served.err) is not secured
    path.write_text(path.read_text().replace('admin = "127.0.0.1:0"', 'admin = "0.0.0.0:9180"'))
    done = command(tmp_path, "check", path)
    assert done.returncode == 0
    assert ("unencrypted" in done.stdout) is not secured
    assert f"({'https' if secured else 'http'})" in done.stdout.partition("admin ")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("broken", "said"),
    [("key", "expected a PEM chain and its own private key"), ("client_ca", "expected a PEM file of certificates")],
)
def test_papers_that_do_not_fit_are_refused_before_anything_runs(begin, configure, sims, papers, broken, said):
    if broken == "key":
        trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(str(papers.key))
    else:
        papers.ca.write_text("nobody")
    served = begin("serve", "--config", configure(sims["one"], server=papers.server(mutual=True), more=KEYS))
    assert served.wait() == os.EX_CONFIG
    assert said in served.err
    assert "admin_tls" in served.err
