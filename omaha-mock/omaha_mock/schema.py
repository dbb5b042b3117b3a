"""The manifest's protobuf schema, built at run time: no protoc, no generated code.

Two schemas, since Flatcar's (payload major 1) and AOSP's (major 2) give the same field numbers
different meanings. Enums are plain ``int32`` and v1's 32-bit offsets are read as 64-bit, so that
an unknown operation or an overlong offset is seen as it was written and refused by name instead
of being silently turned into type 0 or cut to 32 bits.

Source: Flatcar ``update_metadata.proto`` and AOSP's file of the same name.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["HOLE", "OPERATION_NAMES", "OPERATION_NUMBERS", "message"]

HOLE = 2**64 - 1
"""``start_block`` of an extent that consumes bytes and writes nowhere."""

OPERATION_NAMES: dict[int, str] = {
    0: "REPLACE",
    1: "REPLACE_BZ",
    2: "MOVE",
    3: "BSDIFF",
    4: "SOURCE_COPY",
    5: "SOURCE_BSDIFF",
    6: "ZERO",
    7: "DISCARD",
    8: "REPLACE_XZ",
    9: "PUFFDIFF",
    10: "BROTLI_BSDIFF",
    11: "ZUCCHINI",
    12: "LZ4DIFF_BSDIFF",
    13: "LZ4DIFF_PUFFDIFF",
    14: "REPLACE_ZSTD",
}
OPERATION_NUMBERS: dict[str, int] = {name: number for number, name in OPERATION_NAMES.items()}

# message -> (field number, name, type); a leading * means repeated, a capital a message.
_Table = dict[str, tuple[tuple[int, str, str], ...]]

_EXTENT: _Table = {"Extent": ((1, "start_block", "uint64"), (2, "num_blocks", "uint64"))}
_OPERATION: tuple[tuple[int, str, str], ...] = (
    (1, "type", "int32"),
    (2, "data_offset", "uint64"),
    (3, "data_length", "uint64"),
    (4, "src_extents", "*Extent"),
    (5, "src_length", "uint64"),
    (6, "dst_extents", "*Extent"),
    (7, "dst_length", "uint64"),
    (8, "data_sha256_hash", "bytes"),
)
_INFO: tuple[tuple[int, str, str], ...] = ((1, "size", "uint64"), (2, "hash", "bytes"))

_V1: _Table = {
    **_EXTENT,
    "Signature": ((1, "version", "uint32"), (2, "data", "bytes")),
    "Signatures": ((1, "signatures", "*Signature"),),
    "InstallInfo": _INFO,
    "InstallOperation": _OPERATION,
    "InstallProcedure": (
        (1, "type", "int32"),
        (2, "operations", "*InstallOperation"),
        (3, "old_info", "InstallInfo"),
        (4, "new_info", "InstallInfo"),
    ),
    "Manifest": (
        (1, "partition_operations", "*InstallOperation"),
        (2, "noop_operations", "*InstallOperation"),
        (3, "block_size", "uint32"),
        (4, "signatures_offset", "uint64"),
        (5, "signatures_size", "uint64"),
        (8, "old_partition_info", "InstallInfo"),
        (9, "new_partition_info", "InstallInfo"),
        (10, "procedures", "*InstallProcedure"),
    ),
}
_V2: _Table = {
    **_EXTENT,
    "Signature": (
        (1, "version", "uint32"),
        (2, "data", "bytes"),
        (3, "unpadded_signature_size", "fixed32"),
    ),
    "Signatures": ((1, "signatures", "*Signature"),),
    "PartitionInfo": _INFO,
    "InstallOperation": (*_OPERATION, (9, "src_sha256_hash", "bytes")),
    "PartitionUpdate": (
        (1, "partition_name", "string"),
        (2, "run_postinstall", "bool"),
        (3, "postinstall_path", "string"),
        (4, "filesystem_type", "string"),
        (6, "old_partition_info", "PartitionInfo"),
        (7, "new_partition_info", "PartitionInfo"),
        (8, "operations", "*InstallOperation"),
        (9, "postinstall_optional", "bool"),
        (11, "hash_tree_extent", "Extent"),
        (15, "fec_extent", "Extent"),
        (17, "version", "string"),
    ),
    "Manifest": (
        (3, "block_size", "uint32"),
        (4, "signatures_offset", "uint64"),
        (5, "signatures_size", "uint64"),
        (12, "minor_version", "uint32"),
        (13, "partitions", "*PartitionUpdate"),
        (14, "max_timestamp", "int64"),
        (16, "partial_update", "bool"),
        (18, "security_patch_level", "string"),
    ),
}

_SCALARS = {
    kind: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind.upper()}")
    for kind in ("int32", "int64", "uint32", "uint64", "fixed32", "bool", "bytes", "string")
}


def _compile(package: str, table: _Table) -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto2"
    )
    for name, fields in table.items():
        entry = file.message_type.add(name=name)
        for number, field, kind in fields:
            repeated = kind.startswith("*")
            kind = kind.removeprefix("*")
            item = entry.field.add(name=field, number=number)
            item.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if kind in _SCALARS:
                item.type = _SCALARS[kind]
            else:
                item.type = field_type.TYPE_MESSAGE
                item.type_name = f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in table
    }


_CLASSES: dict[int, dict[str, Any]] = {1: _compile("crau1", _V1), 2: _compile("crau2", _V2)}


def message(major: int, name: str) -> Any:
    """A new empty message ``name`` of the schema of payload ``major`` (1 or 2)."""
    return _CLASSES[major][name]()
