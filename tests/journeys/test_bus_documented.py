"""The bus interface's own documentation, sentence by sentence, held against the real daemon."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from bascule.errors import NoUpdate, UsageError
from bascule.faces.authority import ACTIONS
from bascule.faces.bus import INTERFACE, JOB_INTERFACE, NAME, PATH
from bascule.updater.gates import Blocks, Gate
from bascule.updater.gates import Verdict as GateVerdict
from bascule.updater.status import State
from bascule.updater.updater import UPDATE_OPTIONS
from bascule.updater.verdict import Verdict
from node import Node
from publisher import Site

MakeNode = Callable[..., Node]
pytestmark = pytest.mark.skipif(
    shutil.which("busctl") is None or shutil.which("gdbus") is None,
    reason="needs busctl (systemd) and gdbus (libglib2.0-bin)",
)
DOC = "org.gtk.GDBus.DocString"


class Bus:
    """Other people's clients."""

    def __init__(self, node: Node) -> None:
        self.address = node.bus

    def busctl(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            ["busctl", f"--address={self.address}", "--json=short", *words],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def call(self, member: str, *words: str, path: str = PATH) -> Any:
        code, out = self.busctl("call", NAME, path, INTERFACE, member, *words)
        assert code == 0, out
        return json.loads(out)["data"][0]

    def error(self, member: str, *words: str) -> str:
        done = subprocess.run(
            ["gdbus", "call", "--address", self.address, "--dest", NAME, "--object-path", PATH,
             "--method", f"{INTERFACE}.{member}", *words],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0, done.stdout
        return done.stderr

    def property(self, name: str, path: str = PATH, interface: str = INTERFACE) -> Any:
        code, out = self.busctl("get-property", NAME, path, interface, name)
        assert code == 0, out
        return json.loads(out)

    def interface(self, path: str, interface: str) -> ElementTree.Element:
        done = subprocess.run(
            ["gdbus", "introspect", "--xml", "--address", self.address, "--dest", NAME,
             "--object-path", path],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        root = ElementTree.fromstring(done.stdout)
        return next(i for i in root.iter("interface") if i.get("name") == interface)


def docs(interface: ElementTree.Element) -> dict[str, str]:
    found = {}
    for member in interface:
        texts = [a.get("value") for a in member.iter("annotation") if a.get("name") == DOC]
        if member.tag in ("method", "property", "signal"):
            assert len(texts) == 1 and texts[0], member.get("name")
            found[str(member.get("name"))] = str(texts[0])
    return found


def named(text: str) -> set[str]:
    """The words of a list such as ``: a, b or c;``."""
    listing = re.split(r"[:;]", text.replace(" as JSON", ":"))[1]
    return set(re.split(r",? or |, ", listing.strip().rstrip(".,")))


def known(error: str) -> set[str]:
    """What the daemon says that there is, where something is not."""
    return set(error.split("known are ")[1].split(".")[0].split(", "))


def test_every_sentence_of_the_interface_is_true(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node()
    assert node.power_on() == "A"
    bus = Bus(node)
    interface = bus.interface(PATH, INTERFACE)
    told = docs(interface)

    # Each property is there, readable, and of the type that the interface names.
    for prop in interface.iter("property"):
        assert prop.get("access") == "read"
        assert bus.property(str(prop.get("name")))["type"] == prop.get("type")
    status = node.status()
    shown = {re.sub(r"(?<!^)(?=[A-Z])", "_", str(p.get("name"))).lower()
             for p in interface.iter("property")}  # fmt: skip
    assert set(status) - {"schema", "ok"} <= shown, "all that status shows is a property"

    # What the texts enumerate is what there is.
    assert set(re.findall(r"[A-Z][A-Z_]{3,}", told["State"])) == set(State.__members__)
    assert set(re.findall(r"[A-Z][A-Z_]{3,}", told["Verdict"])) == set(Verdict.__members__)
    assert set(re.findall(r"(\w+) \((?:s|b)\)", told["Update"])) == UPDATE_OPTIONS
    unknown = bus.error("Document", "nonsense", "{}")
    assert named(told["Document"]) == known(unknown)
    unknown = bus.error("Act", "nonsense", "{}")
    assert set(re.split(r", | or ", told["Act"].split(": ")[1].split(";")[0])) == known(unknown)
    for member in ("Check", "Update", "Cancel", "Rollback", "Reboot", "Reset", "Act"):
        actions = re.findall(r"org\.bascule\.Update1\.(\w+)", told[member])
        assert actions and set(actions) <= set(ACTIONS), member
    for slot in bus.property("Slots")["data"]:
        assert set(slot) == named(told["Slots"])

    # Documents are open, and JSON with a schema.
    for name in sorted(named(told["Document"])):
        document = json.loads(bus.call("Document", "sa{sv}", name, "0"))
        assert document["schema"] == 1, name

    # Errors are typed, and what they mean can be asked for.
    assert f"{UsageError.bus_name()}" in bus.error("Update", "{'nonsense': <true>}")
    assert bus.error("Cancel").startswith("Error: GDBus.Error:org.bascule.Update1.Error.")

    # A method returns a job, and the job tells its progress and its end.
    path = bus.call("Update", "a{sv}", "0")
    assert re.fullmatch(rf"{PATH}/job/\d+", path)
    job = bus.interface(path, JOB_INTERFACE)
    sentences = docs(job)
    for _ in range(900):
        if bus.property("State", path, JOB_INTERFACE)["data"] == "ended":
            break
        node.pause(0.2)
    values = {
        str(p.get("name")): bus.property(str(p.get("name")), path, JOB_INTERFACE)
        for p in job.iter("property")
    }
    assert {str(p.get("name")): p.get("type") for p in job.iter("property")} == {
        name: value["type"] for name, value in values.items()
    }
    assert values["Result"]["data"] == "done" and "done" in sentences["Result"]
    assert values["Kind"]["data"] == "update" and "update" in sentences["Kind"]
    assert values["Progress"]["data"] == 1.0
    assert values["Error"]["data"] == {}
    assert values["Outcome"]["data"]["version"]["data"] == "2.0.0"
    assert bus.property("Job")["data"] == "/"
    assert bus.property("State")["data"] == "UPDATED_NEED_REBOOT"
    gates = bus.property("BlockedBy")["data"]
    assert gates, "with `reboot.strategy` off, somebody else reboots"
    assert {key for gate in gates for key in gate} == set(
        re.split(r", ", told["BlockedBy"].split("): ")[1].split(";")[0])
    )
    assert bus.call("Cancel").startswith("Release 2.0.0 is no longer staged")


def test_the_words_of_a_gate_are_those_of_the_interface() -> None:
    gate = Gate("hold", Blocks.UPDATE, GateVerdict.BLOCK, "hold.until", "x.")
    assert list(gate.as_dict()) == [
        "name", "blocks", "verdict", "reason", "evidence", "until", "override", "error",
    ]  # fmt: skip
    assert NoUpdate.bus_name().startswith("org.bascule.Update1.Error.")
