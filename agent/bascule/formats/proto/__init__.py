"""The wire schemas of both payload majors, as protobuf message classes of a private pool.

``crau_v1.proto`` and ``crau_v2.proto`` beside this file are the same tables as text (a test
compares them). They differ from the publishers' own files on purpose, in ways that read the same
bytes:

* Enumerations and 32-bit integers are declared ``uint64``. Protobuf for Python reads an enum value
  that it does not know as "absent, 0", and cuts a 32-bit field to its low bits; so a type of 14 or
  of 2**32 would both become REPLACE. As ``uint64`` the number arrives as it was sent.
* Nothing is ``required``: what must be there is checked by hand, with an error that names it.
* Text is ``bytes``, and fields that no reader here looks at are left out.

No generated code: gencode of protobuf 7 refuses the runtime 6 (reference python.md §2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["SCHEMAS", "Field", "Schema", "file_descriptor", "message_class"]

Field = tuple[str, str]
"""A field's type, ``repeated`` first if it is one, and its name."""
Schema = Mapping[str, Mapping[int, Field]]
"""Message name → field number → field."""

_EXTENT: Mapping[int, Field] = {1: ("uint64", "start_block"), 2: ("uint64", "num_blocks")}
_INFO: Mapping[int, Field] = {1: ("uint64", "size"), 2: ("bytes", "hash")}
_OPERATION: Mapping[int, Field] = {
    1: ("uint64", "type"),
    2: ("uint64", "data_offset"),
    3: ("uint64", "data_length"),
    4: ("repeated Extent", "src_extents"),
    5: ("uint64", "src_length"),
    6: ("repeated Extent", "dst_extents"),
    7: ("uint64", "dst_length"),
    8: ("bytes", "data_sha256_hash"),
}

SCHEMAS: Mapping[str, Schema] = {
    "crau_v1": {
        "Extent": _EXTENT,
        "Signature": {1: ("uint64", "version"), 2: ("bytes", "data")},
        "Signatures": {1: ("repeated Signature", "signatures")},
        "InstallInfo": _INFO,
        "InstallOperation": _OPERATION,
        "InstallProcedure": {
            1: ("uint64", "type"),
            2: ("repeated InstallOperation", "operations"),
            3: ("InstallInfo", "old_info"),
            4: ("InstallInfo", "new_info"),
        },
        "DeltaArchiveManifest": {
            1: ("repeated InstallOperation", "partition_operations"),
            3: ("uint64", "block_size"),
            4: ("uint64", "signatures_offset"),
            5: ("uint64", "signatures_size"),
            8: ("InstallInfo", "old_partition_info"),
            9: ("InstallInfo", "new_partition_info"),
            10: ("repeated InstallProcedure", "procedures"),
        },
    },
    "crau_v2": {
        "Extent": _EXTENT,
        "Signature": {
            1: ("uint64", "version"),
            2: ("bytes", "data"),
            3: ("fixed32", "unpadded_signature_size"),
        },
        "Signatures": {1: ("repeated Signature", "signatures")},
        "PartitionInfo": _INFO,
        "InstallOperation": {**_OPERATION, 9: ("bytes", "src_sha256_hash")},
        "PartitionUpdate": {
            1: ("bytes", "partition_name"),
            2: ("bool", "run_postinstall"),
            3: ("bytes", "postinstall_path"),
            4: ("bytes", "filesystem_type"),
            6: ("PartitionInfo", "old_partition_info"),
            7: ("PartitionInfo", "new_partition_info"),
            8: ("repeated InstallOperation", "operations"),
            9: ("bool", "postinstall_optional"),
            11: ("Extent", "hash_tree_extent"),
            15: ("Extent", "fec_extent"),
            17: ("bytes", "version"),
        },
        "DynamicPartitionGroup": {1: ("bytes", "name")},
        "DynamicPartitionMetadata": {1: ("repeated DynamicPartitionGroup", "groups")},
        "DeltaArchiveManifest": {
            3: ("uint64", "block_size"),
            4: ("uint64", "signatures_offset"),
            5: ("uint64", "signatures_size"),
            12: ("uint64", "minor_version"),
            13: ("repeated PartitionUpdate", "partitions"),
            14: ("int64", "max_timestamp"),
            15: ("DynamicPartitionMetadata", "dynamic_partition_metadata"),
            16: ("bool", "partial_update"),
        },
    },
}

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "uint64": _FIELD.TYPE_UINT64,
    "int64": _FIELD.TYPE_INT64,
    "fixed32": _FIELD.TYPE_FIXED32,
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
}


def file_descriptor(package: str) -> descriptor_pb2.FileDescriptorProto:
    """The schema ``crau_v1`` or ``crau_v2`` as protobuf's own description of a file."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"bascule/{package}.proto", package=f"bascule.{package}", syntax="proto2"
    )
    for message, fields in SCHEMAS[package].items():
        described = file.message_type.add(name=message)
        for number, (kind, name) in fields.items():
            bare = kind.removeprefix("repeated ")
            field = described.field.add(
                name=name,
                number=number,
                label=_FIELD.LABEL_OPTIONAL if bare == kind else _FIELD.LABEL_REPEATED,
            )
            if bare in _SCALARS:
                field.type = _SCALARS[bare]
            else:
                field.type = _FIELD.TYPE_MESSAGE
                field.type_name = f".bascule.{package}.{bare}"
    return file


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package in SCHEMAS:
        pool.Add(file_descriptor(package))
    return pool


@functools.cache
def message_class(package: str, message: str) -> Any:
    """The class of one message, such as ``("crau_v1", "DeltaArchiveManifest")``."""
    return message_factory.GetMessageClass(
        _pool().FindMessageTypeByName(f"bascule.{package}.{message}")
    )
