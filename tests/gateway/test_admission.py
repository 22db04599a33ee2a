"""Who may come in: one answer for every wrong key, loopback names only without keys, addresses not to be forged."""

from __future__ import annotations

import hashlib
import time

import msgspec
import pytest

from dandolo.config import parse
from dandolo.errors import GatewayError, Refusal, RequestError
from dandolo.gateway.admission import RETRY_AFTER_S, Admission, Tenant
from dandolo.policy import Digest, KeyTerms, Policy

PROVIDER = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:9/v1"\n'
SECRET, OTHER = "sk-first-0123456789abcdef", "sk-other-0123456789abcdef"


def key(name: str, secret: str, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n{more}\n'


def admission(text: str = "", *, keys: str = key("first", SECRET) + key("other", OTHER, "concurrent = 2")) -> Admission:
    return Admission(parse(text + PROVIDER + keys, "d.toml", {"HOME": "/x"}))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ({b"authorization": b"Bearer " + SECRET.encode()}, "first"),
        ({b"authorization": b"bearer " + SECRET.encode()}, "first"),
        ({b"authorization": b"BEARER   " + SECRET.encode() + b" "}, "first"),
        ({b"x-api-key": SECRET.encode()}, "first"),
        ({b"authorization": b"Bearer " + OTHER.encode(), b"x-api-key": SECRET.encode()}, "other"),
    ],
)
def test_a_known_key_is_its_tenant(head: dict[bytes, bytes], name: str) -> None:
    assert admission().authenticate(head).name == name


WRONG: list[dict[bytes, bytes]] = [
    {},
    {b"authorization": b""},
    {b"authorization": b"Bearer"},
    {b"authorization": b"Bearer "},
    {b"authorization": b"Bearer unknown"},
    {b"authorization": b"Bearer " + SECRET.encode()[:-1]},
    {b"authorization": b"Bearer " + SECRET.encode() + b"x"},
    {b"authorization": b"Bearer " + SECRET.upper().encode()},
    {b"authorization": b"Bearer\t" + SECRET.encode()},
    {b"authorization": b"Bearer " + SECRET.encode() + b", Bearer " + OTHER.encode()},
    {b"authorization": b"Basic " + SECRET.encode()},
    {b"authorization": b"Bearer \xff\xfe"},
    {b"authorization": b"Bearer " + b"x" * 16_000},
    {b"authorization": b"Bearer " + hashlib.sha256(SECRET.encode()).hexdigest().encode()},
    {b"authorization": b"Bearer wrong", b"x-api-key": SECRET.encode()},
    {b"x-api-key": b""},
    {b"x-api-key": b"Bearer " + SECRET.encode()},
    {b"api-key": SECRET.encode()},
    {b"cookie": SECRET.encode()},
]


def test_missing_malformed_and_unknown_keys_get_the_same_answer() -> None:
    door, answers = admission(), set()
    for head in WRONG:
        with pytest.raises(RequestError) as caught:
            door.authenticate(head)
        error = caught.value
        answers.add((error.message, error.status, error.type, error.code, error.param, error.retry_after_s))
    assert len(answers) == 1
    ((message, status, _, code, _, _),) = answers
    assert (status, code) == (401, "invalid_api_key")
    assert SECRET not in message


def test_without_keys_everybody_is_one_tenant() -> None:
    door = admission(keys="")
    assert door.authenticate({}) is door.authenticate({b"authorization": b"Bearer anything"})
    assert [tenant.name for tenant in door.tenants] == [""]


