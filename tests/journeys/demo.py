"""``make demo``: a good update, a bad one, and the way back, on a disk image, without root.

Everything that is shown happens: the agent, the server and the message bus are processes of their own,
the disk is a GPT image made by sgdisk. Only the firmware, and systemd's part of a boot, are re-enacted.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node import BIN, MIB, Node, release_header
from private_bus import PrivateBus

IMAGE_MIB = 12


def image(path: Path, version: str, app: str, seed: int) -> Path:
    """A release: its release file in the first block, then a body that compresses like software."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(4, 24)) for _ in range(3000)]
    body = bytearray(release_header(version, app))
    while len(body) < IMAGE_MIB * MIB:
        body += rng.choice(words)
    path.write_bytes(bytes(body[: IMAGE_MIB * MIB]))
    return path


class Show:
    """Prints the story."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty()
        self.chapter = 0

    def title(self, text: str) -> None:
        self.chapter += 1
        print("\n" + self._bold(f"{self.chapter}. {text}"), flush=True)

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def run(self, node: Node, *words: str, codes: tuple[int, ...] = (0,)) -> None:
        print(self._dim(f"   $ updatectl {' '.join(words)}"), flush=True)
        process = subprocess.Popen(
            [str(BIN / "updatectl"), *words], env={**node._env(), "NO_COLOR": ""} if self.colour else node._env()
        )  # fmt: skip
        code = process.wait()
        if code not in codes:
            raise SystemExit(f"demo: updatectl {' '.join(words)} ended with {code}, not {codes}")

    def slots(self, node: Node) -> None:
        """The slot table in words; the tool needs no daemon."""
        done = node_tool("disk", "show", str(node.disk))
        for line in done.splitlines():
            if line.startswith(("slot ", "A ", "B ")):
                running = "  <- running" if line.startswith(f"{node.slot} ") else ""
                print(f"   {line}{running}", flush=True)

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.colour else text

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.colour else text


def node_tool(*words: str) -> str:
    """Output of one of `bascule`'s tools."""
    done = subprocess.run([str(BIN / "bascule"), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"demo: bascule {' '.join(words)}: {done.stderr}")
    return done.stdout


def mock(*words: str) -> str:
    done = subprocess.run([str(BIN / "omaha-mock"), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"demo: omaha-mock {' '.join(words)}: {done.stderr}")
    return done.stdout


def publish(folder: Path, img: Path, version: str) -> None:
    payload = folder / f"release-{version}.bin"
    mock(
        "pack",
        "--image",
        str(img),
        "--key",
        str(folder / "keys/update.key.pem"),
        "-o",
        str(payload),
    )
    mock(
        "publish",
        str(folder / "site"),
        "--payload",
        str(payload),
        "--version",
        version,
        "--disable-backoff",
    )


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"demo: this should not be: {what}")


def story(folder: Path, bus: PrivateBus, show: Show) -> None:
    (folder / "keys").mkdir()
    (folder / "site").mkdir()
    mock("keygen", str(folder / "keys"))
    public = folder / "public"
    public.mkdir()
    (public / "update.pub.pem").write_bytes((folder / "keys/update.pub.pem").read_bytes())

    show.title("A publisher makes release 2 and puts it on the update server")
    first = image(folder / "r1.img", "1.0.0", "ok", 1)
    publish(folder, image(folder / "r2.img", "2.0.0", "ok", 2), "2.0.0")
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [str(BIN / "omaha-mock"), "serve", str(folder / "site")], stdout=subprocess.PIPE, stderr=log, text=True
        )  # fmt: skip
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        expect(found is not None, "the server said where it listens")
        assert found is not None
        show.say(f"release 2.0.0, {IMAGE_MIB} MiB, signed; Omaha server at {found[0]}")
        node = Node(folder / "host", found[0], bus.address, public, slot_mib=IMAGE_MIB + 4)
        node.make(first)
        try:
            travel(node, folder, show)
        except BaseException:
            if node.log.exists():
                sys.stderr.write("".join(node.log.read_text().splitlines(keepends=True)[-20:]))
            raise
        finally:
            node.power_off()
    finally:
        server.terminate()
        server.wait(10)
        assert server.stdout is not None
        server.stdout.close()


def travel(node: Node, folder: Path, show: Show) -> None:
    show.title("A host starts from slot A, release 1")
    node.power_on()
    show.say(
        "A slot is one half of the disk that holds a whole release. One runs, the other can be rewritten."
    )
    show.slots(node)

    show.title("The agent updates the other slot while the host goes on working")
    show.run(node, "update")
    show.say("Slot B holds release 2 now, whole and proven. It gets one try.")
    show.slots(node)

    show.title("Reboot: the firmware spends the try and starts slot B")
    node.reboot()
    expect(node.slot == "B" and node.release() == "2.0.0", "slot B runs release 2")
    show.slots(node)
    show.say(
        "Would the power fail now, the next boot would be release 1 again: nobody has confirmed release 2 yet."
    )

    show.title("Health checks pass, so release 2 is confirmed")
    expect(node.finish_boot(), "release 2 is healthy")
    show.slots(node)
    show.run(node, "status")

    show.title("Release 3 is published. It installs well, but its application is broken")
    publish(folder, image(folder / "r3.img", "3.0.0", "broken", 3), "3.0.0")
    show.run(node, "update")
    node.reboot()
    expect(node.slot == "A" and node.release() == "3.0.0", "slot A runs release 3")
    show.slots(node)

    show.title("Health checks fail: the boot is given up, and the firmware takes slot B again")
    expect(not node.finish_boot(), "release 3 is not healthy")
    node.reboot()
    expect(node.slot == "B" and node.release() == "2.0.0", "slot B runs release 2 again")
    show.slots(node)
    show.run(node, "status")
    status = node.status()
    expect(status["verdict"] == "ROLLED_BACK", f"verdict {status['verdict']}")

    show.title("The same release is still on offer, and is not tried again")
    show.run(node, "update", codes=(14,))
    show.run(node, "quarantine", "list")


def main() -> int:
    began = time.monotonic()
    show = Show()
    print(
        "Bascule: one host, one good update, one bad one. Nothing outside a temporary folder is touched."
    )
    with tempfile.TemporaryDirectory(prefix="bascule-demo-") as name:
        folder = Path(name)
        (folder / "bus").mkdir()
        bus = PrivateBus(folder / "bus")
        bus.start()
        try:
            story(folder, bus, show)
        finally:
            bus.stop()
    print(
        f"\nDone in {time.monotonic() - began:.0f} s. What to read next: README.md, “A day in the life of an operator”."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
