"""What the faces publish is what they do: pages, completions, catalogue, schema, golden answers.

``BASCULE_WRITE_GOLDEN=1`` writes the golden answers anew; look at the difference before it is
committed: scripts depend on them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest

import bascule
from bascule.docs import FILES as MORE
from bascule.errors import Busy, catalogue
from bascule.faces.cli.verbs import VERBS, build
from bascule.faces.docs import FILES
from bascule.faces.json_schema import schema
from bascule.updater.status import Failure, State
from fake_daemon import CHECKED, SIZE, Daemon
from json_shape import fits

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent / "golden"


@pytest.mark.parametrize("name", FILES)
def test_the_committed_file_is_the_present_one(name: str) -> None:
    path = ROOT / name
    assert path.exists(), "run `make docs`"
    assert path.read_text() == FILES[name](), f"{name}: run `make docs`"


PAGES = [*(name for name in FILES if "/man/" in name), *MORE]


def test_bascules_page_is_the_present_one() -> None:
    (name,) = MORE
    assert (ROOT / name).read_text() == MORE[name](), "run `make docs`"
    page = (ROOT / name).read_text()
    for command in ("run", "health", "bless", "deadman", "disk prefer", "payload apply", "lock"):
        assert f"\\fB{command}" in page, command


@pytest.mark.parametrize("name", PAGES)
def test_roff_has_no_complaints(name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    ran = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z", str(ROOT / name)], capture_output=True, check=True
    )
    assert ran.stderr == b""


def test_every_verb_is_in_the_pages() -> None:
    page, shells = (ROOT / "docs/man/updatectl.8").read_text(), []
    for name in FILES:
        if "completions" in name:
            shells.append((ROOT / name).read_text())
    for verb in VERBS:
        assert f"\\fB{verb.name}\\fR" in page
        assert all(verb.name in text for text in shells)


def completions(*words: str) -> list[str]:
    script = ROOT / "systemd/completions/bash/updatectl"
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {script}; COMP_WORDS=(updatectl {quoted}); COMP_CWORD={len(words)}; _updatectl; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_bash_completes() -> None:
    assert completions("upd") == ["update"]
    assert {verb.name for verb in VERBS} <= set(completions(""))
    assert completions("rollback", "--o") == ["--once"]
    assert completions("--json", "quarantine", "cl") == ["clear"]
    assert completions("hold", "--for", "") == []
    assert completions("update", "--file", "/etc/pass") == ["/etc/passwd"] or (
        "/etc/passwd" in completions("update", "--file", "/etc/pass")
    )


@pytest.mark.parametrize(
    ("shell", "name"),
    [("zsh", "zsh/_updatectl"), ("fish", "fish/updatectl.fish"), ("bash", "bash/updatectl")],
)
def test_the_shell_can_read_its_completion(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(ROOT / "systemd/completions" / name)], check=True)


def test_bash_itself_completes(tmp_path: Path) -> None:
    """The registered function, by the shell's own machinery, on a key that a person presses."""
    script = ROOT / "systemd/completions/bash/updatectl"
    child = pexpect.spawn(
        "bash", ["--norc", "--noprofile"], encoding="utf-8", timeout=60, dimensions=(24, 100),
        env={"PATH": os.environ["PATH"], "PS1": "ready> ", "TERM": "dumb", "HISTFILE": "/dev/null"},  # type: ignore[arg-type]
    )  # fmt: skip
    child.expect("ready> ")
    child.sendline(f"source '{script}'")
    child.expect("ready> ")
    child.send("updatectl quar\t")
    child.expect("antine ")
    child.send("cl\t")
    child.expect("ear ")
    child.sendcontrol("u")
    child.send("updatectl update --no-r\t")
    child.expect("eboot ")
    child.close(force=True)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_loads_and_completes(tmp_path: Path) -> None:
    """zsh has no way to ask what it would complete: the key is pressed on a terminal of its own."""
    folder = ROOT / "systemd/completions/zsh"
    child = pexpect.spawn(
        "zsh", ["-f", "-i"], encoding="utf-8", timeout=60, dimensions=(24, 100),
        env={"PATH": os.environ["PATH"], "PS1": "ready> ", "TERM": "dumb", "HOME": str(tmp_path)},  # type: ignore[arg-type]
    )  # fmt: skip
    child.expect("ready> ")
    child.sendline(
        f"fpath=('{folder}' $fpath); autoload -U compinit; compinit -u -D; echo l''oaded"
    )
    child.expect("loaded")
    child.sendline("print -r -- ${_comps[updatectl]}.")
    child.expect("_updatectl\\.")
    child.send("updatectl quar\t")
    child.expect("antine")
    child.close(force=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_loads_and_completes(tmp_path: Path) -> None:
    script = ROOT / "systemd/completions/fish/updatectl.fish"

    def completed(line: str) -> list[str]:
        ran = subprocess.run(
            ["fish", "--no-config", "-c", f"source '{script}'; complete -C '{line}'"],
            capture_output=True, text=True, check=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )  # fmt: skip
        assert ran.stderr == ""
        return [found.partition("\t")[0] for found in ran.stdout.splitlines()]

    assert completed("updatectl quar") == ["quarantine"]
    assert "clear" in completed("updatectl quarantine ")
    assert completed("updatectl update --no-r") == ["--no-reboot"]


def test_the_journal_reads_the_catalogue(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed")
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(ROOT / "systemd/catalog/bascule.catalog", folder)
    root = f"--root={tmp_path}"
    made = subprocess.run(
        ["journalctl", root, "--update-catalog"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    listed = subprocess.run(
        ["journalctl", root, "--list-catalog"], capture_output=True, text=True, check=True
    ).stdout
    for cls in catalogue():
        assert f"{cls.message_id()} Bascule: {cls.cause}" in listed, cls.id


def test_help_lists_every_verb() -> None:
    text = build().format_help()
    for verb in VERBS:
        assert f"    {verb.name} " in text


# ── golden answers ───────────────────────────────────────────────────────────────────────────


async def answer(address: str, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bascule.faces.cli", "--json", *words,
        env={"PATH": os.environ["PATH"], "BASCULE_BUS_ADDRESS": address, "TZ": "UTC"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return out.decode()


def compare(name: str, text: str, kind: str) -> None:
    text = text.replace(f'"version": "{bascule.__version__}"', '"version": "THIS"')
    definition = schema()["$defs"][kind]
    assert fits(json.loads(text), definition) == []
    path = GOLDEN / f"{name}.json"
    if os.environ.get("BASCULE_WRITE_GOLDEN"):
        path.write_text(text)
    assert path.exists(), "write it with BASCULE_WRITE_GOLDEN=1"
    assert json.loads(text) == json.loads(path.read_text())


FULL = {
    "state": State.DOWNLOADING,
    "since": CHECKED,
    "attempt": "20261121T103720Z-0badcafe",
    "new_version": "3602.1.5",
    "new_size": SIZE,
    "last_checked": CHECKED,
    "last_updated": CHECKED - 86400,
    "next_check": CHECKED + 2700,
    "bytes_done": 11_101_132,
    "bytes_total": SIZE,
    "bytes_written": 10_000_000,
    "bytes_skipped": 1_101_132,
    "rate": 2_000_000.0,
    "phase": "download",
    "sentence": "Release 3602.1.5 is being fetched.",
    "failure": Failure("transfer", 9, "It broke.", "Try again.", CHECKED - 60),
    "quarantine": 1,
    "blocked_by": ({"id": "hold", "sentence": "Held until Monday.", "until": CHECKED + 3600},),
    "warnings": ("The hold ends within a day.",),
    "extra": {"boot_id": "5f4c"},
}


async def test_golden_status(served: Any) -> None:
    compare("status-idle", await answer(served.address, "status"), "status")
    served.steering.move(**FULL)
    compare("status-downloading", await answer(served.address, "status"), "status")


async def test_golden_slots(served: Any) -> None:
    a, b = served.steering.status.slots
    served.steering.move(
        slots=(
            replace(a, next=False),
            replace(b, next=True, tries=1, priority=3, version="3602.1.5"),
        )
    )
    compare("slots", await answer(served.address, "slots"), "slots")


async def test_golden_jobs(served: Any) -> None:
    daemon = Daemon(served.steering, "good", 0.0)
    compare("check", await answer(served.address, "check"), "job")
    served.steering.move(State.IDLE, new_version="", new_size=0)
    daemon.story = "none"
    compare("check-no-update", await answer(served.address, "check"), "job")
    daemon.story = "good"
    compare("update", await answer(served.address, "update"), "job")


async def test_golden_started_sentence_error_document(served: Any) -> None:
    compare("update-no-wait", await answer(served.address, "update", "--no-wait"), "started")
    compare("hold", await answer(served.address, "hold", "--for", "2h"), "sentence")
    compare("busy", await answer(served.address, "update"), "error")
    served.steering.refuse = Busy("a download", attempt="a1")
    compare("busy-context", await answer(served.address, "cancel"), "error")
    served.steering.refuse = None
    compare("history", await answer(served.address, "history"), "document")
    compare("no-daemon", await answer("unix:path=/nowhere/bus", "status"), "error")


def test_every_error_fits_the_schema() -> None:
    for cls in catalogue():
        document = {"schema": 1, "ok": False, "error": cls("detail", n=1).as_dict()}
        assert fits(document, schema()["$defs"]["error"]) == []