HOSTS = [
    (b"localhost", True),
    (b"localhost:8080", True),
    (b"LocalHost:80", True),
    (b"app.localhost", True),
    (b"a.b.localhost:1", True),
    (b"127.0.0.1", True),
    (b"127.0.0.2:8080", True),
    (b"127.255.255.254", True),
    (b"[::1]", True),
    (b"[::1]:8080", True),
    (b"", True),
    (b"evil.com", False),
    (b"evil.com:8080", False),
    (b"127.0.0.1.evil.com", False),
    (b"localhost.evil.com", False),
    (b"evillocalhost", False),
    (b"evil-localhost", False),
    (b"localhost.com", False),
    (b"10.0.0.1", False),
    (b"0.0.0.0", False),
    (b"[::]", False),
    (b"[fe80::1]", False),
    (b"[::ffff:10.0.0.1]", False),
    (b"169.254.169.254", False),
    (b"128.0.0.1", False),
    (b"2130706433", False),
    (b"0x7f.0.0.1", False),
    (b"127.1", False),
    (b"[evil.com]", False),
    (b"\xff.localhost.evil", False),
]


@pytest.mark.parametrize(("host", "allowed"), HOSTS)
def test_without_keys_only_loopback_names_are_answered(host: bytes, allowed: bool) -> None:
    door = admission(keys="")
    for _ in range(2):  # the second time from memory
        if allowed:
            assert door.check_browser({}, host, local_socket=False) is None
        else:
            with pytest.raises(RequestError) as caught:
                door.check_browser({}, host, local_socket=False)
            assert (caught.value.status, caught.value.code) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", [host for host, _ in HOSTS])
def test_with_keys_or_over_a_local_socket_any_host_is_answered(host: bytes) -> None:
    assert admission().check_browser({}, host, local_socket=False) is None
    assert admission(keys="").check_browser({}, host, local_socket=True) is None


def test_what_is_remembered_of_hosts_is_bounded() -> None:
    door = admission(keys="")
    for i in range(2000):
        door.check_browser({}, b"h%d.localhost" % i, local_socket=False)
    assert len(door._loopback_hosts) <= 256


LISTED = '[server]\ncors_origins = ["https://app.example"]\n'


@pytest.mark.parametrize(
    ("text", "origin", "allowed"),
    [
        ("", b"https://app.example", False),
        ("", b"null", False),
        ("", b"http://localhost", False),
        ("", b"", False),
        (LISTED, b"https://app.example", True),
        (LISTED, b"https://app.example.evil.com", False),
        (LISTED, b"https://evil.com", False),
        (LISTED, b"http://app.example", False),
        (LISTED, b"https://app.example:444", False),
        (LISTED, b"null", False),
        (LISTED, b"*", False),
        (LISTED, b"\xff", False),
    ],
)
@pytest.mark.parametrize("keys", ["", key("first", SECRET)])
def test_a_browsers_origin_must_be_listed(text: str, origin: bytes, allowed: bool, keys: str) -> None:
    door = admission(text, keys=keys)
    head = {b"origin": origin}
    if allowed:
        assert door.check_browser(head, b"localhost", local_socket=False) == origin
        return
    with pytest.raises(RequestError) as caught:
        door.check_browser(head, b"localhost", local_socket=False)
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


def test_a_listed_origin_does_not_excuse_the_host() -> None:
    with pytest.raises(RequestError):
        admission(LISTED, keys="").check_browser({b"origin": b"https://app.example"}, b"evil.com", local_socket=False)


# -- how much is under way -----------------------------------------------------------------------------


def entered(door: Admission, tenant: Tenant, times: int) -> None:
    for _ in range(times):
        door.enter(tenant, 1.0)


def test_the_process_and_each_key_have_their_bound_and_a_constant_wait() -> None:
    door = admission("[limits]\nin_flight_max = 5\nin_flight_per_key_max = 4\n")
    first, other = door.tenants
    waits = set()

    def refused(tenant: Tenant) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            door.enter(tenant, 1.0)
        waits.add(caught.value.retry_after_s)
        return caught.value

    entered(door, other, 2)
    assert refused(other).status == 429
    door.leave(other)
    entered(door, first, 4)
    assert refused(other).status == 503
    door.leave(first)
    entered(door, first, 1)
    door.leave(other)
    assert refused(first).status == 429
    assert (door.in_flight, first.in_flight, other.in_flight) == (4, 4, 0)
    assert waits == {RETRY_AFTER_S}


