"""`bascule payload inspect`: on whole payloads, on damaged ones, on things that are none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bascule.errors import Exit, StorageError
from bascule.tools import payload_inspect
from payload_builder import IMAGE, KERNEL_IMAGE, draft_v1, draft_v2
from payload_mutations import MUTATIONS, Mutation, Stage
from payload_reading import PAYLOADS, V1, needs_vectors


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    payload_inspect.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["inspect", *map(str, words)])
    code = args.run(args)
    return code, capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code, out = run(capsys, *words, "--json")
    return code, json.loads(out)


@needs_vectors
@pytest.mark.parametrize("path", PAYLOADS, ids=lambda p: p.name)
def test_vectors(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = document(capsys, path)
    assert (code, shown["ok"], shown["schema"]) == (Exit.DONE, True, 1)
    assert "error" not in shown
    assert shown["payload_size"] == shown["size"] == path.stat().st_size
    assert shown["kind"] == ("delta" if "delta" in path.name else "full")
    if path.parent.parent == V1:
        facts = json.loads((V1 / "index.json").read_text())["payloads"][path.name]
        images = json.loads((V1 / "index.json").read_text())["images"]
        assert shown["sha256_base64"] == facts["sha256_base64"]
        assert shown["header"]["metadata_size"] == facts["metadata_size"]
        assert shown["parts"][0]["operations"] == facts["operations"]
        for part in shown["parts"]:
            ages = facts[part["name"]]
            assert part["new"]["sha256"] == images[ages["new"]]["sha256"]
            if ages["old"]:
                assert part["old"]["sha256"] == images[ages["old"]]["sha256"]
    code, text = run(capsys, path, "--operations")
    assert code == Exit.DONE
    assert f"major version {shown['header']['major']}" in text
    assert len(text.splitlines()) > shown["operations"]


@needs_vectors
def test_two_signatures_are_both_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = V1 / "payloads" / "full_v2_kernel_two_signatures.bin"
    _, shown = document(capsys, path)
    assert shown["payload_signatures"] == [
        {"version": 1, "size": 256},
        {"version": 2, "size": 256},
    ]
    assert "256 bytes, version 1; 256 bytes, version 2" in run(capsys, path)[1]


def test_every_operation_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "delta"
    draft = draft_v2(delta=True)
    path.write_bytes(draft.build())
    _, shown = document(capsys, path, "--operations")
    (part,) = shown["parts"]
    assert [step["type"] for step in part["list"]] == ["SOURCE_COPY", "SOURCE_BSDIFF", "REPLACE_XZ"]
    assert part["list"][1]["source"] == [{"start": 4, "blocks": 4}]
    assert part["list"][2]["data_offset"] == len(draft.blobs[1])


def test_a_cut_payload_is_shown_up_to_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut"
    whole = draft_v1().build()
    path.write_bytes(whole[:-300])
    code, shown = document(capsys, path)
    assert code == shown["error"]["exit"] == Exit.PAYLOAD
    assert shown["error"]["number"] == 11
    assert [p["new"]["size"] for p in shown["parts"]] == [len(IMAGE), len(KERNEL_IMAGE)]
    assert shown["payload_size"] == len(whole)
    code, text = run(capsys, path)
    assert code == Exit.PAYLOAD
    assert f"up to byte {shown['stopped_at']:,}" in text
    assert "264 bytes that were not reached" in text


def test_a_refused_manifest_is_shown_with_the_refusal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = draft_v2(delta=True)
    draft.operations[1].type = 9
    draft.operations[2].type = 77
    path = tmp_path / "puffin"
    path.write_bytes(draft.build())
    code, shown = document(capsys, path)
    assert code == Exit.PAYLOAD
    assert "operation 1 (PUFFDIFF) of system" in shown["error"]["message"]
    assert shown["parts"][0]["operations"] == {"SOURCE_COPY": 1, "PUFFDIFF": 1, "unknown 77": 1}


def test_a_damaged_blob_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mutation,) = (m for m in MUTATIONS if m.name == "one bit of the data turned")
    path = tmp_path / "flipped"
    path.write_bytes(mutation.build())
    code, shown = document(capsys, path)
    assert (code, shown["error"]["number"]) == (Exit.PAYLOAD, 29)
    assert "operation 0 (REPLACE) of usr" in shown["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"C", b"<!DOCTYPE html>", b"CrAU" + bytes(16)])
def test_what_is_no_payload(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page"
    path.write_bytes(content)
    code, shown = document(capsys, path)
    assert code == Exit.PAYLOAD
    assert shown["size"] == len(content)
    assert "parts" not in shown
    assert run(capsys, path)[0] == Exit.PAYLOAD


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none", tmp_path):
        code, shown = document(capsys, path)
        assert code == Exit.STORAGE
        assert shown["error"]["id"] == StorageError.id
        assert run(capsys, path) == (Exit.STORAGE, "")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_wrong_payload_is_shown_without_a_crash(
    mutation: Mutation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "payload"
    path.write_bytes(mutation.build())
    code, shown = document(capsys, path, "--operations")
    text = run(capsys, path, "--operations")[1]
    assert all(char.isprintable() or char == "\n" for char in text)
    assert code == (0 if shown["ok"] else shown["error"]["exit"])
    if mutation.stage is Stage.METADATA:
        assert not shown["ok"]
    if mutation.stage in (Stage.NEVER, Stage.DECODE, Stage.READ_BACK):
        assert shown["ok"]
