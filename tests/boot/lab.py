"""Releases, their payloads and the server that offers them to a machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import build

MOCK = Path(sys.executable).with_name("omaha-mock")
INIT = "usr/sbin/init"
Changes = Mapping[str, tuple[str, int] | None]

RELEASES: dict[str, tuple[str, Changes]] = {
    "good": ("2.0.0", {"usr/lib/boot-test/new": ("what the new release brings\n", 0o644)}),
    "sick": ("3.0.0", {"usr/lib/boot-test/myapp": ("echo I am broken; exit 1\n", 0o755)}),
    # PID 1 that ends is a panic of the kernel, before anything of ours has run.
    "panics": ("4.0.0", {INIT: ("#!/bin/sh\nexit 1\n", 0o755)}),
    "hangs": ("5.0.0", {INIT: ("#!/bin/sh\nwhile :; do read x; done <>/dev/zero\n", 0o755)}),
    # A mount that must be there and is not: systemd ends in its emergency mode.
    "emergency": (
        "7.0.0",
        {
            "etc/systemd/system/mnt.mount": (
                "[Unit]\nBefore=local-fs.target\nDefaultDependencies=no\n[Mount]\nWhat=/dev/missing\n"
                "Where=/mnt\nTimeoutSec=5\n",
                0o644,
            ),
            "etc/systemd/system/local-fs.target.d/mnt.conf": (
                "[Unit]\nRequires=mnt.mount\n",
                0o644,
            ),
            "etc/systemd/system/dev-missing.device.d/short.conf": (
                "[Unit]\nJobTimeoutSec=5\n",
                0o644,
            ),
            "usr/lib/bascule/bascule.toml": ('[health]\ndeadline = "60s"\n', 0o644),
        },
    ),
    # Healthy until somebody says otherwise, long after the blessing.
    "regresses": (
        "8.0.0",
        {
            "usr/lib/boot-test/myapp": (
                "while [ ! -e /run/regress ]; do sleep 1; done; exit 1\n",
                0o755,
            ),
            "usr/lib/bascule/bascule.toml": (
                '[health]\ndeadline = "5m"\n'
                '[reboot]\nlate_window = "1h"\nlate_units = ["myapp.service"]\n',
                0o644,
            ),
        },
    ),
    "greenboot": (
        "6.0.0",
        {
            "usr/lib/greenboot/check/required.d/50-database.sh": (
                "echo the database says no\nexit 1\n",
                0o644,
            ),
            "usr/lib/greenboot/check/wanted.d/10-nice.sh": ("exit 1\n", 0o644),
            "usr/lib/greenboot/red.d/10-tell.sh": (
                "date >>/var/lib/boot-test/red; sync\n",
                0o644,
            ),
        },
    ),
}
"""What each further release changes of the first one, 1.0.0."""


class Lab:
    """The publishing side: made once, used by every scenario."""

    def __init__(self) -> None:
        build.CACHE.mkdir(parents=True, exist_ok=True)
        self.keys = build.CACHE / "keys"
        if not (self.keys / "update.key.pem").exists():
            build.run([MOCK, "keygen", self.keys])
        public = build.CACHE / "public"
        public.mkdir(exist_ok=True)
        shutil.copy(self.keys / "update.pub.pem", public)
        self._public = public
        self._first: dict[str, Path] = {}
        self._building = threading.RLock()

    def first(self, boot: str) -> Path:
        """The first release's image, of the checkout as it is at the first asking."""
        with self._building:
            if maker := build.maker_of(boot):
                build.initrd(maker)
            boot = build.SAME_IMAGE.get(boot, boot)
            if boot not in self._first:
                self._first[boot] = build.first_image(self._public, boot)
            return self._first[boot]

    def payload(self, boot: str, release: str, full: bool = False) -> Path:
        """A signed v2 payload that leads from the first release to `release`."""
        with self._building:
            return self._payload(boot, release, full)

    def _payload(self, boot: str, release: str, full: bool) -> Path:
        base = self.first(boot)
        version, changes = RELEASES[release]
        image = build.release(base, version, changes)
        payload = image.with_suffix(".full" if full else ".delta")
        if not payload.exists():
            words: list[str] = [] if full else ["--old", f"usr={base}"]
            if boot == "flatcar":
                words += ["--kernel", str(build.kernel(version))]
            print(f"test-boot: packing {version} ({'full' if full else 'delta'})", flush=True)
            build.run(
                [
                    *(str(MOCK), "pack", "--image", f"usr={image}", *words, "--major", "2"),
                    *("--codecs", "zstd", "--key", str(self.keys / "update.key.pem")),
                    *("-o", str(payload.with_suffix(".new"))),
                ]
            )
            payload.with_suffix(".new").rename(payload)
        return payload

    def publish(self, folder: Path, boot: str, release: str, full: bool = False) -> Path:
        """A fresh directory to serve, offering `release` to hosts that run the first one."""
        shutil.rmtree(folder, ignore_errors=True)
        words = [] if full else ["--from", "1.0.0"]
        payload = self.payload(boot, release, full)
        version = RELEASES[release][0]
        build.run([MOCK, "publish", folder, "--payload", payload, "--version", version, *words])
        catalogue = folder / "releases.toml"
        catalogue.write_text(
            catalogue.read_text().replace('# deltas = "asked"', 'deltas = "always"')
        )
        return folder


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve `folder` on loopback; the port."""
    process = subprocess.Popen(
        [MOCK, "serve", folder, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=(folder / "server.log").open("wb"),
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        match = re.search(r":(\d+)\b", line)
        if not match:
            raise build.CannotBuild(f"omaha-mock did not start: {line!r}")
        yield int(match[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def events(folder: Path) -> list[str]:
    """``type/result/errorcode`` of the events the server was told, in order."""
    told = []
    try:
        lines = (folder / "requests.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        for event in json.loads(line).get("events", ()):
            words = (event.get(k) for k in ("eventtype", "eventresult", "errorcode"))
            told.append("/".join(word for word in words if word))
    return told
