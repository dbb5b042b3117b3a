"""make test-boot: real boots of a real machine through good and bad updates.

Usage: python tests/boot/run.py [--only LETTERS] [--seeds N] [--jobs N] [--accel auto|kvm|tcg] [--keep]

Every scenario starts from a disk of its own with release 1.0.0 blessed in slot A, and every boot is a
QEMU of its own, with firmware, kernel, systemd, D-Bus and our units. Machines of one core run side by
side, which boots twice as often a minute as one machine with all cores. Exit status 0 if all passed
or everything was skipped with a reason, 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build
import lab as publishing
from build import CannotBuild
from lab import RELEASES, Lab
from machine import SLOW, GuestFailed, Machine, accelerators


@dataclass
class Outcome:
    """One row of the table."""

    letter: str
    what: str
    result: str
    boots: int
    seconds: float


@dataclass
class Host:
    """One machine under test with its server.

    Attributes:
        took: seconds of its last boot until systemd had no job left; what is cut is cut within them.
    """

    machine: Machine
    served: Path
    boot: str
    took: float = 0.0

    def up(self) -> str:
        """Boot, and let it come to rest; the boot id."""
        began = time.monotonic()
        boot_id = self.machine.boot()
        self.settled()
        self.took = time.monotonic() - began
        return boot_id

    def status(self) -> dict[str, Any]:
        """``updatectl --json status``."""
        answer = json.loads(self.machine.check("updatectl --json status", 60 * SLOW))
        return dict(answer.get("status", answer))

    def release(self) -> str:
        """The release that runs."""
        text = self.machine.check("cat /usr/share/flatcar/release")
        return text.partition("VERSION=")[2].split()[0]

    def settled(self) -> None:
        """Wait until systemd has no job left: health asked, boot blessed or given up."""
        self.machine.check("systemctl is-system-running --wait || true", 300 * SLOW)

    def update(self) -> str:
        """Ask and install; what was said."""
        return self.machine.check("updatectl update", 300 * SLOW)

    def journal(self, unit: str) -> str:
        """What a unit said in this boot."""
        return self.machine.run(f"journalctl -b -o cat --no-pager -u {unit} | tail -n 40")[1]


LONGEST_FIRST = "dcgfhieba"
"""Letters of the scenarios, in the order in which they are begun."""

ENDS = ("UPDATED", "ROLLED_BACK")
"""How every attempt must end."""


class Failed(Exception):
    """The machine came out otherwise than promised."""


def expect(what: str, got: object, wanted: object) -> None:
    """Raise Failed unless they are equal."""
    if got != wanted:
        raise Failed(f"{what}: {got!r}, wanted {wanted!r}")


def contains(what: str, text: str, *words: str) -> None:
    """Raise Failed unless every word is there."""
    for word in words:
        if word not in text:
            raise Failed(f"{what} does not say {word!r}: {text[-800:]}")


class Runner:
    """Runs scenarios, each with machines of its own.

    Args:
        words: QEMU's for accelerator and cores.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.lab = Lab()
        self.folder = folder
        self.words = words
        self._now = threading.local()

    @contextlib.contextmanager
    def host(
        self, name: str, release: str, boot: str = "gpt", full: bool = False
    ) -> Iterator[Host]:
        """A fresh machine, with `release` on offer."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        served = self.lab.publish(folder / "served", boot, release, full)
        disk = folder / "disk.img"
        build.disk(disk, self.lab.first(boot), boot)
        lasting = "var/" if boot in build.SLOT_IS_USR else ""
        with publishing.serving(served) as port:
            build.edit(
                disk,
                build.START["state"] * build.MIB,
                {
                    f"{lasting}lib/boot-test/server.toml": (
                        f'[server]\nurl = "http://10.0.2.2:{port}/v1/update/"\n',
                        0o644,
                    )
                },
            )
            machine = Machine(disk, folder, self.words)
            if boot == "flatcar":
                machine.before_power_on = build.choose
            try:
                yield Host(machine, served, boot)
            finally:
                self._now.boots += machine.boots
                machine.kill()
                disk.unlink(missing_ok=True)

    def scenario(self, letter: str, what: str, body: Callable[[], str]) -> Outcome:
        """Run one; its row."""
        self._now.boots = 0
        began = time.monotonic()
        print(f"── ({letter}) {what}", flush=True)
        try:
            result = body()
        except (Failed, GuestFailed, CannotBuild) as error:
            result = f"FAILED: {error}"
        except Exception:
            result = f"FAILED: {traceback.format_exc()}"
        row = Outcome(letter, what, result, self._now.boots, time.monotonic() - began)
        print(
            f"   ({letter}) {what}: {result}  [{row.boots} boots, {row.seconds:.0f} s]", flush=True
        )
        return row

    # ── scenarios ────────────────────────────────────────────────────────────────────────────

    def good(self, boot: str = "gpt", full: bool = True) -> str:
        """A→B, healthy, blessed (without the daemon, on the GPT machine), survives a reboot."""
        with self.host(f"good-{boot}", "good", boot, full) as host:
            machine = host.machine
            first = host.up()
            expect("the first release", host.release(), "1.0.0")
            self._late_key(host)
            self._flatcars_own_words(host)
            said = host.update()
            contains("updatectl update", said, "2.0.0")
            if boot == "systemd-boot":
                self._one_shot(host)
                expect("slot B's entry", self._entry_of_b(host), "slot-b+2.conf")
            masked = boot == "gpt"
            refused, said = machine.run("systemctl start bascule-bless.service")
            if refused == 0 or "may be requested by dependency only" not in said:
                raise Failed(f"bascule-bless.service was started by hand: {said}")
            machine.reboot()
            if masked:
                entry = build.entry("", more="systemd.mask=bascule.service")
                build.put_on_esp(machine.disk, build.GPT_ENTRY, entry)
            second = machine.boot()
            if second == first:
                raise Failed("the machine did not reboot")
            expect("the running release", host.release(), "2.0.0")
            if boot == "systemd-boot":
                self._soaks(host)
            elif boot != "flatcar":
                self._table_read_once(host)
            host.settled()
            if masked:
                state = machine.run("systemctl is-active bascule.service")[1]
                expect("the masked daemon", state, "inactive")
            machine.reboot()
            if masked:
                build.put_on_esp(machine.disk, build.GPT_ENTRY, build.entry(""))
            host.up()
            expect("the release after a second reboot", host.release(), "2.0.0")
            if boot in build.SLOT_IS_USR:
                self._slot_is_usr(host)
            expect("verdict", host.status().get("verdict"), "UPDATED")
            machine.run("updatectl check", 60 * SLOW)
            told = publishing.events(host.served)
            # The first 3/2 is a host's first word ever, the last one the first word of the new slot.
            expect("the server's events", told, ["3/2", "13/1", "14/1", "3/1", "3/2"])
            self._flags(host, "B")
            if boot == "systemd-boot":
                expect("slot B's entry", self._entry_of_b(host), "slot-b.conf")
            if boot == "flatcar":
                new = build.kernel("2.0.0").read_bytes()
                if build.read_from_esp(machine.disk, "flatcar/vmlinuz-b") != new:
                    raise Failed("/boot/flatcar/vmlinuz-b is not the new release's kernel")
            how = "blessed with the daemon masked" if masked else "blessed"
            return f"on B, {how}, kept; events {' '.join(told)}"

    def _table_read_once(self, host: Host) -> None:
        """The kernel has read the partition table once: no partition vanished when a try was spent."""
        said = host.machine.check("journalctl -b -k -o cat --no-pager")
        lines = [line for line in said.splitlines() if re.match(r"\s*nvme0n1: p1 ", line)]
        expect("how often the table was read", len(lines), 1)

    def _late_key(self, host: Host) -> None:
        """A key that is bind-mounted while the daemon runs is the key that the daemon sees."""
        check = host.machine.check
        key = "/usr/share/bascule/keys/update.pub.pem"
        pid = check("systemctl show -P MainPID bascule.service").strip()
        check(f"echo another >/run/key && mount --bind /run/key {key}")
        seen = check(f"nsenter -t {pid} -m cat {key}").strip()
        check(f"umount {key}")
        expect("the key in the daemon's namespace", seen, "another")
        if host.machine.run(f"nsenter -t {pid} -m touch /root/x /home/x /usr/x")[0] == 0:
            raise Failed("the daemon's namespace lets it write where it should not")

    def _flatcars_own_words(self, host: Host) -> None:
        """What Flatcar's units and operators call works as it is."""
        said = host.machine.check("update_engine_client -status")
        contains("update_engine_client -status", said, "CURRENT_OP=UPDATE_STATUS_IDLE")
        contains("flatcar-setgoodroot", host.machine.check("flatcar-setgoodroot"), "already good")

    def _one_shot(self, host: Host) -> None:
        """The daemon's errand could write the loader's variable from within its sandbox."""
        vendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        path = f"/sys/firmware/efi/efivars/LoaderEntryOneShot-{vendor}"
        said = host.machine.check(f"cat {path} | tail -c +5 | tr -d '\\0'")
        expect("the loader's one-shot entry", said, "slot-b.conf")

    def _entry_of_b(self, host: Host) -> str:
        """The file that is slot B's entry, as the EFI system partition has it."""
        host.machine.check("sync")
        names = build.files_on_esp(host.machine.disk)
        return " ".join(name for name in names if name.startswith("slot-b"))

    def _soaks(self, host: Host) -> None:
        """Healthy, and not blessed before the soak is over: not by us, and not by systemd."""
        check = host.machine.check
        check("until systemctl -q is-active boot-complete.target; do sleep 0.2; done")
        check("until journalctl -b -u bascule-bless.service | grep -q Soaking; do sleep 0.2; done")
        expect("slot B's entry in the soak", self._entry_of_b(host), "slot-b+1-1.conf")
        state = host.machine.run("systemctl is-active systemd-bless-boot.service")[1].strip()
        if state == "active":
            raise Failed("systemd has blessed the boot before the soak was over")

    def _slot_is_usr(self, host: Host) -> None:
        """The slot is mounted on /usr, nothing can be written to it, and the root is another one."""
        check = host.machine.check
        root, usr = (
            check(f"readlink -f $(findmnt -rno SOURCE {place})").strip() for place in ("/", "/usr")
        )
        options = check("findmnt -rno VFS-OPTIONS /usr").strip()
        expect("what / is mounted from", root, "/dev/nvme0n1p5")
        booted = next(slot["name"] for slot in host.status()["slots"] if slot["booted"])
        expect("what /usr is mounted from", usr, f"/dev/nvme0n1p{build.INDEX[booted]}")
        expect("the options of /usr", options.split(",")[0], "ro")
        if host.machine.run("touch /usr/x")[0] == 0:
            raise Failed("/usr can be written to")

    def bad(self, release: str, reason: str, boot: str = "gpt", tries: int = 1) -> str:
        """A→B, B is given up after its tries, back on A: verdict, quarantine, not retried."""
        version = RELEASES[release][0]
        with self.host(f"bad-{release}-{boot}", release, boot) as host:
            machine = host.machine
            host.up()
            host.update()
            machine.reboot()
            for _ in range(tries):
                machine.start()
                # Nobody touches the machine: it must give itself up.
                machine.wait_off(200 * SLOW)
            host.up()
            if boot in build.SLOT_IS_USR:
                self._slot_is_usr(host)
            expect("the running release", host.release(), "1.0.0")
            status = host.status()
            expect("verdict", status.get("verdict"), "ROLLED_BACK")
            sentence = str(status.get("sentence"))
            contains("updatectl status", sentence, version, reason, "1.0.0")
            listed = machine.check("updatectl quarantine list")
            contains("the quarantine", listed, version)
            code, said = machine.run("updatectl update", 300 * SLOW)
            if code == 0:
                raise Failed(f"the quarantined release was taken again: {said}")
            told = publishing.events(host.served)
            contains("the server's events", " ".join(told), "44")
            if release == "greenboot":
                machine.check("test -s /var/lib/boot-test/red")
            self._flags(host, "A")
            return sentence

    def late(self, boot: str) -> str:
        """Blessed, and then a service of the new release gives up within the late window."""
        with self.host("late", "regresses", boot) as host:
            machine = host.machine
            host.up()
            host.update()
            machine.reboot()
            host.up()
            expect("verdict", host.status().get("verdict"), "UPDATED")
            machine.check("touch /run/regress")
            # Nobody touches the machine: it must leave the release by itself.
            machine.wait_off(200 * SLOW)
            host.up()
            expect("the running release", host.release(), "1.0.0")
            status = host.status()
            expect("verdict", status.get("verdict"), "ROLLED_BACK")
            sentence = str(status.get("sentence"))
            contains("updatectl status", sentence, "8.0.0", "myapp.service", "confirmed")
            contains("the quarantine", machine.check("updatectl quarantine list"), "8.0.0")
            self._flags(host, "A")
            return sentence

    def power_cuts(self, seed: int) -> str:
        """Cut the power twice, at seeded moments of download, flip or first boot."""
        rng = random.Random(seed)
        moments = (("download", "flip"), ("download", "first boot"), ("flip", "first boot"))
        with self.host(f"cut-{seed}", "good", "gpt", full=True) as host:
            machine = host.machine
            host.up()
            story: list[str] = []
            for moment in moments[seed % 3]:
                self._cut(host, moment, rng)
                # Whatever was cut: it boots.
                host.up()
                verdict = self._verdict(host)
                story.append(f"cut in {moment}: {host.release()} {verdict}")
                if verdict in ENDS:
                    return "; ".join(story)
            if verdict != "WAITING":
                host.update()
            machine.reboot()
            host.up()
            verdict = self._verdict(host)
            story.append(f"then {host.release()} {verdict}")
            if verdict not in ENDS:
                raise Failed("; ".join(story))
            return "; ".join(story)

    def _cut(self, host: Host, moment: str, rng: random.Random) -> None:
        machine = host.machine
        if moment == "first boot":
            if self._verdict(host) != "WAITING":
                host.update()
            machine.reboot()
            machine.start()
            time.sleep(rng.uniform(0.05, 1) * host.took)
        else:
            machine.check("systemd-run --quiet --collect --unit=update updatectl update")
            if moment == "flip":
                self._until_flip(host)
            share = 0.06 if moment == "flip" else 0.8
            time.sleep(rng.uniform(0, share) * host.took)
        machine.kill()

    def _verdict(self, host: Host) -> str:
        return str(host.status().get("verdict"))

    def _until_flip(self, host: Host) -> None:
        end = time.monotonic() + 300 * SLOW
        while time.monotonic() < end:
            state = str(host.status().get("state", ""))
            phase = str(host.status().get("phase", ""))
            if "NEED_REBOOT" in state or "FINALIZING" in state or phase in ("stage", "postinstall"):
                return
            time.sleep(0.2)
        raise Failed("the update never came to its end")

    def _flags(self, host: Host, booted: str) -> None:
        """What somebody outside sees on the disk, once the machine is off."""
        host.machine.check("sync")
        if host.boot == "systemd-boot":
            return
        host.machine.reboot()
        flags = build.attributes(host.machine.disk)
        bootable = {slot: (p, t, s) for slot, (p, t, s) in flags.items() if p and (t or s)}
        leading = max(bootable, key=lambda slot: bootable[slot][0], default="none")
        if leading != booted or flags[booted][1:] != (0, 1):
            raise Failed(f"the table holds {flags}, slot {booted} should lead and be good")


