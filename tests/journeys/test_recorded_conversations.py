"""The daemon, its errands and the CLI against what the original was recorded to say.

The node is given the identity of the recorded host; then it lives through the same stories. Every
request is compared with the recorded one element by element and attribute by attribute, in order,
and byte by byte. Three values are this run's own, and each has its rule: ``bootid`` is the running
boot's, the second half of ``sp`` is this machine's, ``Host`` and ``Content-Length`` follow.
"""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bus_fixture import private_bus
from bus_listener import Listener
from node import Node
from omaha_mock.server import AskedRecord, MockServer
from publisher import IMAGE_MIB, Site

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="the recorded conversations are not here (../shared/vectors)"
)

MATCH = "type='signal',interface='com.coreos.update1.Manager',member='StatusUpdate'"
"""Word for word what locksmith and FLUO ask the bus for."""

IDENTITY = """
[server]
machine_alias = "oracle-node"
"""


class Told:
    """One recorded request."""

    def __init__(self, path: Path) -> None:
        lines = path.read_bytes().partition(b"\n")[2]
        head, _, rest = lines.partition(b"\n\n")
        self.line, *headers = head.decode().split("\n")
        self.headers = dict(line.split(": ", 1) for line in headers)
        self.body = rest[: int(self.headers.get("Content-Length", 0))]


def told(story: str) -> list[Told]:
    return [Told(path) for path in sorted((VECTORS / story).glob("0*.txt"))]


def posts(story: str) -> list[Told]:
    return [one for one in told(story) if one.line.startswith("POST ")]


def statuses(story: str) -> list[str]:
    """The statuses that the original signalled, each once where it was repeated."""
    words = re.findall(r'"UPDATE_STATUS_([A-Z_]+)"', (VECTORS / story / "signals.txt").read_text())
    return [word for n, word in enumerate(words) if n == 0 or words[n - 1] != word]


