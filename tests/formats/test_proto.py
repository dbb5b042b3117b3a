"""The schemas in code, their text beside them, and the count that goes before the parser."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import ManifestError
from bascule.formats import proto
from bascule.formats.proto import SCHEMAS, file_descriptor, message_class
from bascule.formats.proto.wire import count_messages

FOLDER = Path(proto.__file__).parent
HEAD = """\
// The tables of __init__.py as text, for people and for protoc; a test compares the two.
// Enumerations and 32-bit integers are uint64 on purpose: see there.

syntax = "proto2";

package bascule.{package};
"""


def as_text(package: str) -> str:
    lines = [HEAD.format(package=package)]
    for message, fields in SCHEMAS[package].items():
        lines.append(f"message {message} {{")
        for number, (kind, name) in fields.items():
            label = "" if kind.startswith("repeated ") else "optional "
            lines.append(f"  {label}{kind} {name} = {number};")
        lines.append("}\n")
    return "\n".join(lines)


@pytest.mark.parametrize("package", SCHEMAS)
def test_text_beside_the_schema_is_the_schema(package: str) -> None:
    assert (FOLDER / f"{package}.proto").read_text() == as_text(package)


@pytest.mark.skipif(shutil.which("protoc") is None, reason="protoc is not here")
@pytest.mark.parametrize("package", SCHEMAS)
def test_protoc_reads_the_text_as_the_same_schema(package: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    subprocess.run(
        ["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={out}", f"{package}.proto"],
        check=True,
    )
    (compiled,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    ours = file_descriptor(package)
    for file in (compiled, ours):
        file.ClearField("name")
        file.ClearField("syntax")
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert compiled == ours


@pytest.mark.parametrize("number", [14, 15, 2**31, 2**32, 2**64 - 1])
def test_unknown_enum_values_arrive_as_they_were_sent(number: int) -> None:
    kind = message_class("crau_v2", "InstallOperation")
    assert kind.FromString(kind(type=number).SerializeToString()).type == number


def test_messages_are_counted_at_every_depth() -> None:
    manifest = message_class("crau_v1", "DeltaArchiveManifest")()
    for _ in range(3):
        manifest.partition_operations.add(type=0).dst_extents.add(start_block=1)
    manifest.procedures.add().operations.add().src_extents.add()
    raw = manifest.SerializeToString()
    counted = count_messages(raw, SCHEMAS["crau_v1"], "DeltaArchiveManifest", {})
    assert counted == {"InstallOperation": 4, "Extent": 4, "InstallProcedure": 1}
    with pytest.raises(ManifestError, match="more than 3 messages of kind Extent"):
        count_messages(raw, SCHEMAS["crau_v1"], "DeltaArchiveManifest", {"Extent": 3})


def test_a_swarm_of_empty_messages_is_refused_before_it_is_parsed() -> None:
    raw = b"\x0a\x00" * 200_000
    with pytest.raises(ManifestError, match="more than 100 messages"):
        count_messages(raw, SCHEMAS["crau_v1"], "DeltaArchiveManifest", {"InstallOperation": 100})


def test_a_swarm_of_the_same_single_field_is_refused() -> None:
    with pytest.raises(ManifestError, match="more than 65536 messages of kind InstallInfo"):
        count_messages(b"\x4a\x00" * 100_000, SCHEMAS["crau_v1"], "DeltaArchiveManifest", {})


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08",  # a number that never comes
        b"\x08" + b"\x80" * 10 + b"\x01",  # a number of eleven bytes
        b"\x0a\x05abc",  # a length beyond the end
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2**64-1
        b"\x00\x01",  # field number 0
        b"\x0b\x0c",  # a group
        b"\x0f",  # wire type 7
        b"\x0a\x02\x32\x05",  # an inner length beyond the outer one
    ],
)
def test_what_is_no_protobuf_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        count_messages(raw, SCHEMAS["crau_v1"], "DeltaArchiveManifest", {})


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(raw: bytes) -> None:
    for package in SCHEMAS:
        with contextlib.suppress(ManifestError):
            count_messages(raw, SCHEMAS[package], "DeltaArchiveManifest", {})