def table(rows: list[Outcome]) -> str:
    """The outcomes as a table."""
    lines = ["", "| | scenario | outcome | boots | time |", "|---|---|---|--:|--:|"]
    for row in rows:
        result = re.sub(r"\s+", " ", row.result)[:160].replace("|", "/")
        lines.append(
            f"| {row.letter} | {row.what} | {result} | {row.boots} | {row.seconds:.0f} s |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="abcdefghi", help="letters of the scenarios to run")
    parser.add_argument(
        "--seeds", type=int, default=3, help="machines to cut off (default 3, twice each)"
    )
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs the guest"
    )
    parser.add_argument("--keep", action="store_true", help="keep consoles of what passed")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--jobs", type=int, default=min(4, cores), help="machines at a time (default: one a core)"
    )
    options = parser.parse_args()
    jobs = max(1, options.jobs)
    began = time.monotonic()
    try:
        build.prepare_host()
        accelerator = accelerators(options.accel)
        words = [*accelerator, "-smp", str(max(1, cores // jobs))]
        runner = Runner(build.CACHE / "runs", words)
    except CannotBuild as error:
        print(f"test-boot: skipped: {error}")
        return 0

    print(f"test-boot: QEMU with {accelerator[1].upper()}", flush=True)
    plan: list[tuple[str, str, Callable[[], str]]] = [
        ("a", "good update, two reboots", runner.good),
        (
            "b",
            "a service of the new release fails (Flatcar's layout)",
            lambda: runner.bad("sick", "myapp.service", "flatcar"),
        ),
        ("c", "the new release panics", lambda: runner.bad("panics", "")),
        ("c", "the new release hangs before systemd", lambda: runner.bad("hangs", "")),
        ("c", "the new release ends in emergency mode", lambda: runner.bad("emergency", "")),
    ]
    for seed in range(options.seeds):
        plan.append(("d", f"power cuts, seed {seed}", partial(runner.power_cuts, seed)))
    plan += [
        (
            "e",
            "greenboot says no; the slot is /usr (initramfs-tools)",
            lambda: runner.bad("greenboot", "50-database.sh", "usr"),
        ),
        (
            "f",
            "systemd-boot: good update, 2 tries, a soak",
            lambda: runner.good("systemd-boot", full=False),
        ),
        (
            "f",
            "systemd-boot: a service fails, twice",
            lambda: runner.bad("sick", "myapp.service", "systemd-boot", tries=2),
        ),
        (
            "g",
            "Flatcar's layout: USR-A on /usr, kernels on a vfat /boot",
            lambda: runner.good("flatcar", full=False),
        ),
        (
            "h",
            "a service fails after the blessing (dracut)",
            lambda: runner.late("dracut"),
        ),
        (
            "i",
            "good update; the slot is /usr (dracut)",
            lambda: runner.good("usr-dracut", full=False),
        ),
    ]
    asked = [scenario for scenario in plan if scenario[0] in options.only]
    # The long ones first, so that no core is left alone with one of them in the end.
    asked.sort(key=lambda scenario: LONGEST_FIRST.index(scenario[0]))
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda scenario: runner.scenario(*scenario), asked))
    rows.sort(key=lambda row: row.letter)
    print(table(rows))
    # What this would take on a host that does nothing else is the CPU time over the cores.
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    failed = [row for row in rows if row.result.startswith("FAILED")]
    print(
        f"\nQEMU with {accelerator[1].upper()}, {jobs} machines at a time on {cores} cores: "
        f"{len(rows) - len(failed)} of {len(rows)} as promised, "
        f"{sum(row.boots for row in rows)} boots, {time.monotonic() - began:.0f} s in all, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    if not failed and not options.keep:
        shutil.rmtree(runner.folder, ignore_errors=True)
    else:
        print(f"consoles: {runner.folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
