"""The admin listener of a running `dandolo serve`: who may change what, and what is written down of it."""

import hashlib
import json
import os
import signal

import pytest

from dandolo.sim import SimProvider, SimThread

KEY = "dnd_0123456789abcdefghijklmnopqrstuv"
CLIENT_KEY = "dnd_client6789abcdefghijklmnopqrstuv"


def keys(**named):
    tables = []
    for name, (key, admin) in named.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        tables.append(f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\nadmin = {str(admin).lower()}\n')
    return "".join(tables)


KEYS = keys(ops=(KEY, True), app=(CLIENT_KEY, False))
PURGE = "/admin/cache/purge"


def bearer(key):
    return (("Authorization", f"Bearer {key}"),)


@pytest.fixture(scope="module")
def sims():
    with SimThread(SimProvider("one")) as running:
        yield running


def test_changes_are_written_down_with_who_and_how_they_ended(begin, configure, sims, tmp_path, eventually):
    state = tmp_path / "state"
    path = configure(sims["one"], more=KEYS, server=f'state_dir = "{state}"')
    served = begin("serve", "--config", path).ready()
    where = ("127.0.0.1", served.admin)
    assert served.ask(PURGE, {"model": "m"}, bearer(KEY), where)[0] == 200
    assert served.ask(PURGE, {"modle": "m"}, bearer(KEY), where)[0] == 400
    assert served.ask(PURGE, {"all": True}, bearer(CLIENT_KEY), where)[0] == 403
    assert served.ask(PURGE, {"all": True}, (), where)[0] == 401
    status, text = served.of_admin("/admin/audit", bearer(KEY))
    assert status == 200
    entries = json.loads(text)["entries"]
    assert [(one["who"], one["path"], one["status"], one.get("facts")) for one in reversed(entries)] == [
        ("ops", PURGE, 200, {"model": "m"}),
        ("ops", PURGE, 400, None),
        ("app", PURGE, 403, None),
    ]
    file = state / "audit.jsonl"
    eventually(lambda: file.exists() and len(file.read_text().splitlines()) == 3, "all are in the file")
    assert KEY not in file.read_text()
    # The next process goes on with it.
    served.kill()
    served.wait()
    served = begin("serve", "--config", path).ready()
    assert len(json.loads(served.of_admin("/admin/audit", bearer(KEY))[1])["entries"]) == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((("Origin", "http://evil.example"),), 403),
        ((("Origin", "null"),), 403),
        ((("Sec-Fetch-Site", "cross-site"),), 403),
        ((("Sec-Fetch-Site", "same-site"),), 403),
    ],
)
def test_another_page_can_purge_nothing(begin, configure, sims, headers, status):
    served = begin("serve", "--config", configure(sims["one"])).ready()
    assert served.ask(PURGE, {"all": True}, headers, ("127.0.0.1", served.admin))[0] == status
    assert json.loads(served.of_admin("/admin/audit")[1])["entries"] == []


def test_a_folder_that_cannot_be_written_keeps_nobody_from_changing(begin, configure, sims, tmp_path):
    (tmp_path / "state").write_text("a file where a folder should be")
    path = configure(sims["one"], server=f'state_dir = "{tmp_path}/state"')
    served = begin("serve", "--config", path).ready()
    assert served.ask(PURGE, {"all": True}, (), ("127.0.0.1", served.admin))[0] == 200
    served.says("kept in memory only")
    assert json.loads(served.of_admin("/admin/audit")[1])["kept"] == "memory"


def test_a_worker_tells_of_few_models_and_of_those_in_trouble_first(begin, configure, sims, tmp_path, eventually):
    served = begin("serve", "--config", configure(sims["one"])).ready()
    for number in range(30):
        assert served.chat(model=f"m{number}")[0] == 200

    def told():
        (account,) = json.loads(served.of_admin("/admin/snapshot")[1])["providers"] or [{}]
        return account if account.get("more") else None

    account = eventually(told, "all were asked")
    assert (len(account["models"]), account["more"]) == (24, 6)
    assert len(json.loads(served.of_admin("/admin/routes")[1])["accounts"][0]["models"]) == 30


