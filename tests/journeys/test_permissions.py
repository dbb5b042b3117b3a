"""Who may do what, with the real daemon, the real client, the shipped policies and a real polkitd."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import Exit, NotPermitted
from bascule.faces.authority import ACTION_PREFIX, POLKIT
from bus_fixture import private_bus
from node import BIN, Node
from polkit_server import (
    NOBODY,
    POLICIES,
    POLKIT_BUS_POLICY,
    POLKITD,
    name_appears,
    real_polkit,
)
from private_bus import CLOSED
from publisher import IMAGE_MIB, Site

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, to run the client as another user, and setpriv",
)

READ = [
    ["status"],
    ["slots"],
    ["explain"],
    ["explain", "--history"],
    ["history"],
    ["history", "verify"],
    ["hold"],
    ["pin"],
    ["quarantine"],
    ["config"],
]
STEER = [
    ("check", ["check"]),
    ("update", ["update"]),
    ("update", ["prepare"]),
    ("update", ["activate"]),
    ("override", ["update", "--now"]),
    ("override", ["update", "--allow-downgrade"]),
    ("cancel", ["cancel"]),
    ("cancel", ["reset"]),
    ("rollback", ["rollback"]),
    ("reboot", ["reboot"]),
    ("configure", ["hold", "--indefinite"]),
    ("configure", ["pin", "<2"]),
    ("override", ["quarantine", "clear"]),
    ("repair", ["doctor", "--repair"]),
]


@dataclass
class Served:
    """A host on a system bus with the policies that are shipped."""

    node: Node

    def as_nobody(self, *words: str, program: str = "updatectl") -> tuple[int, dict[str, Any], str]:
        # The capability reads the interpreter wherever it lies; the bus sees the user id.
        done = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
             "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--",
             str(BIN / program), *words],
            capture_output=True, text=True, timeout=120, cwd="/",
            env={**os.environ, "BASCULE_BUS_ADDRESS": self.node.bus, "HOME": "/", "NO_COLOR": "1",
                 "DBUS_SYSTEM_BUS_ADDRESS": self.node.bus},
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = {}
        return done.returncode, answer, done.stdout + done.stderr


@contextmanager
def host(tmp_path: Path, site: Site, rules: str | None) -> Iterator[Served]:
    """`rules`: for polkitd; None for a host without polkit."""
    with ExitStack() as stack:
        include = [*POLICIES, *([POLKIT_BUS_POLICY] if rules is not None else [])]
        bus = stack.enter_context(private_bus("system", CLOSED, include))
        if rules is not None:
            stack.enter_context(real_polkit(bus, rules))
            if not asyncio.run(name_appears(bus.address, POLKIT)):
                pytest.skip("polkitd did not start here (needs a mount namespace)")
        node = Node(tmp_path / "host", site.url, bus.address, site.keys, slot_mib=IMAGE_MIB + 2)
        node.make(site.image("1.0.0"))
        assert node.power_on() == "A"
        stack.callback(node.power_off)
        yield Served(node)


def reads(served: Served) -> None:
    for words in READ:
        code, answer, out = served.as_nobody(*words, "--json")
        assert code == Exit.DONE, (words, out)
        assert answer["ok"] is True, (words, out)
    code, _, out = served.as_nobody("-status", program="update_engine_client")
    assert code == 0, out
    assert "CURRENT_OP=UPDATE_STATUS_IDLE" in out


def is_refused(served: Served, action: str, words: list[str]) -> None:
    code, answer, out = served.as_nobody(*words, "--json")
    assert code == Exit.NOT_PERMITTED, (words, out)
    error = answer["error"]
    assert error["id"] == NotPermitted.id
    assert error["context"] == {"action": ACTION_PREFIX + action, "uid": NOBODY}, words
    assert error["remedy"] == NotPermitted.remedy


@pytest.mark.skipif(not POLKITD.exists(), reason="polkitd is not installed (Debian: polkitd)")
def test_anyone_reads_and_polkit_says_who_steers(site: Site, tmp_path: Path) -> None:
    rules = f"""polkit.addRule(function(action, subject) {{
        if (action.id == "{ACTION_PREFIX}check" && subject.user == "nobody")
            return polkit.Result.YES;
    }});"""
    site.publish("2.0.0")
    with host(tmp_path, site, rules) as served:
        reads(served)
        before = served.node.ledger()
        for action, words in STEER:
            if action != "check":
                is_refused(served, action, words)
        assert served.node.ledger() == before, "nothing came of it"
        code, _, out = served.as_nobody("check", "--json")
        assert code == Exit.DONE, out
        assert "2.0.0" in str(served.node.ledger()["answer"])
        log = served.node.log.read_text()
        assert f'"uid": {NOBODY}' in log and '"Refused"' in log
        # Root is asked by nobody.
        assert served.node.updatectl("hold", "--for", "1h").returncode == Exit.DONE


def test_without_polkit_only_root_steers(site: Site, tmp_path: Path) -> None:
    with host(tmp_path, site, None) as served:
        reads(served)
        for action, words in STEER:
            is_refused(served, action, words)
        code, _, out = served.as_nobody("-reset_status", program="update_engine_client")
        assert code != 0, out
        assert served.node.updatectl("pin", "<2").returncode == Exit.DONE
        code, answer, out = served.as_nobody("pin", "--json")
        assert code == Exit.DONE and answer["pin"] == "<2", out