class Host:
    """The recorded host, re-enacted: its disk, its server, and a listener on its bus."""

    def __init__(self, node: Node, server: MockServer, listener: Listener) -> None:
        self.node, self.server, self.listener = node, server, listener

    async def power_on(self) -> None:
        await asyncio.to_thread(self.node.power_on)

    async def updatectl(self, *words: str) -> int:
        done = await asyncio.to_thread(self.node.updatectl, *words)
        return done.returncode

    @property
    def boot_id(self) -> str:
        return (self.node.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    def heard(self) -> list[str]:
        words = [
            values[2].removeprefix("UPDATE_STATUS_")
            for values in self.listener.named("StatusUpdate")
        ]
        return [word for n, word in enumerate(words) if n == 0 or words[n - 1] != word]

    def said(self) -> list[AskedRecord]:
        """What the server has heard since the last time."""
        records = list(self.server.requests)
        self.server.requests.clear()
        return records

    def same(self, record: AskedRecord, recorded: Told) -> None:
        """One request, after the three rules have been applied to the recorded one."""
        theirs = recorded.body.decode()
        theirs, boots = re.subn(
            r'bootid="\{[0-9a-f-]{36}\}"', f'bootid="{{{self.boot_id}}}"', theirs
        )
        theirs, machines = re.subn(r'(sp="[^"_]*)_[^"]*"', rf'\1_{platform.machine()}"', theirs)
        assert (boots, machines) == (1, 1)
        ours_xml, theirs_xml = ElementTree.fromstring(record.body), ElementTree.fromstring(theirs)
        for ours, mine in zip(ours_xml.iter(), theirs_xml.iter(), strict=True):
            assert (ours.tag, list(ours.attrib.items())) == (mine.tag, list(mine.attrib.items()))
        assert record.body.decode() == theirs
        headers = {name: value for name, value in recorded.headers.items() if name != "Host"}
        headers["Content-Length"] = str(len(record.body))
        # The original sends nothing else, and neither do we: no User-Agent, no Accept-Encoding.
        assert {n: v for n, v in record.headers.items() if n != "Host"} == headers

    def conversation(self, story: str) -> None:
        records = self.said()
        assert len(records) == len(posts(story)), [record.body.decode() for record in records]
        for record, recorded in zip(records, posts(story), strict=True):
            self.same(record, recorded)

    def download(self, story: str) -> None:
        """The payload is asked for once, from its beginning, after 13/1 and before what follows."""
        kinds = ["POST" if one.line.startswith("POST") else "GET" for one in told(story)]
        assert kinds.index("GET") == 2
        (asked,) = self.server.payload_requests
        recorded = told(story)[2].headers
        extra = {name: value for name, value in asked.headers.items() if name not in recorded}
        # Ours on purpose: the attempt's id for the server's log, and no compression on the way.
        assert set(extra) == {"X-Bascule-Attempt", "Accept-Encoding"}
        assert extra["Accept-Encoding"] == "identity"
        assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", extra["X-Bascule-Attempt"])
        assert (asked.range, asked.status, asked.first) == ("", 200, 0)
        assert {n: asked.headers[n] for n in recorded if n != "Host"} == {"Accept": "*/*"}
        self.server.payload_requests.clear()


@pytest.fixture
async def host(tmp_path: Path, omaha: MockServer) -> AsyncIterator[Host]:
    site = await asyncio.to_thread(Site, tmp_path / "publisher")
    with private_bus() as bus:
        node = Node(
            tmp_path / "node", omaha.url, bus.address, site.keys,
            slot_mib=IMAGE_MIB + 2, settings=IDENTITY,
        )  # fmt: skip
        await asyncio.to_thread(node.make, site.image("3510.2.0"))
        (node.root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (node.root / "etc/oem-release").write_text("ID=qemu\nVERSION_ID=1.2.3\n")
        listener = await Listener.open(bus.address, MATCH)
        try:
            yield Host(node, omaha, listener)
        finally:
            await asyncio.to_thread(node.power_off)
            listener.close()


@pytest.fixture
async def release(tmp_path: Path, host: Host) -> Path:
    """Release 3602.1.5, on offer."""
    folder = tmp_path / "publisher"
    site = Site.__new__(Site)
    site.folder, site.key = folder, folder / "keys/update.key.pem"
    payload = await asyncio.to_thread(lambda: site.payload(site.image("3602.1.5"), "3602.1.5"))
    host.server.offer("3602.1.5", payload, disable_backoff=True)
    return payload


async def test_a_whole_update(host: Host, release: Path) -> None:
    await host.power_on()
    assert await host.updatectl("update") == 0
    host.conversation("full_kernel")
    host.download("full_kernel")
    await host.listener.settle()
    assert host.heard() == statuses("full_kernel")


async def test_nothing_new(host: Host) -> None:
    await host.power_on()
    assert await host.updatectl("update") == 6
    host.conversation("noupdate")
    await host.listener.settle()
    assert host.heard() == statuses("noupdate")


async def test_an_update_and_the_first_check_from_the_new_slot(host: Host, release: Path) -> None:
    await host.power_on()
    assert await host.updatectl("update") == 0
    host.conversation("reboot_1_update")
    host.download("reboot_1_update")
    assert await asyncio.to_thread(host.node.reboot) == "B"
    assert await asyncio.to_thread(host.node.finish_boot)
    assert host.said() == []
    host.listener.signals.clear()
    assert await host.updatectl("update") == 6
    host.conversation("reboot_2_newslot")
    await host.listener.settle()
    assert host.heard() == statuses("reboot_2_newslot")[1:]


async def test_an_update_that_did_not_take(host: Host, release: Path) -> None:
    await host.power_on()
    assert await host.updatectl("update") == 0
    host.conversation("rollback_1_update")
    host.download("rollback_1_update")
    await asyncio.to_thread(host.node.stop_daemon)
    # The new slot's boot never reaches us; the firmware takes the old one again.
    assert await asyncio.to_thread(lambda: host.node.power_on(daemon=False)) == "B"
    assert await asyncio.to_thread(host.node.power_on) == "A"
    host.server.noupdate()
    host.listener.signals.clear()
    assert await host.updatectl("update") == 6
    host.conversation("rollback_2_oldslot")
    await host.listener.settle()
    assert host.heard() == statuses("rollback_2_oldslot")[1:]


async def test_a_tick_while_the_reboot_is_awaited(host: Host, release: Path) -> None:
    await host.power_on()
    assert await host.updatectl("update") == 0
    host.said()
    await asyncio.to_thread(host.node.stop_daemon)
    host.node.settings += '[check]\nfirst = "0.1s"\nfuzz = "0s"\nspread = false\n'
    host.node.write_config()
    host.listener.signals.clear()
    await asyncio.to_thread(host.node.start_daemon)
    async with asyncio.timeout(60):
        while not host.server.requests:
            await asyncio.sleep(0.05)
    host.conversation("sched_ping")
    await host.listener.settle()
    assert set(host.heard()) == {"UPDATED_NEED_REBOOT"} == set(statuses("sched_ping"))


async def test_a_payload_signed_by_somebody_else(host: Host, release: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    bad = tmp_path / "wrong.bin"
    image = tmp_path / "publisher" / "3602.1.5.img"

    def sign() -> None:
        Site.mock("keygen", str(stranger))
        key = str(stranger / "update.key.pem")
        Site.mock("pack", "--image", str(image), "--key", key, "-o", str(bad))

    await asyncio.to_thread(sign)
    host.server.noupdate()
    host.server.offer("3602.1.5", bad, disable_backoff=True)
    await host.power_on()
    assert await host.updatectl("update") == 10
    host.conversation("wrongkey")
    host.download("wrongkey")
    await host.listener.settle()
    assert host.heard() == statuses("wrongkey")
    assert host.node.flags("B") == (0, 0, 0)
