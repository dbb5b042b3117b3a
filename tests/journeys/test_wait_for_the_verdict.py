"""``updatectl update --wait`` from elsewhere: the host and its bus go away, and come back judged."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from bascule.errors import Exit, NothingPending
from node import BIN, Node
from private_bus import PrivateBus
from publisher import IMAGE_MIB, Site


class Waiting:
    """The command as a process; what it says on stderr is gathered as it comes."""

    def __init__(self, node: Node, *words: str) -> None:
        self.process = subprocess.Popen(
            [str(BIN / "updatectl"), "update", "--wait", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=node._env(),
        )  # fmt: skip
        self.heard: list[str] = []
        self._news = Event()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.heard.append(line)
            self._news.set()

    def until(self, words: str) -> None:
        """Until a line has `words`."""
        while not any(words in line for line in self.heard):
            assert self.process.poll() is None, (self.heard, self.process.communicate()[0])
            assert self._news.wait(60), self.heard
            self._news.clear()

    def end(self) -> tuple[int, str, str]:
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None and self.process.stderr is not None
        out = self.process.stdout.read()
        self.process.stdout.close()
        self.process.stderr.close()
        told = "".join(self.heard)
        assert "Traceback" not in told
        return code, out, told


@contextmanager
def host(site: Site, folder: Path, bus_folder: Path) -> Iterator[tuple[Node, PrivateBus]]:
    bus = PrivateBus(bus_folder)
    bus.start()
    node = Node(folder / "host", site.url, bus.address, site.keys, slot_mib=IMAGE_MIB + 2)
    node.make(site.image("1.0.0"))
    try:
        yield node, bus
    finally:
        node.power_off()
        bus.stop()


Host = tuple[Node, PrivateBus]


@pytest.fixture
def waited(site: Site, tmp_path: Path, short_folder: Path) -> Iterator[Host]:
    with host(site, tmp_path, short_folder) as made:
        yield made


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import tempfile

    # A socket's path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="bus-") as name:
        yield Path(name)


def reboot(node: Node, bus: PrivateBus, meanwhile: Callable[[], None]) -> None:
    """The whole host goes away, message bus and all, and comes back."""
    node.stop_daemon()
    bus.stop()
    meanwhile()
    bus.start()
    node.power_on()


def test_through_the_reboot_to_the_good_end(site: Site, waited: Host) -> None:
    node, bus = waited
    site.publish("2.0.0")
    node.power_on()
    command = Waiting(node)
    command.until("Waiting for the reboot and the verdict")
    command.until("Release 2.0.0 is staged")
    reboot(node, bus, lambda: command.until("waiting for it to come back"))
    command.until("It answers again. Release 2.0.0 is on trial")
    assert command.process.poll() is None, "on trial is no verdict"
    assert node.finish_boot()
    code, out, told = command.end()
    assert code == 0, (out, told)
    assert out.splitlines()[-1].startswith("Updated from 1.0.0 to 2.0.0")
    assert "If this session ends" not in told, "the command does not run on that host"


def test_through_the_reboot_to_the_bad_end_as_json(site: Site, waited: Host) -> None:
    node, bus = waited
    site.publish("3.0.0", "broken")
    node.power_on()
    command = Waiting(node, "--json")
    while node.status()["state"] != "UPDATED_NEED_REBOOT":
        assert command.process.poll() is None
    reboot(node, bus, lambda: None)
    assert not node.finish_boot()
    reboot(node, bus, lambda: None)
    code, out, told = command.end()
    assert (code, told) == (Exit.ROLLED_BACK, "")
    answer = json.loads(out)
    assert answer["error"]["id"] == "rolled-back"
    assert "3.0.0 will not be tried again" in answer["error"]["message"]


def test_a_host_that_is_gone_before_the_end_was_told(site: Site, waited: Host) -> None:
    """The bus goes while the installation is followed; the verdict is what counts."""
    node, bus = waited
    site.publish("2.0.0")
    site.fault("slow", rate=400_000)
    node.power_on()
    command = Waiting(node)
    while not node.status()["attempt"]:
        assert command.process.poll() is None
    bus.stop()
    command.until("waiting for it to come back")
    # The daemon goes on without a bus, and finishes.
    while not (node.run / "reboot-required").exists():
        node.pause(0.1)
    reboot(node, bus, lambda: None)
    command.until("It answers again")
    assert node.finish_boot()
    code, out, told = command.end()
    assert code == 0, (out, told)
    assert "Updated from 1.0.0 to 2.0.0" in out


def test_json_is_one_object_with_the_verdict(site: Site, waited: Host) -> None:
    node, bus = waited
    site.publish("2.0.0")
    node.power_on()
    command = Waiting(node, "--json")
    while node.status()["state"] != "UPDATED_NEED_REBOOT":
        assert command.process.poll() is None
    reboot(node, bus, lambda: None)
    assert node.finish_boot()
    code, out, _ = command.end()
    answer = json.loads(out)
    assert (code, answer["verdict"], answer["kind"]) == (0, "UPDATED", "update")
    assert answer["status"]["current_version"] == "2.0.0"


def test_an_update_that_is_taken_back_has_no_verdict(site: Site, waited: Host) -> None:
    """Nor is the good verdict about an earlier one taken for it."""
    node, bus = waited
    site.publish("2.0.0")
    node.power_on()
    first = Waiting(node)
    first.until("Release 2.0.0 is staged")
    reboot(node, bus, lambda: None)
    assert node.finish_boot()
    assert first.end()[0] == 0
    assert node.status()["verdict"] == "UPDATED"

    site.publish("4.0.0")
    second = Waiting(node)
    second.until("Release 4.0.0 is staged")
    assert node.updatectl("cancel").returncode == 0
    code, _, told = second.end()
    assert code == NothingPending.exit
    assert "taken back before it could be judged" in told


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_session_that_ends_says_what_to_ask(
    site: Site, waited: Host, number: signal.Signals
) -> None:
    node, _ = waited
    site.publish("2.0.0")
    node.power_on()
    command = Waiting(node)
    command.until("Release 2.0.0 is staged")
    command.process.send_signal(number)
    code, _, told = command.end()
    assert code == Exit.STOPPED
    assert "`updatectl status` tells the verdict" in told
    assert node.status()["state"] == "UPDATED_NEED_REBOOT", "only the waiting has ended"


def test_no_update_is_not_waited_for(site: Site, waited: Host) -> None:
    node, _ = waited
    site.publish("1.0.0")
    node.power_on()
    code, _, told = Waiting(node).end()
    assert code == Exit.NO_UPDATE
    assert "Waiting" not in told
