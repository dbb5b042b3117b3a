"""``bascule payload apply``: exit code 0 only for what was proven, nothing half-made left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bascule.engine.device import Device
from bascule.errors import Exit
from payload_builder import IMAGE, KERNEL_IMAGE, OLD_IMAGE, draft_v1, draft_v2, public_pem
from payload_mutations import MUTATIONS, Mutation
from payload_tool import Tool, tool
from payload_vectors import V1_NAMES, V2_NAMES, case, needs_vectors

__all__ = ["tool"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "update.pem").write_bytes(public_pem("update"))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def put(folder: Path, data: bytes, name: str = "payload.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_vectors
@pytest.mark.parametrize("name", [*V1_NAMES, *V2_NAMES])
@pytest.mark.parametrize("place", ["new", "existing"])
def test_recorded_payloads_give_their_images(
    name: str, place: str, tool: Tool, tmp_path: Path, out: Path
) -> None:
    what = case(name)
    options: list[str] = []
    for part, data in what.new.items():
        options += ["--to", f"{part}={out / part}"]
        if place == "existing":
            (out / part).write_bytes(b"\xee" * (len(data) + 100_000))
    for part, data in what.old.items():
        options += ["--from", f"{part}={put(tmp_path, data, f'old-{part}')}"]
    payload = put(tmp_path, what.data)
    code, answer = tool.json("apply", payload, "--keys", what.key, *options)
    assert (code, answer["ok"]) == (0, True)
    for part, data in what.new.items():
        found = (out / part).read_bytes()
        assert found[: len(data)] == data
        # A new file and a file of its own have exactly the image's size; a device keeps its.
        if place == "new" or part in what.files:
            assert len(found) == len(data)
        else:
            assert found[len(data) :] == b"\xee" * 100_000
    assert names(out) == sorted(what.new)
    for part, data in what.old.items():
        assert (tmp_path / f"old-{part}").read_bytes() == data
    assert tool("apply", payload, "--keys", what.key, *options) == 0
    assert "Proven" in tool.out
    assert "0 bytes;" in tool.out


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutated_payload_leaves_nothing(
    mutation: Mutation, tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    draft = mutation.draft()
    if draft.major == 1:
        olds = {"usr": bytes(len(IMAGE)), "kernel": bytes(len(KERNEL_IMAGE))}
    else:
        olds = {"system": OLD_IMAGE}
    options: list[str] = []
    for part, data in olds.items():
        options += ["--to", f"{part}={out / part}"]
        options += ["--from", f"{part}={put(tmp_path, data, f'old-{part}')}"]
    payload = put(tmp_path, mutation.build())
    code, answer = tool.json("apply", payload, "--keys", keys, *options)
    if mutation.number is None:
        assert code == 0
        return
    assert code != 0
    # New files have no room behind the image.
    assert answer["error"]["number"] == (mutation.tight or mutation.number), answer["error"]
    assert names(out) == []
    assert answer.get("left", []) == []


def test_of_what_was_written_in_place_it_says_so(
    tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    draft = draft_v1(kernel=False)
    draft.manifest.new_partition_info.hash = bytes(32)
    payload = put(tmp_path, draft.build())
    target = put(out, b"\xee" * (len(IMAGE) + 4096), "usr")
    assert tool("apply", payload, "--keys", keys, "--to", f"usr={target}") == Exit.STORAGE
    assert f"{target} was being written" in tool.err
    _, answer = tool.json("apply", payload, "--keys", keys, "--to", f"usr={target}")
    assert str(target) in answer["left"][0]


def test_what_is_not_proven_is_not_even_begun(
    tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    """The file is at hand, so a signature at its end is checked before the first write."""
    target = put(out, b"\xee" * (len(IMAGE) + 4096), "usr")
    for signers in (((2, "other"),), ((1, "update"),)):
        draft = draft_v1(kernel=False)
        draft.signers = signers
        payload = put(tmp_path, draft.build())
        code, answer = tool.json("apply", payload, "--keys", keys, "--to", f"usr={target}")
        assert (code, answer["error"]["number"]) == (Exit.TRUST, 18)
        assert set(target.read_bytes()) == {0xEE}
        assert answer.get("left", []) == []


def test_missing_unknown_and_doubled_parts_are_refused(
    tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    payload = put(tmp_path, draft_v1().build())
    usr = f"usr={out / 'usr'}"
    kernel = f"kernel={out / 'kernel'}"
    code, answer = tool.json("apply", payload, "--keys", keys, "--to", usr)
    assert answer["error"]["number"] == 13
    assert "--to kernel=PATH" in answer["error"]["detail"]
    assert code == Exit.PAYLOAD
    extra = ["--to", usr, "--to", kernel, "--to", f"boot={out / 'boot'}"]
    assert tool("apply", payload, "--keys", keys, *extra) == Exit.PAYLOAD
    for words in (
        ["--to", "usr"],
        ["--to", usr, "--to", usr],
        ["--to", usr, "--to", f"kernel={out / 'usr'}"],
    ):
        assert tool("apply", payload, "--keys", keys, *words) == Exit.USAGE
    assert names(out) == []


def test_a_delta_is_not_written_over_its_own_source(tool: Tool, keys: Path, tmp_path: Path) -> None:
    payload = put(tmp_path, draft_v2(delta=True).build())
    old = put(tmp_path, OLD_IMAGE, "old")
    link = tmp_path / "link"
    os.link(old, link)
    for path in (old, link):
        words = ["--to", f"system={path}", "--from", f"system={old}"]
        assert tool("apply", payload, "--keys", keys, *words) == Exit.USAGE
    assert old.read_bytes() == OLD_IMAGE
    missing = ["--to", f"system={tmp_path / 'new'}"]
    code, answer = tool.json("apply", payload, "--keys", keys, *missing)
    assert (code, answer["error"]["number"]) == (Exit.PAYLOAD, 20)
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_too_small_grows_if_it_is_a_file(
    tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    payload = put(tmp_path, draft_v1(kernel=False).build())
    target = put(out, b"x" * 5000, "usr")
    assert tool("apply", payload, "--keys", keys, "--to", f"usr={target}") == 0
    assert target.read_bytes() == IMAGE


def test_places_that_cannot_be_written_are_named(
    tool: Tool, keys: Path, tmp_path: Path, out: Path
) -> None:
    payload = put(tmp_path, draft_v1(kernel=False).build())
    for path in ("/nonexistent/usr", "/dev/null", str(out)):
        assert tool("apply", payload, "--keys", keys, "--to", f"usr={path}") == Exit.STORAGE
        assert path in tool.err
    assert names(out) == []


def test_a_disk_that_loses_bytes_is_found_out(
    tool: Tool, keys: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = put(tmp_path, draft_v1(kernel=False).build())
    write = Device._write

    def lossy(self: Device, offset: int, data: memoryview, direct: bool) -> None:
        if offset:
            write(self, offset, data, direct)

    monkeypatch.setattr(Device, "_write", lossy)
    code, answer = tool.json("apply", payload, "--keys", keys, "--to", f"usr={out / 'usr'}")
    assert (code, answer["error"]["number"]) == (Exit.STORAGE, 15)
    assert names(out) == []


@needs_vectors
def test_stopped_it_leaves_nothing(tmp_path: Path, out: Path) -> None:
    what = case("full_v2.bin")
    payload = put(tmp_path, what.data)
    rng = random.Random(2)
    stopped = 0
    for _ in range(8):
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "bascule", "payload", "apply", payload),
                *("--keys", what.key, "--to", f"usr={out / 'usr'}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 30
        while not names(out) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        child.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT]))
        _, errors = child.communicate(timeout=60)
        assert b"Traceback" not in errors
        if child.returncode == 0:
            (out / "usr").unlink()
            continue
        stopped += 1
        assert names(out) == []
    assert stopped
