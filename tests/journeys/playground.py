"""``make playground``: a host of your own in a temporary folder, and a shell in which to steer it.

The daemon, server, bus and disk image are real; the firmware and systemd's part of a boot are
re-enacted. `updatectl reboot` reboots it: the daemon goes away and comes back, the firmware
chooses a slot, health checks confirm it or do not. When the shell ends, all of it is removed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Event, Thread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node import BIN, Node
from private_bus import PrivateBus
from publisher import IMAGE_MIB, Site

WELCOME = """\
This host runs release 1.0.0. Its update server offers 2.0.0; 3.0.0 is published by `publish 3.0.0 broken`.

  updatectl status        updatectl plan        updatectl update        updatectl reboot
  publish 3.0.0 broken    a release that installs well and does not get healthy
  publish 4.0.0           a good one
  bascule disk show $DISK the slots, without the daemon

`exit` ends it.
"""


class Mains:
    """Reboots the host whenever somebody asks for it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._end = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            while self.node.reboot_requested and not self._end.is_set():
                self.node.reboot()
                # Not confirmed: the deadman has asked for the next reboot.
                self.node.finish_boot()

    def __enter__(self) -> Mains:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)


def publisher(folder: Path, site: Site) -> None:
    """The command ``publish VERSION [broken]`` for the shell."""
    script = folder / "bin" / "publish"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).resolve().parents[1])!r}]\n"
        "from pathlib import Path\n"
        "from publisher import Site\n"
        f"site = Site.again(Path({str(site.folder)!r}))\n"
        "site.publish(sys.argv[1], 'broken' if sys.argv[2:] == ['broken'] else 'ok')\n"
        "print(f'{sys.argv[1]} is on offer.')\n"
    )
    script.chmod(0o755)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bascule-") as name:
        folder = Path(name)
        (folder / "bus").mkdir()
        bus = PrivateBus(folder / "bus")
        bus.start()
        site = Site(folder / "publisher")
        site.start()
        node = Node(folder / "host", site.url, bus.address, site.keys, slot_mib=IMAGE_MIB + 2)
        node.make(site.image("1.0.0"))
        site.publish("2.0.0")
        publisher(folder, site)
        node.power_on()
        environment = node._env()
        environment.pop("NO_COLOR")
        environment["PATH"] = f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}"
        environment["DISK"] = str(node.disk)
        environment["PS1"] = "host$ "
        print(WELCOME, flush=True)
        try:
            with Mains(node):
                return subprocess.run(
                    ["bash", "--norc", *sys.argv[1:]], env=environment, check=False
                ).returncode
        finally:
            node.power_off()
            site.stop()
            bus.stop()


if __name__ == "__main__":
    sys.exit(main())
