"""The running daemon against a bad day: signals, full disks, damaged state, a bus that goes away,
and a server that means harm. Whatever comes, the booted slot stays the next boot, the daemon stays
or ends with a sentence, and nothing prints a traceback."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bus_fixture import private_bus
from node import BIN, Node
from private_bus import PrivateBus
from publisher import IMAGE_MIB, Site

MakeNode = Callable[..., Node]
PATIENCE = 60.0


def until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def begin(node: Node, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "updatectl"), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=node._env(),
    )  # fmt: skip


def said(client: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = client.communicate(timeout=PATIENCE)
    return client.returncode, err


def calm(node: Node) -> None:
    """Nothing was shown that only a programmer reads."""
    log = node.log.read_text()
    assert "Traceback" not in log and "errand-failed" not in log, log[-3000:]


# ── signals ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["CHECKING_FOR_UPDATE", "DOWNLOADING", "UPDATED_NEED_REBOOT"])
def test_sigterm_is_a_clean_stop(site: Site, make_node: MakeNode, moment: str) -> None:
    two = site.publish("2.0.0")
    if moment == "CHECKING_FOR_UPDATE":
        site.fault("delay", seconds=600, on="omaha")
    elif moment == "DOWNLOADING":
        site.fault("slow", rate=300_000)
    node = make_node()
    node.power_on()
    client = begin(node, "update")
    until(lambda: node.status()["state"] == moment, moment)
    errands = node.errands()
    assert node.stop_daemon(signal.SIGTERM, timeout=PATIENCE) == 0
    # It took its errand along; nobody writes to the slot any more.
    assert not [pid for pid in errands if Path(f"/proc/{pid}").exists()]
    code, err = said(client)
    assert code in ((0,) if moment == "UPDATED_NEED_REBOOT" else (3, 17)), err
    calm(node)
    assert node.flags("A") == (1, 0, 1)
    site.no_faults()
    node.start_daemon()
    if moment != "UPDATED_NEED_REBOOT":
        assert node.flags("B")[0] == 0
        done = node.updatectl("update")
        assert done.returncode == 0, done.stderr
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    assert node.reboot() == "B"


def test_sigterm_at_random_moments(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    site.fault("slow", rate=1_500_000)
    node = make_node()
    node.power_on()
    rng = random.Random(8)
    for _ in range(4):
        client = begin(node, "update")
        node.pause(rng.uniform(0, 2.5))
        assert node.stop_daemon(signal.SIGTERM, timeout=PATIENCE) == 0
        # 5: a proven slot is being staged already, where the last stop came in between.
        assert said(client)[0] in (0, 3, 5, 14, 17)
        assert node.flags("A") == (1, 0, 1)
        node.start_daemon()
    calm(node)
    site.no_faults()
    done = node.updatectl("update")
    assert done.returncode == 0 or node.status()["state"] == "UPDATED_NEED_REBOOT", done.stderr


def test_a_question_under_way_is_answered_when_the_daemon_stops(
    site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0")
    site.fault("delay", seconds=600, on="omaha")
    node = make_node()
    node.power_on()
    client = begin(node, "plan")
    node.wait_for_errand()
    errands = node.errands()
    assert node.stop_daemon(signal.SIGTERM, timeout=PATIENCE) == 0
    code, err = said(client)
    assert code == 17 and "the daemon stops" in err
    until(lambda: not [p for p in errands if Path(f"/proc/{p}").exists()], "no errand is left")
    calm(node)


def test_sighup_rereads_and_says_what_changed(site: Site, make_node: MakeNode) -> None:
    node = make_node(settings='[server]\nmachine_alias = "one"\n')
    node.power_on()
    assert node.daemon is not None
    node.settings = '[server]\nmachine_alias = "two"\n'
    node.write_config()
    node.daemon.send_signal(signal.SIGHUP)
    until(lambda: "server.machine_alias is now 'two'" in node.log.read_text(), "the change")
    node.settings = "[server]\nmachine_alais = 3\n"
    node.write_config()
    node.daemon.send_signal(signal.SIGHUP)
    until(lambda: "unknown key `server.machine_alais`" in node.log.read_text(), "the mistake")
    assert node.status()["state"] == "IDLE"
    calm(node)


# ── state ────────────────────────────────────────────────────────────────────────────────────

DAMAGES = {  # the other kinds of damage: tests/engine/test_ledger.py
    "torn": b'{"schema": 1, "intent": {"versi',
    "wrong types": json.dumps(
        {
            "schema": 1, "intent": {"x": 1}, "outbox": [{"type": "a"}, 5, {"type": 3, "result": 1}],
            "quarantine": {"zz": {"until": "x", "at": []}}, "pin": "garbage", "reboot": {"at": "x"},
            "verdict": {"verdict": 5}, "answer": {"offer": 5}, "payload_state": {"a": 1},
            "releases": {"A": "x", "Q": "y"}, "blessed": {"slot": 9}, "prepared": {"a": 1},
            "once": {"x": 2}, "late": {"y": 3}, "budget": {"used": "x"}, "baseline": {"a": 3},
            "health": {"a": "b"}, "last_checked": 10**30, "poll_interval": -5, "floor": "",
        }
    ).encode(),
}  # fmt: skip


def test_a_damaged_ledger_is_begun_afresh(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    for name, body in DAMAGES.items():
        node.state.mkdir(exist_ok=True)
        for file in node.state.glob("ledger*"):
            file.unlink()
        (node.state / "ledger.json").write_bytes(body)
        node.power_on()
        for words in (("status",), ("explain",), ("history",), ("quarantine", "list")):
            done = node.updatectl(*words)
            assert done.returncode == 0, (name, words, done.stderr)
        if name != "wrong types":
            assert (node.state / "ledger.damaged").exists(), name
        assert node.bascule("bless").returncode == 0, name
        calm(node)
        node.stop_daemon()
    node.power_on()
    node.updatectl("pin", "--clear")
    done = node.updatectl("update")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    """A state directory with a file system of its own, which can be filled."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    state = tmp_path / "node0" / "state"
    state.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(state)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield state
    subprocess.run(["umount", "-l", str(state)], check=True)


