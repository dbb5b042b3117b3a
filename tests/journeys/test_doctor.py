"""`updatectl doctor` finds each kind of damage, and `--repair` mends what can be mended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bascule.faces.json_schema import schema
from json_shape import fits
from node import Node
from publisher import Site

MakeNode = Callable[..., Node]


def doctor(node: Node, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and findings by id (the last of each)."""
    done = node.updatectl("doctor", *words, "--json")
    document = json.loads(done.stdout)
    assert fits(document, schema()["$defs"]["document-doctor"]) == []
    return done.returncode, {f["id"]: f for f in document["findings"]}


def test_a_sound_host_is_sound(site: Site, make_node: MakeNode) -> None:
    node = make_node()
    node.power_on()
    code, found = doctor(node)
    assert (code, set(found)) == (0, {"systemd-absent"})
    assert node.updatectl("doctor").stdout.startswith("No damage was found.")
    assert "nothing to repair" in node.updatectl("doctor", "--repair").stderr


def test_damage_is_found_and_repaired(site: Site, make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node(settings="[server]\n")
    node.power_on()
    node.stop_daemon()
    with node.disk.open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        file.write(b"\0" * 512)
    (node.state / "ledger.json").write_bytes(b'{"schema": 1, "torn')
    (node.state / "ledger.json").chmod(0o644)
    (node.state / "checkpoint").mkdir(exist_ok=True)
    (node.state / "checkpoint/record").write_bytes(b"something\n{}\n")
    (node.state / "checkpoint/metadata.partial").write_bytes(b"x")
    (node.folder / "boot/vmlinuz-b.partial").write_bytes(b"x")
    node.state.chmod(0o777)
    key = tmp_path / "client.key"
    key.write_text("secret")
    key.chmod(0o644)
    (node.folder / "more.toml").write_text(
        f'[server]\nclient_key = "{key}"\n[download]\nuser = "me"\npassword = "secret"\n'
    )
    node.start_daemon()
    for name in ("reboot-required", "update_engine_autoupdate_completed"):
        (node.run / name).touch()
    code, found = doctor(node)
    assert code == 1
    # The daemon's start has begun the ledger afresh already, and kept the torn one.
    expected = {
        "partition-table", "ledger-was-damaged", "checkpoint-orphan", "leftover", "state-writable",
        "secret-readable", "markers-stale", "settings", "systemd-absent",
    }  # fmt: skip
    assert expected <= set(found), set(found)
    assert all(f["repairable"] for n, f in found.items() if n in expected - {
        "ledger-was-damaged", "settings", "systemd-absent"})  # fmt: skip
    mended = node.updatectl("doctor", "--repair", "--json")
    assert mended.returncode == 1  # the settings are still as they were
    left = {f["id"] for f in json.loads(mended.stdout)["findings"]}
    assert left == {"ledger-was-damaged", "settings", "systemd-absent"}
    assert node.state.stat().st_mode & 0o777 == 0o755
    assert key.stat().st_mode & 0o777 == 0o600
    assert not (node.run / "reboot-required").exists()
    assert not (node.folder / "boot/vmlinuz-b.partial").exists()
    with node.disk.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        assert file.read(8) == b"EFI PART"
    history = json.loads(node.updatectl("history", "--json").stdout)["history"]
    assert "repaired" in [record["kind"] for record in history]


def test_what_cannot_be_repaired_says_what_to_do(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    node = make_node(settings=f'[trust]\nkeys = "{site.folder / "nowhere"}"\n')
    system = node.root / "usr/lib/systemd/system"
    (node.root / "run/systemd/system").mkdir(parents=True)
    system.mkdir(parents=True)
    shipped = Path(__file__).resolve().parents[2] / "systemd/system"
    for name in ("bascule.service", "bascule-bless.service", "bascule-health.service"):
        (system / name).write_bytes((shipped / name).read_bytes())
    (node.root / "etc/systemd/system").mkdir(parents=True)
    (node.root / "etc/systemd/system/bascule-health.service").symlink_to("/dev/null")
    node.power_on()
    assert node.updatectl("hold", "--for", "1h").returncode == 0
    node.stop_daemon()
    path = node.state / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"hold"', b'"held"', 1))
    release = node.root / "usr/share/flatcar/release"
    os.utime(release, (4_000_000_000, 4_000_000_000))
    node.start_daemon()
    code, found = doctor(node)
    assert code == 1
    assert {
        "keys-missing", "history-chain", "clock-before-build", "unit-missing", "unit-masked",
        "unit-not-enabled",
    } <= set(found), set(found)  # fmt: skip
    assert "bascule-deadman.timer" in found["unit-missing"]["sentence"]
    assert found["unit-not-enabled"]["remedy"].startswith("`systemctl enable")
    text = node.updatectl("doctor").stdout
    assert "errors and" in text and "trust.keys" in text


def test_an_errand_at_work_is_no_leftover(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0")
    site.fault("slow", rate=300_000)
    node = make_node()
    node.power_on()
    assert node.updatectl("update", "--no-wait").returncode == 0
    node.wait_for_errand()
    while not (node.state / "checkpoint/record").exists():
        node.pause(0.02)
    code, found = doctor(node)
    assert code == 0, found
    assert node.updatectl("doctor", "--repair").returncode == 5
    assert node.updatectl("cancel").returncode == 0
    # What was interrupted goes on at the next update: it is no leftover either.
    assert "checkpoint-orphan" not in doctor(node)[1]
