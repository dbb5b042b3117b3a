"""``make pictures``: plays stories on re-enacted hosts, and puts what was seen into the documents.

Every output in ``docs/*.md`` between ``<!-- captured: NAME -->`` and ``<!-- end: NAME -->``, and every
picture in ``docs/pictures``, is of a run of this script. Only temporary paths are shortened.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from node import BIN, Node
from private_bus import PrivateBus
from publisher import IMAGE_MIB, Site
from terminal_picture import Recording, record, svg

ROOT = Path(__file__).resolve().parents[2]
CAPTURED = re.compile(r"(<!-- captured: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)

Says = dict[str, str]


class Stage:
    """One host, its server and its bus; `says` gathers what its operator saw.

    Args:
        settings: further TOML of the host.
    """

    def __init__(self, folder: Path, bus: PrivateBus, settings: str = "") -> None:
        self.folder = folder
        self.site = Site(folder / "publisher")
        self.site.start()
        self.node = Node(
            folder / "host",
            self.site.url,
            bus.address,
            self.site.keys,
            slot_mib=IMAGE_MIB + 2,
            settings=settings,
        )
        self.says: Says = {}

    def mask(self, text: str) -> str:
        return text.replace(str(self.node.disk), "/srv/host/disk.img").replace(
            str(self.folder), "/srv"
        )

    def run(self, name: str, *commands: str) -> None:
        """Type `commands`; what they print is captured as `name`."""
        shown = []
        for command in commands:
            words = [w.replace("DISK", str(self.node.disk)) for w in _split(command)]
            done = subprocess.run(
                [str(BIN / words[0]), *words[1:]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.node._env(),
            )  # fmt: skip
            typed = command.replace("DISK", "/srv/host/disk.img")
            end = f"(exit code {done.returncode})\n" if done.returncode else ""
            shown.append(f"$ {typed}\n{self.mask(done.stdout)}{end}")
        self.says[name] = "\n".join(shown)

    def do(self, *words: str) -> None:
        """An operator's command that is not shown."""
        done = self.node.updatectl(*words)
        if done.returncode:
            raise RuntimeError(f"updatectl {' '.join(words)}: {done.stderr}")

    def close(self) -> None:
        self.node.power_off()
        self.site.stop()


