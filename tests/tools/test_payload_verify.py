"""``bascule payload verify``: proves, says what it could not check, writes nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bascule.errors import Exit
from payload_builder import IMAGE, OLD_IMAGE, draft_v1, draft_v2, public_pem
from payload_tool import Tool, tool
from payload_vectors import V1, V1_NAMES, V2_NAMES, case, needs_vectors

__all__ = ["tool"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "update.pem").write_bytes(public_pem("update"))
    return folder


def put(folder: Path, data: bytes, name: str = "payload.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@needs_vectors
@pytest.mark.parametrize("name", [*V1_NAMES, *V2_NAMES])
def test_recorded_payloads_are_proven(name: str, tool: Tool, tmp_path: Path) -> None:
    what = case(name)
    payload = put(tmp_path, what.data)
    options: list[str] = []
    for part, data in what.old.items():
        options += ["--from", f"{part}={put(tmp_path, data, part)}"]
    code, answer = tool.json("verify", payload, "--keys", what.key, *options)
    assert (code, answer["ok"], answer["complete"]) == (0, True, True)
    assert answer["sha256"] == what.sha256.hex()
    assert {part["name"]: part["result"] for part in answer["parts"]} == dict.fromkeys(
        what.new, "proven"
    )
    assert tool("verify", payload, "--keys", what.key, *options) == 0
    assert "as the manifest says" in tool.out


@needs_vectors
@pytest.mark.parametrize(
    ("name", "number"), [("full_v2_unsigned.bin", 17), ("full_v2_wrong_key.bin", 18)]
)
def test_unproven_payloads_are_refused(name: str, number: int, tool: Tool) -> None:
    code, answer = tool.json(
        "verify", V1 / "payloads" / name, "--keys", V1 / "keys" / "update.pub.pem"
    )
    assert code == Exit.TRUST
    assert answer["schema"] == 1
    assert answer["ok"] is False
    assert answer["error"]["number"] == number
    assert answer["error"]["remedy"]
    assert tool("verify", V1 / "payloads" / name, "--keys", V1 / "keys" / "update.pub.pem") == 10
    assert f"error {number}" in tool.err
    assert tool.out == ""


def test_a_delta_without_its_source_says_what_was_not_checked(
    tool: Tool, keys: Path, tmp_path: Path
) -> None:
    payload = put(tmp_path, draft_v2(delta=True).build())
    code, answer = tool.json("verify", payload, "--keys", keys)
    assert (code, answer["ok"], answer["complete"]) == (0, True, False)
    assert "--from system=PATH" in answer["unchecked"][0]
    old = put(tmp_path, OLD_IMAGE, "old")
    code, answer = tool.json("verify", payload, "--keys", keys, "--from", f"system={old}")
    assert (code, answer["complete"]) == (0, True)
    old.write_bytes(b"?" + OLD_IMAGE[1:])
    code, answer = tool.json("verify", payload, "--keys", keys, "--from", f"system={old}")
    assert (code, answer["error"]["number"]) == (Exit.PAYLOAD, 20)


def test_a_signed_payload_that_does_not_make_its_image_is_refused(
    tool: Tool, keys: Path, tmp_path: Path
) -> None:
    for part, number in (("usr", 15), ("kernel", 16)):
        draft = draft_v1()
        if part == "usr":
            draft.manifest.new_partition_info.hash = bytes(32)
        else:
            draft.manifest.procedures[0].new_info.hash = bytes(32)
        code, answer = tool.json("verify", put(tmp_path, draft.build()), "--keys", keys)
        assert answer["error"]["number"] == number
        assert code == Exit.STORAGE


def test_any_damage_is_refused(tool: Tool, keys: Path, tmp_path: Path) -> None:
    good = draft_v1().build()
    rng = random.Random(11)
    for _ in range(25):
        data = bytearray(good)
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        code, answer = tool.json("verify", put(tmp_path, bytes(data)), "--keys", keys)
        assert code in (Exit.PAYLOAD, Exit.TRUST)
        assert answer["error"]["number"] in (
            6,
            10,
            11,
            12,
            13,
            17,
            18,
            20,
            21,
            23,
            26,
            28,
            29,
            32,
            38,
            45,
        )


def test_an_image_of_32_tebibytes_is_refused_in_words(
    tool: Tool, keys: Path, tmp_path: Path
) -> None:
    draft = draft_v1(kernel=False)
    draft.manifest.new_partition_info.size = 1 << 45
    code, answer = tool.json("verify", put(tmp_path, draft.build()), "--keys", keys)
    assert (code, answer["error"]["number"]) == (Exit.PAYLOAD, 23), answer


def test_keys_are_needed_and_bad_ones_named(tool: Tool, keys: Path, tmp_path: Path) -> None:
    payload = put(tmp_path, draft_v1().build())
    (keys / "noise.pem").write_text("noise")
    code, answer = tool.json("verify", payload, "--keys", keys)
    assert code == 0
    assert "noise.pem" in answer["faults"][0]
    (keys / "update.pem").unlink()
    code, answer = tool.json("verify", payload, "--keys", keys)
    assert code == Exit.TRUST
    assert answer["error"]["id"] == "no-keys"
    assert "noise.pem" in answer["error"]["detail"]
    assert tool("verify", payload, "--keys", tmp_path / "nowhere") == Exit.TRUST


def test_wrong_words_are_usage_errors(tool: Tool, keys: Path, tmp_path: Path) -> None:
    payload = put(tmp_path, draft_v2(delta=True).build())
    for word in ("system", "=x", "system="):
        assert tool("verify", payload, "--keys", keys, "--from", word) == Exit.USAGE
    assert tool("verify", payload, "--keys", keys, "--from", f"vendor={payload}") == Exit.PAYLOAD
    assert "system" in tool.err
    assert tool("verify", tmp_path / "missing", "--keys", keys) == Exit.STORAGE


def test_nothing_is_written(tool: Tool, keys: Path, tmp_path: Path) -> None:
    payload = put(tmp_path, draft_v1().build())
    before = sorted(p.name for p in tmp_path.iterdir())
    assert tool("verify", payload, "--keys", keys) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert len(IMAGE) > 0
