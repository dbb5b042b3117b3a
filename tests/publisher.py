"""A publisher for journeys: keys, releases, and an Omaha server as a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

from node import BIN, MIB, release_header

IMAGE_MIB = 4


def mock(*words: str) -> str:
    done = subprocess.run(
        [str(BIN / "omaha-mock"), *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Site:
    """A publisher: keys, releases, and an Omaha server as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served = folder / "site"
        self.keys = folder / "public"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        for directory in (self.served, self.keys, folder / "keys"):
            directory.mkdir(parents=True)
        mock("keygen", str(folder / "keys"))
        self.key = folder / "keys/update.key.pem"
        (self.keys / "update.pub.pem").write_bytes((folder / "keys/update.pub.pem").read_bytes())

    @classmethod
    def again(cls, folder: Path) -> Site:
        """The publisher that another process made in `folder`; its server is not this one's."""
        site = cls.__new__(cls)
        site.folder, site.served, site.keys = folder, folder / "site", folder / "public"
        site.key, site.url, site._process = folder / "keys/update.key.pem", "", None
        return site

    def image(self, version: str, app: str = "ok", mib: int = IMAGE_MIB) -> Path:
        path = self.folder / f"{version}.img"
        rng = random.Random(version)
        body = bytearray(release_header(version, app))
        for n in range(mib * MIB // 4096 - 1):
            # Half of the blocks are the same in every release, so that deltas have something to do.
            body += (n.to_bytes(4, "little") * 1024) if n % 2 else rng.randbytes(4096)
        path.write_bytes(bytes(body))
        return path

    def payload(self, image: Path, version: str, *more: str, kernel: Path | None = None) -> Path:
        out = self.folder / f"{version}.bin"
        extra = ["--kernel", str(kernel)] if kernel else []
        mock("pack", "--image", str(image), *extra, "--key", str(self.key), "-o", str(out), *more)
        return out

    def publish(
        self,
        version: str,
        app: str = "ok",
        *more: str,
        kernel: Path | None = None,
        mib: int = IMAGE_MIB,
    ) -> Path:
        image = self.image(version, app, mib)
        payload = self.payload(image, version, kernel=kernel)
        mock(
            "publish",
            str(self.served),
            "--payload",
            str(payload),
            "--version",
            version,
            "--disable-backoff",
            *more,
        )
        return image

    def index(self, *more: str) -> Path:
        """Make what is published a static repository."""
        mock("index", str(self.served), "--key", str(self.key), *more)
        return self.served

    @staticmethod
    def mock(*words: str) -> str:
        """Run `omaha-mock`."""
        return mock(*words)

    def events(self) -> list[dict[str, str]]:
        """Every event that the server has heard, in order."""
        told: list[dict[str, str]] = []
        for line in (self.served / "requests.jsonl").read_text().splitlines():
            told += json.loads(line).get("events", [])
        return told

    def requests(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (self.served / "requests.jsonl").read_text().splitlines()
        ]

    def fault(self, kind: str, **facts: object) -> None:
        """Do this wrong from now on."""
        state = self.served / "releases.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
        state.write_text(
            state.read_text() + "\n".join(["", "[[fault]]", f'kind = "{kind}"', *lines, ""])
        )

    def no_faults(self) -> None:
        state = self.served / "releases.toml"
        state.write_text(state.read_text().split("\n[[fault]]")[0] + "\n")

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(BIN / "omaha-mock"), "serve", str(self.served)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.url = next(word for word in line.split() if word.startswith("http"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            assert self._process.stdout is not None
            self._process.stdout.close()