def test_all_workers_are_shown_as_one_gateway_and_one_that_dies_is_told(begin, configure, sims, eventually):
    served = begin("serve", "--config", configure(sims["one"]), "--workers", 2).ready()

    def snapshot():
        return json.loads(served.of_admin("/admin/snapshot")[1])

    def of_two():
        workers = snapshot()["workers"] or []
        return workers if [one["name"] for one in workers] == ["0", "1"] else None

    first = eventually(of_two, "both workers tell")
    for number in range(20):
        assert served.chat(messages=[{"role": "user", "content": f"question {number}"}])[0] == 200
    eventually(lambda: snapshot()["traffic"]["total"]["requests"] == 20, "requests of both are counted")
    (account,) = snapshot()["providers"]
    assert account["account"] == "one", "the account of both is one"
    os.kill(first[0]["pid"], signal.SIGKILL)
    eventually(lambda: any(one["kind"] == "worker" for one in snapshot()["events"]), "its death is an event")
    eventually(lambda: (two := of_two()) and two[0]["pid"] != first[0]["pid"], "another has taken its place")


def test_keys_ledger_and_objectives_are_shown_and_copied(begin, configure, sims, tmp_path, eventually):
    state = tmp_path / "state"
    limited = KEYS.replace('name = "app"', 'name = "app"\nrpm = 60')
    limited = limited.replace('name = "ops"', 'name = "ops"\nbudget_usd_per_day = 5.0')
    path = configure(sims["one"], more=limited, server=f'state_dir = "{state}"')
    served = begin("serve", "--config", path).ready()
    assert served.chat(headers=bearer(CLIENT_KEY))[0] == 200

    def told():
        snapshot = json.loads(served.of_admin("/admin/snapshot", bearer(KEY))[1])
        keys = {one["name"]: one for one in snapshot["keys"] or ()}
        return snapshot if keys.get("app", {}).get("rpm", {}).get("used") == 1 and snapshot["slo"] else None

    snapshot = eventually(told, "the key's use and the objectives are told")
    keys = {one["name"]: one for one in snapshot["keys"]}
    assert keys["app"]["rpm"] == {"used": 1, "limit": 60}
    assert keys["ops"]["day_usd"] == {"used": 0, "limit": 5.0}
    assert snapshot["ledger"]["reason"] == ""
    assert snapshot["alerts"] == []
    made = {"name": "made"}
    assert served.ask("/admin/keys", made, bearer(KEY), ("127.0.0.1", served.admin))[0] == 201
    backup = begin("backup", tmp_path / "backups", "--config", path)
    assert backup.wait() == 0, backup.err
    (folder,) = (tmp_path / "backups").iterdir()
    assert {"keys.sqlite", "ledger.db", "manifest.json"} <= {one.name for one in folder.iterdir()}


def test_a_backup_is_made_where_the_gateway_is_for_those_who_are_elsewhere(begin, configure, sims, tmp_path):
    state = tmp_path / "state"
    served = begin("serve", "--config", configure(sims["one"], more=KEYS, server=f'state_dir = "{state}"')).ready()
    where, env = ("--admin", f"127.0.0.1:{served.admin}"), {"DANDOLO_ADMIN_KEY": KEY}
    made = begin("backup", *where, env=env)
    assert made.wait() == 0, made.err
    (folder,) = (state / "backups").iterdir()
    assert f"copied to {folder}" in made.out
    assert "ledger.db" in made.out
    assert (folder / "manifest.json").exists()
    # A client's key makes none, and nobody fills the disk with them.
    refused = begin("backup", *where, env={"DANDOLO_ADMIN_KEY": CLIENT_KEY})
    assert refused.wait() == 1
    assert "admin = true" in refused.err
    for number in range(7):
        (state / "backups" / f"older-{number}").mkdir()
    full = begin("backup", *where, env=env)
    assert full.wait() == 1
    assert "expected fewer than 8" in full.err
    audited = json.loads(served.of_admin("/admin/audit", bearer(KEY))[1])["entries"]
    assert [(one["path"], one["who"], one["status"]) for one in audited] == [
        ("/admin/backup", "ops", 409),
        ("/admin/backup", "app", 403),
        ("/admin/backup", "ops", 201),
    ]
    neither = begin("backup")
    assert neither.wait() == 2
    assert "--admin" in neither.err