def test_a_request_counted_out_twice_is_noticed() -> None:
    door = admission()
    tenant = door.tenants[0]
    door.enter(tenant, 1.0)
    door.leave(tenant)
    with pytest.raises(AssertionError):
        door.leave(tenant)


def test_body_memory_is_bounded_and_given_back() -> None:
    door = admission('[limits]\nbody_memory_max = "1MiB"\nbody_bytes_max = "1MiB"\nupload_bytes_max = "1MiB"\n')
    door.hold(1 << 20)
    with pytest.raises(Refusal) as caught:
        door.hold(1)
    assert (caught.value.status, caught.value.retry_after_s) == (503, RETRY_AFTER_S)
    door.release(1 << 20)
    door.hold(1)
    assert door.body_bytes == 1


# -- addresses -----------------------------------------------------------------------------------------

TRUSTED = '[server]\ntrusted_proxies = ["10.0.0.0/8", "fd00::/8"]\n'


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"1.1.1.1,203.0.113.7 ,\t10.2.2.2", "203.0.113.7"),
        ("10.0.0.1", b"10.9.9.9, 10.2.2.2", "10.9.9.9"),
        ("fd00::1", b"2001:DB8::7", "2001:db8::7"),
        ("10.0.0.1", b"127.0.0.1", "127.0.0.1"),
        ("10.0.0.1", b"garbage", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7, garbage", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7, garbage, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b",,,", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7,", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.7:1234", "10.0.0.1"),
        ("10.0.0.1", b"[2001:db8::7]", "10.0.0.1"),
        ("10.0.0.1", b"fe80::1%\xff<script>", "10.0.0.1"),
        ("10.0.0.1", b"unknown", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("10.0.0.1", b", ".join([b"10.0.0.9"] * 4000), "10.0.0.9"),
        ("10.0.0.1", b"203.0.113.7, " + b", ".join([b"10.0.0.9"] * 31), "203.0.113.7"),
        ("", b"203.0.113.7", "203.0.113.7"),
        ("203.0.113.9", b"1.1.1.1", "203.0.113.9"),
        ("203.0.113.9", b"10.0.0.1", "203.0.113.9"),
        ("127.0.0.1", b"1.1.1.1", "127.0.0.1"),
    ],
)
def test_the_address_is_the_rightmost_hop_that_is_no_proxy_of_ours(
    peer: str, forwarded: bytes | None, expected: str
) -> None:
    head = {} if forwarded is None else {b"x-forwarded-for": forwarded}
    assert admission(TRUSTED).client_address(peer, head) == expected


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.1", ""])
def test_without_trusted_proxies_the_header_is_never_believed(peer: str) -> None:
    assert admission().client_address(peer, {b"x-forwarded-for": b"1.1.1.1"}) == peer


def test_a_digest_ends_by_the_clock_and_is_taken_from_those_who_are_known() -> None:
    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    now = time.time()
    rotated = KeyTerms(name="web", digests=(Digest(digest("new")), Digest(digest("old"), now + 100.0)))
    steady = KeyTerms(name="steady", digests=(Digest(digest("steady")),))
    one = admission(keys="")
    one.adopt(Policy(keys=(rotated, steady), closed=True))
    before, other = one.authenticate({b"x-api-key": b"old"}), one.authenticate({b"x-api-key": b"steady"})
    one.expire(now + 99.9)
    assert not before.gone
    one.expire(now + 100.0)
    assert before.gone
    with pytest.raises(RequestError):
        one.authenticate({b"x-api-key": b"old"})
    assert one.authenticate({b"x-api-key": b"new"}).name == "web"
    # Nobody else is asked again, and what the control process then says changes nothing.
    assert one.authenticate({b"x-api-key": b"steady"}) is other
    after = one.authenticate({b"x-api-key": b"new"})
    one.adopt(Policy(keys=(msgspec.structs.replace(rotated, digests=rotated.digests[:1]), steady), closed=True))
    assert one.authenticate({b"x-api-key": b"new"}) is after
    assert not after.gone