def _split(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


@contextmanager
def stage(settings: str = "") -> Iterator[Stage]:
    """A host that runs release 1.0.0 from slot A."""
    with tempfile.TemporaryDirectory(prefix="bascule-") as name:
        folder = Path(name)
        (folder / "bus").mkdir()
        bus = PrivateBus(folder / "bus")
        bus.start()
        made = Stage(folder, bus, settings)
        try:
            made.node.make(made.site.image("1.0.0"))
            yield made
        finally:
            made.close()
            bus.stop()


# ── the stories ──────────────────────────────────────────────────────────────────────────────


def a_good_day(says: Says) -> None:
    """Check, plan, update, reboot, verdict."""
    with stage() as s:
        s.site.publish("2.0.0")
        s.node.power_on()
        s.run("status", "updatectl status")
        s.run("doctor", "updatectl doctor")
        s.run("check", "updatectl check")
        s.run("plan", "updatectl plan")
        s.run("list", "updatectl list")
        s.run("update", "updatectl update")
        s.run("staged", "updatectl status")
        s.run("slots", "updatectl slots")
        s.run("explain-staged", "updatectl explain")
        s.node.reboot()
        s.run("trial", "updatectl status --short", "updatectl slots")
        s.node.finish_boot()
        s.run("updated", "updatectl status")
        s.run("history", "updatectl history", "updatectl history verify")
        s.run("explain-current", "updatectl explain")
        says |= s.says


def rules(says: Says) -> None:
    """Hold and pin."""
    with stage() as s:
        s.site.publish("2.0.0")
        s.node.power_on()
        s.do("check")
        s.run("hold", 'updatectl hold --for 3d --reason "database move"')
        s.run("held", "updatectl update", "updatectl explain")
        s.run("unhold", "updatectl hold --clear")
        s.run("pin", "updatectl pin '>=1,<2'", "updatectl update", "updatectl pin --clear")
        s.run("cancel", "updatectl update --no-reboot", "updatectl cancel", "updatectl slots")
        says |= s.says


def in_steps(says: Says) -> None:
    """Prepare, activate, deactivate."""
    with stage() as s:
        s.site.publish("2.0.0")
        s.node.power_on()
        s.run("prepared", "updatectl prepare --quiet", "updatectl activate", "updatectl slots")
        says |= s.says


def a_bad_release(says: Says) -> None:
    """Installs well, does not boot healthy, comes back."""
    with stage() as s:
        s.site.publish("2.0.0")
        s.node.power_on()
        s.do("update")
        s.node.reboot()
        s.node.finish_boot()
        s.site.publish("3.0.0", "broken")
        s.do("update")
        s.node.reboot()
        s.node.finish_boot()
        s.node.reboot()
        s.run("rolled-back", "updatectl status")
        s.run("why-back", "updatectl explain --history")
        s.run("quarantine", "updatectl quarantine list")
        s.run("refused", "updatectl update")
        s.run("tried-again", "updatectl quarantine clear 3.0.0")
        s.run("disk", "bascule disk show DISK", "bascule disk next DISK")
        s.run("rollback", "updatectl rollback", "updatectl slots")
        s.run("monitor", "updatectl status --check")
        says |= s.says


def no_update(says: Says) -> None:
    """The server is away, says no, or offers what is not proven; the daemon is away."""
    with stage() as s:
        s.node.power_on()
        s.run("nothing-newer", "updatectl update")
        stranger = s.folder / "stranger"
        s.site.mock("keygen", str(stranger))
        payload = s.folder / "4.0.0.bin"
        s.site.mock(
            "pack", "--image", str(s.site.image("4.0.0")), "--key", str(stranger / "update.key.pem"),
            "-o", str(payload),
        )  # fmt: skip
        s.site.mock(
            "publish", str(s.site.served), "--payload", str(payload), "--version", "4.0.0",
            "--disable-backoff",
        )  # fmt: skip
        s.run("wrong-key", "updatectl update", "updatectl slots")
        s.site.stop()
        s.run("server-away", "updatectl check", "updatectl status --check", "updatectl explain")
        s.node.stop_daemon()
        s.run("daemon-away", "updatectl status")
        s.run(
            "by-hand",
            "bascule disk next DISK",
            "bascule disk prefer DISK --slot B",
        )
        s.site.start()
        says |= s.says


STORIES = (a_good_day, rules, in_steps, a_bad_release, no_update)


# ── the pictures ─────────────────────────────────────────────────────────────────────────────


def picture_of_the_demo(folder: Path) -> None:
    recording = record(
        [sys.executable, str(ROOT / "tests/journeys/demo.py")],
        {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **_pythonpath()},
        columns=104, rows=30,
    )  # fmt: skip
    (folder / "demo.svg").write_text(svg(recording, "make demo"))


def _pythonpath() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": path} if path else {}


def _typed(s: Stage, recording: Recording, *words: str) -> Recording:
    """One command more, as it looks on a terminal."""
    environment = {k: v for k, v in s.node._env().items() if k != "NO_COLOR"}
    environment["TERM"] = "xterm-256color"
    recording.text += f"\x1b[2m$ updatectl {' '.join(words)}\x1b[0m\r\n"
    record([str(BIN / "updatectl"), *words], environment, into=recording, mask=s.mask)
    recording.text += "\r\n"
    return recording


def picture_of_an_update(folder: Path) -> None:
    with stage() as s:
        s.site.publish("2.0.0")
        s.site.fault("slow", rate=400_000)
        s.node.power_on()
        recording = Recording(92, 14)
        _typed(s, recording, "update")
        _typed(s, recording, "slots")
        (folder / "update.svg").write_text(svg(recording, "updatectl update"))


def picture_of_an_answer(folder: Path) -> None:
    with stage() as s:
        s.site.publish("3.0.0", "broken")
        s.node.power_on()
        s.do("update")
        s.node.reboot()
        s.node.finish_boot()
        s.node.reboot()
        recording = Recording(140, 60)
        _typed(s, recording, "status")
        _typed(s, recording, "explain")
        (folder / "explain.svg").write_text(
            svg(recording, "updatectl status, updatectl explain", moving=False)
        )


PICTURES: dict[str, Callable[[Path], None]] = {
    "demo": picture_of_the_demo,
    "update": picture_of_an_update,
    "explain": picture_of_an_answer,
}


def fill(text: str, says: Says) -> str:
    """`text` with every captured region filled. Raises KeyError for a name that no story has."""
    return CAPTURED.sub(lambda m: f"{m[1]}\n```console\n{says[m[2]]}```\n\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=[*PICTURES, "documents"], help="one picture, or no picture"
    )
    parser.add_argument("--print", action="store_true", help="write no document, print")
    args = parser.parse_args()
    (ROOT / "docs/pictures").mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        if args.only in (None, name):
            draw(ROOT / "docs/pictures")
    if args.only not in (None, "documents"):
        return 0
    says: Says = {}
    for story in STORIES:
        story(says)
    if args.print:
        for name, text in says.items():
            print(f"==== {name}\n{text}")
        return 0
    for page in sorted((ROOT / "docs").glob("*.md")):
        before = page.read_text()
        after = fill(before, says)
        if after != before:
            page.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