def fill(state: Path) -> None:
    with (state / "filler").open("ab", 0) as file:
        for piece in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * piece)
            except OSError:
                continue


def test_a_full_disk_stops_the_update_and_spares_the_boot(
    small_state: Path, site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0")
    site.fault("slow", rate=700_000)
    node = make_node()
    node.power_on()
    client = begin(node, "update")
    until(lambda: node.status()["state"] == "DOWNLOADING", "DOWNLOADING")
    fill(small_state)
    code, err = said(client)
    assert code == 11 and "No space left on device" in err and "state.directory" in err
    assert (node.flags("A"), node.flags("B")[0]) == ((1, 0, 1), 0)
    for words in (("status",), ("explain",), ("history",)):
        assert node.updatectl(*words).returncode == 0
    assert node.updatectl("hold", "--for", "1h").returncode == 11
    calm(node)
    (small_state / "filler").unlink()
    site.no_faults()
    assert node.updatectl("update").returncode == 0
    # A trial boot with a full disk: a good release is blessed all the same.
    fill(small_state)
    node.stop_daemon()
    assert node.power_on(daemon=False) == "B"
    assert node.finish_boot()
    assert node.flags("B") == (2, 0, 1)
    (small_state / "filler").unlink()
    node.start_daemon()
    assert node.status()["verdict"] == "UPDATED"


def test_a_state_directory_that_cannot_be_written_is_named(
    small_state: Path, site: Site, make_node: MakeNode
) -> None:
    node = make_node()
    subprocess.run(["mount", "-o", "remount,ro", str(small_state)], check=True)
    with pytest.raises(RuntimeError, match="Read-only file system"):
        node.power_on()
    calm(node)
    subprocess.run(["mount", "-o", "remount,rw", str(small_state)], check=True)
    node.power_on()
    assert node.status()["state"] == "IDLE"


def test_a_daemon_whose_server_is_disabled_stays_up(site: Site, make_node: MakeNode) -> None:
    node = make_node(
        settings='[check]\nfirst = "0.2s"\nfuzz = "0s"\ninterval = "1h"\n[server]\nurl = "disabled"\n'
    )
    node.power_on(daemon=False)
    with node.log.open("ab") as log:
        node.daemon = subprocess.Popen(
            [str(BIN / "bascule"), "run", *node._arguments()],
            stdout=log,
            stderr=log,
            env=node._env(),
        )
    until(lambda: '"ready"' in node.log.read_text(), "ready")
    assert node.daemon.poll() is None
    calm(node)


# ── processes and bus ────────────────────────────────────────────────────────────────────────


def test_a_second_daemon_says_who_is_there_already(site: Site, make_node: MakeNode) -> None:
    node = make_node()
    node.power_on()
    assert node.daemon is not None
    second = subprocess.run(
        [str(BIN / "bascule"), "run", *node._arguments()],
        capture_output=True, text=True, env=node._env(), timeout=PATIENCE,
    )  # fmt: skip
    assert second.returncode == 5
    assert f"process {node.daemon.pid}" in second.stderr and "Traceback" not in second.stderr
    assert node.status()["state"] == "IDLE"


@pytest.fixture
def lone_bus() -> Iterator[PrivateBus]:
    with private_bus() as bus:
        yield bus


def test_the_update_goes_on_while_the_bus_is_away(
    lone_bus: PrivateBus, site: Site, tmp_path: Path
) -> None:
    site.publish("2.0.0")
    site.fault("slow", rate=1_000_000)
    node = Node(
        tmp_path / "node", site.url, lone_bus.address, site.keys, slot_mib=IMAGE_MIB + 2
    ).make(site.image("1.0.0"))
    try:
        node.power_on()
        client = begin(node, "update")
        until(lambda: node.status()["state"] == "DOWNLOADING", "DOWNLOADING")
        lone_bus.stop()
        assert said(client)[0] == 3
        away = node.updatectl("status")
        assert away.returncode == 3 and "cannot be reached" in away.stderr
        lone_bus.start()
        until(lambda: node.updatectl("status").returncode == 0, "the daemon is back on the bus")
        until(lambda: node.status()["state"] == "UPDATED_NEED_REBOOT", "the update went on")
        lone_bus.stop()
        assert node.stop_daemon(timeout=PATIENCE) == 0
        lone_bus.start()
        calm(node)
    finally:
        node.power_off()


# ── the server ───────────────────────────────────────────────────────────────────────────────

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class Enemy:
    """A server of which each answer is one behaviour."""

    def __init__(self) -> None:
        self.post: Behaviour = answer(b"")
        self.get: Behaviour = answer(b"", 404)
        enemy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def _do(self, behaviour: Behaviour) -> None:
                self.close_connection = True
                try:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    behaviour(self)
                    self.wfile.flush()
                except OSError:
                    pass

            def do_POST(self) -> None:
                self._do(enemy.post)

            def do_GET(self) -> None:
                self._do(enemy.get)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{self.server.server_port}/"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def answer(
    body: bytes, status: int = 200, *headers: tuple[str, str], length: int | None = None
) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def drip(body: bytes) -> Behaviour:
    """One byte a second."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for byte in body:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            Node.pause(1)

    return behave


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
    + b"]><response>&j;</response>"
)
OUTSIDE = (
    b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<response protocol="3.0">&x;</response>'
)

ANSWERS: dict[str, tuple[Behaviour, int]] = {
    "endless": (endless, 31),
    "entities": (answer(BOMB), 31),
    "a file of this host": (answer(OUTSIDE), 31),
    "one byte a second": (drip(b"<response>" * 50), 2000),
    "a body that is an error": (answer(b"<html>" + b"\x1b[2J" * 9000, 500), 2500),
    "to a file": (answer(b"", 302, ("Location", "file:///etc/passwd")), 2000),
    "round and round": (answer(b"", 307, ("Location", "/v1/update/")), 2000),
    "packed": (answer(gzip.compress(bytes(50 << 20)), 200, ("Content-Encoding", "gzip")), 31),
    "a header of 10 MB": (answer(b"", 200, ("X", "y" * 10_000_000)), 2000),
}


def offer(base: str, raw: bytes, **changes: str) -> Behaviour:
    facts = {
        "url": base, "name": "p.bin", "size": str(len(raw)), "version": "2.0.0",
        "sha256": base64.b64encode(hashlib.sha256(raw).digest()).decode(), **changes,
    }  # fmt: skip
    return answer(
        '<?xml version="1.0"?><response protocol="3.0">'
        '<app appid="{{e96281a6-d1af-4bde-9a0a-97b76e56dc57}}" status="ok">'
        '<updatecheck status="ok"><urls><url codebase="{url}"/></urls>'
        '<manifest version="{version}"><packages><package name="{name}" size="{size}"/></packages>'
        '<actions><action event="postinstall" sha256="{sha256}" DisablePayloadBackoff="true"/>'
        "</actions></manifest></updatecheck></app></response>".format(**facts).encode()
    )


@pytest.fixture
def enemy() -> Iterator[Enemy]:
    enemy = Enemy()
    yield enemy
    enemy.stop()


@pytest.fixture
def host(site: Site, make_node: MakeNode, enemy: Enemy) -> Node:
    node = make_node(
        settings=f'[server]\nurl = "{enemy.base}v1/update/"\n'
        '[download]\nstall_time = "2s"\nconnect_timeout = "2s"\nretry_wait = "0.01s"\n'
    )
    node.power_on()
    return node


def refused(node: Node) -> int:
    """The number of the error that an update ends with; the daemon lives and slot B does not boot."""
    done = node.updatectl("update", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode != 0 and error["remedy"]
    assert "\x1b" not in error["message"]
    assert node.flags("A") == (1, 0, 1) and node.flags("B")[0] == 0
    return int(error["number"])


def test_whatever_the_server_answers_is_an_error_with_a_number(host: Node, enemy: Enemy) -> None:
    for name, (behaviour, number) in ANSWERS.items():
        enemy.post = behaviour
        assert refused(host) == number, name
    calm(host)
    status = host.status()
    assert status["state"] == "IDLE"


def test_whatever_an_offer_says_is_checked(host: Node, enemy: Enemy) -> None:
    for changes in (
        {"url": "file:///etc/"},
        {"size": "1" + "0" * 30},
        {"name": "../../etc/passwd"},
    ):
        enemy.post = offer(enemy.base, b"payload", **changes)
        assert refused(host) == 34, changes
    calm(host)


def test_whatever_comes_for_a_payload_is_no_release(site: Site, host: Node, enemy: Enemy) -> None:
    raw = site.payload(site.image("2.0.0"), "2.0.0").read_bytes()
    enemy.post = offer(enemy.base, raw)
    huge = b"CrAU" + (1).to_bytes(8, "big") + (1 << 62).to_bytes(8, "big") + raw[20:]
    for name, behaviour, number in (
        ("broken", answer(b"", 500), 37),
        ("to a file", answer(b"", 302, ("Location", "file:///etc/passwd")), 9),
        ("a captive portal", answer(b"<html>Please log in</html>"), 11),
        ("long", answer(raw + b"x"), 11),
        ("endless", endless, 21),
        ("a manifest of 4 EiB", answer(huge), 11),
        ("packed", answer(gzip.compress(raw), 200, ("Content-Encoding", "gzip")), 11),
        ("another range", answer(raw, 206, ("Content-Range", "bytes 5-9/10")), 37),
    ):
        enemy.get = behaviour
        assert refused(host) == number, name
    calm(host)
    enemy.get = answer(raw)
    done = host.updatectl("update")
    assert done.returncode == 0, done.stderr
    assert host.flags("B") == (2, 1, 0)
