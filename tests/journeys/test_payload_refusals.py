"""What cannot be installed is refused before it costs anything, and the next best is taken."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import bsdiff4
import pytest

from bascule.formats.proto import message_class
from node import MIB, Node
from payload_builder import BLOCK, Draft, public_pem
from publisher import Site

MakeNode = Callable[..., Node]

PUFFDIFF = 9


def delta_of_an_unknown_kind(old: bytes, new: bytes) -> bytes:
    """A signed delta of which the last operation is one that Bascule does not carry out."""
    draft = Draft(2, message_class("crau_v2", "DeltaArchiveManifest")(), [], [])
    draft.signers = ((None, "update"),)
    draft.metadata_signers = ("update",)
    draft.manifest.minor_version = 5
    part = draft.manifest.partitions.add(partition_name=b"usr")
    for info, data in ((part.old_partition_info, old), (part.new_partition_info, new)):
        info.size, info.hash = len(data), hashlib.sha256(data).digest()
    half = len(new) // BLOCK // 2
    for start, end in ((0, half), (half, len(new) // BLOCK)):
        before, after = (data[start * BLOCK : end * BLOCK] for data in (old, new))
        operation = part.operations.add(type=PUFFDIFF if start else 5)
        for run in (operation.src_extents, operation.dst_extents):
            run.add(start_block=start, num_blocks=end - start)
        draft.operations.append(operation)
        draft.blobs.append(bsdiff4.diff(before, after))
    draft.settle()
    return draft.build()


def test_a_delta_with_an_operation_we_do_not_know_is_replaced_by_a_full_payload(
    site: Site, make_node: MakeNode
) -> None:
    one, two = site.image("1.0.0", mib=1), site.publish("2.0.0", mib=1)
    (site.keys / "builder.pub.pem").write_bytes(public_pem())
    delta = site.folder / "delta.bin"
    delta.write_bytes(delta_of_an_unknown_kind(one.read_bytes(), two.read_bytes()))
    site.mock(
        "publish", str(site.served), "--payload", str(delta), "--version", "2.0.0",
        "--from", "1.0.0", "--disable-backoff",
    )  # fmt: skip
    node = make_node(settings="[download]\ndeltas = true\n")
    node.power_on()
    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.slot_bytes("B", two.stat().st_size) == two.read_bytes()
    asked = [r for r in site.requests() if r["kind"] in ("payload", "omaha")]
    names = [r["name"] for r in asked if r["kind"] == "payload"]
    assert "delta" in names[0] and "delta" not in names[-1], names
    history = json.loads(node.updatectl("history", "--json").stdout)
    told = [r for r in history["history"] if r["kind"] == "delta-refused"]
    assert len(told) == 1
    assert "PUFFDIFF" in told[0]["facts"]["why"]
    explained = node.updatectl("explain", "--history")
    assert "a full payload was asked for" in explained.stdout, explained.stdout + explained.stderr
    # One attempt, one update: the server hears of no failure.
    assert all(event["eventresult"] in ("1", "2") for event in site.events())


def test_a_release_that_does_not_fit_costs_its_metadata(site: Site, make_node: MakeNode) -> None:
    site.publish("2.0.0", mib=24)
    node = make_node()
    node.power_on()
    before = node.slot_bytes("B", node.slot_mib * MIB)
    done = node.updatectl("update", "--json")
    assert done.returncode != 0
    error = json.loads(done.stdout)["error"]
    assert error["id"] == "no-space"
    assert str(24 * MIB) in error["message"] and str(node.slot_mib * MIB) in error["message"]
    assert node.slot_bytes("B", node.slot_mib * MIB) == before
    assert node.flags("A") == (1, 0, 1)
    assert node.flags("B")[2] == 0
    (asked,) = [r for r in site.requests() if r["kind"] == "payload"]
    # What the server had handed to the kernel when the connection closed; the file is 12 MiB.
    assert asked["sent"] < 12 * MIB
    assert not asked["whole"]
    assert not list((node.state / "checkpoint").glob("*.partial"))


def test_a_release_without_a_package_that_the_host_needs_is_refused(
    site: Site, make_node: MakeNode
) -> None:
    site.publish("2.0.0", mib=1)
    node = make_node(settings='[postinst]\npackages = ["oem-qemu.gz"]\n')
    node.power_on()
    done = node.updatectl("update", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["id"]) == (9, "packages-missing"), done.stdout
    assert "oem-qemu.gz" in error["message"]
    assert node.flags("B")[0] == 0


def test_a_release_built_before_the_running_one_is_refused(site: Site, make_node: MakeNode) -> None:
    two = site.image("2.0.0", mib=1)
    arguments = ("--major", "2", "--max-timestamp", "1700000000")
    payload = site.payload(two, "2.0.0", *arguments)
    site.mock("publish", str(site.served), "--payload", str(payload), "--version", "2.0.0")
    node = make_node()
    (node.root / "etc/os-release").write_text('BUILD_ID="2024-08-12-1740"\n')
    node.power_on()
    done = node.updatectl("update", "--json")
    error = json.loads(done.stdout)["error"]
    assert error["number"] == 51, done.stdout
    assert node.flags("B")[0] == 0
    done = node.updatectl("update", "--now", "--allow-downgrade")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.updatectl("deactivate").returncode == 0
    done = node.updatectl("activate")
    assert done.returncode == 0, "what was allowed when it was prepared is allowed: " + done.stderr


@pytest.fixture
def openpgp(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A publisher's GnuPG home and the fingerprint of its key."""
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--passphrase", ""]
    make = [*gpg, "--quick-generate-key", "p@example.org", "ed25519", "sign", "0"]
    subprocess.run(make, check=True, capture_output=True)
    listed = subprocess.run(
        [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
    ).stdout
    yield home, next(x.split(":")[9] for x in listed.splitlines() if x.startswith("fpr"))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
def test_a_digest_list_proves_a_payload_from_a_server_and_from_a_stick(
    site: Site, make_node: MakeNode, openpgp: tuple[Path, str], tmp_path: Path
) -> None:
    home, fingerprint = openpgp
    ring = tmp_path / "ring.gpg"
    exported = subprocess.run(
        ["gpg", "--homedir", str(home), "--export", fingerprint], check=True, capture_output=True
    )
    ring.write_bytes(exported.stdout)
    settings = f'[trust]\nrequire = ["rsa", "openpgp"]\nopenpgp_keyring = "{ring}"\n'
    two = site.image("2.0.0", mib=1)
    signed = ("--gpg-home", str(home), "--gpg-key", fingerprint)
    payload = site.payload(two, "2.0.0", *signed)
    listed = payload.with_name(payload.name + ".DIGESTS.asc")

    stick = make_node(settings=settings)
    stick.power_on()
    bare = tmp_path / "bare.bin"
    bare.write_bytes(payload.read_bytes())
    refused = stick.updatectl("update", "--json", "--file", str(bare))
    assert json.loads(refused.stdout)["error"]["id"] == "openpgp", refused.stdout
    assert stick.flags("B")[0] == 0
    # Another file's list, though signed, does not name this one.
    bare.with_name(bare.name + ".DIGESTS.asc").write_bytes(listed.read_bytes())
    assert stick.updatectl("update", "--file", str(bare)).returncode == refused.returncode
    done = stick.updatectl("update", "--file", str(payload))
    assert done.returncode == 0, done.stdout + done.stderr
    # What proved it once proves it again, without the stick.
    for gone in (payload, listed):
        gone.rename(gone.with_name(gone.name + ".away"))
    assert stick.updatectl("deactivate").returncode == 0
    done = stick.updatectl("activate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stick.flags("B")[1] == 1
    for gone in (payload, listed):
        gone.with_name(gone.name + ".away").rename(gone)
    stick.power_off()

    site.mock("publish", str(site.served), "--payload", str(payload), "--version", "2.0.0")
    node = make_node(settings=settings)
    node.power_on()
    done = node.updatectl("update")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [r["name"] for r in site.requests() if r["kind"] == "payload"]
    assert names == ["2.0.0.bin.DIGESTS.asc", "2.0.0.bin"]
