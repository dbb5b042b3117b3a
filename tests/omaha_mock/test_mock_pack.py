"""The payload builder: against Flatcar's own output, against our reader, and against itself."""

from __future__ import annotations

import base64
import hashlib
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from omaha_mock import patching
from omaha_mock.applying import apply, bspatch
from omaha_mock.codecs import CODECS, chosen, decode, in_order, smallest
from omaha_mock.errors import MockError, PayloadError, UsageError
from omaha_mock.pack import Image, Packed, pack
from omaha_mock.reading import Payload, read_payload, verify
from omaha_mock.schema import message
from omaha_mock.signing import (
    SigningKey,
    VerifyingKey,
    keygen,
    load_signing_key,
    load_verifying_keys,
    signatures_message,
)

V1 = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "flatcar_v1"
needs_vectors = pytest.mark.skipif(not V1.is_dir(), reason="the shared vectors are not here")


@pytest.fixture(scope="session")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name, kind in (("update", "rsa2048"), ("other", "rsa2048"), ("curve", "ec")):
        keygen(directory, name=name, kind=kind)
    keygen(directory, name="long", kind="rsa4096")
    return directory


@pytest.fixture(scope="session")
def keys(key_files: Path) -> dict[str, SigningKey]:
    return {
        name: load_signing_key(key_files / f"{name}.key.pem")
        for name in ("update", "other", "curve", "long")
    }


def public(key_files: Path, *names: str) -> list[VerifyingKey]:
    return load_verifying_keys(key_files / f"{name}.pub.pem" for name in names)


def check_applies(packed: Packed, images: list[Image], directory: Path) -> Payload:
    payload = read_payload(packed.path)
    out = {image.name: directory / f"out-{image.name}" for image in images}
    apply(payload, out, {image.name: image.old for image in images if image.old})
    for image in images:
        assert out[image.name].read_bytes() == image.new.read_bytes()
    assert packed.size == packed.path.stat().st_size == payload.size
    assert packed.metadata_size == payload.metadata_size
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).digest()
    assert packed.operations == payload.counts()
    return payload


@needs_vectors
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_full_payload_is_what_flatcars_generator_makes(
    name: str, tmp_path: Path, keys: dict[str, SigningKey]
) -> None:
    """Bit for bit when unsigned; when signed, all but the 256 bytes of the signature."""
    image = tmp_path / "usr.img"
    image.write_bytes(lzma.decompress((V1 / "images" / f"usr_{name}.img.xz").read_bytes()))
    out = tmp_path / "full.bin"
    if name == "v2":
        pack([Image("usr", image)], out)
        assert out.read_bytes() == (V1 / "payloads" / "full_v2_unsigned.bin").read_bytes()
    pack([Image("usr", image)], out, keys=[keys["update"]])
    theirs = (V1 / "payloads" / f"full_{name}.bin").read_bytes()
    assert out.read_bytes()[:-256] == theirs[:-256] and out.stat().st_size == len(theirs)


@needs_vectors
def test_kernel_payload_differs_from_flatcars_in_the_last_extent_only(
    tmp_path: Path, keys: dict[str, SigningKey]
) -> None:
    """Flatcar's generator says 256 blocks for a short last chunk; ours says how many it has."""
    usr, kernel = tmp_path / "usr", tmp_path / "kernel"
    usr.write_bytes(lzma.decompress((V1 / "images" / "usr_v2.img.xz").read_bytes()))
    kernel.write_bytes(lzma.decompress((V1 / "images" / "vmlinuz_v2.xz").read_bytes()))
    out = tmp_path / "full.bin"
    pack([Image("usr", usr), Image("kernel", kernel)], out, keys=[keys["other"], keys["update"]])
    ours, theirs = (
        path.read_bytes() for path in (out, V1 / "payloads/full_v2_kernel_two_signatures.bin")
    )
    manifests = []
    for raw in (ours, theirs):
        manifest: Any = message(1, "Manifest")
        manifest.ParseFromString(raw[20 : 20 + int.from_bytes(raw[12:20], "big")])
        manifests.append(manifest)
    extent = manifests[0].procedures[0].operations[0].dst_extents[0]
    assert extent.num_blocks == -(-kernel.stat().st_size // 4096)
    extent.num_blocks = 256
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("major", [1, 2])
def test_full_and_delta_payloads_give_their_images(
    major: int,
    release_images: list[Any],
    tmp_path: Path,
    key_files: Path,
    keys: dict[str, SigningKey],
) -> None:
    old, new = release_images[:2]
    full = 0
    for delta in (False, True):
        images = [
            Image("usr", new.usr, old.usr if delta else None),
            Image("kernel", new.kernel, old.kernel if delta else None),
        ]
        packed = pack(images, tmp_path / "p.bin", major=major, keys=[keys["update"]], codecs=None)
        payload = check_applies(packed, images, tmp_path)
        assert payload.delta == packed.delta == delta
        found = verify(payload, public(key_files, "update"))
        assert found.good, found.faults
        assert not verify(payload, public(key_files, "other", "curve", "long")).good
        assert not verify(payload, []).good
        if delta:
            assert packed.size * 4 < full
            wrong = tmp_path / "wrong"
            with pytest.raises(PayloadError, match="hash"):
                apply(payload, {"usr": wrong}, {"usr": release_images[2].usr})
            with pytest.raises(UsageError, match="--old"):
                apply(payload, {"usr": wrong}, {})
        full = full or packed.size
    covered = sorted(
        block
        for operation in payload.parts[0].operations
        for extent in operation.target
        for block in range(extent.start, extent.start + extent.blocks)
    )
    assert len(covered) == len(set(covered))
    if major == 2:
        assert covered == list(range(new.usr.stat().st_size // 4096))
        assert payload.minor == packed.minor == 4
        assert all(
            operation.source_sha256 is not None
            for part in payload.parts
            for operation in part.operations
            if operation.source
        )
    else:
        assert (
            payload.noop_operations
            == sum(operation.offset is not None for operation in payload.parts[1].operations) + 1
        )


@pytest.mark.parametrize("major", [1, 2])
def test_payload_does_not_depend_on_the_number_of_cores(
    major: int, release_images: list[Any], tmp_path: Path, keys: dict[str, SigningKey]
) -> None:
    old, new = release_images[:2]
    made = []
    for workers in (1, 3, 3):
        signers = [keys["curve"], keys["update"]] if major == 2 else [keys["update"]]
        packed = pack(
            [Image("usr", new.usr, old.usr)],
            tmp_path / "p.bin",
            major=major,
            keys=signers,
            workers=workers,
        )
        made.append(packed.sha256)
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    ("names", "size"),
    [(["update"], 267), (["long"], 523), (["curve"], 81), (["update", "long"], 790)],
)
def test_v2_signatures_have_aosps_sizes_and_both_count(
    names: list[str], size: int, tmp_path: Path, key_files: Path, keys: dict[str, SigningKey]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"abc" * 5000)
    packed = pack(
        [Image("root", image)],
        tmp_path / "p.bin",
        major=2,
        max_timestamp=1_700_000_000,
        keys=[keys[name] for name in names],
    )
    payload = check_applies(packed, [Image("root", image)], tmp_path)
    assert (payload.signatures_size, len(payload.metadata_signature)) == (size, size)
    assert (payload.max_timestamp, payload.minor) == (1_700_000_000, 0)
    for name in names:
        found = verify(payload, public(key_files, name))
        assert found.good
        assert found.signed_by == found.metadata_signed_by == (f"{name}.pub.pem",)
    # The one that Omaha carries is over the same metadata.
    metadata = hashlib.sha256(packed.path.read_bytes()[: packed.metadata_size]).digest()
    assert packed.metadata_signature is not None
    assert public(key_files, names[-1])[0].signed(packed.metadata_signature, metadata)


def test_two_keys_in_v1_are_numbered_one_and_two(
    tmp_path: Path, key_files: Path, keys: dict[str, SigningKey]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    packed = pack([Image("usr", image)], tmp_path / "p.bin", keys=[keys["other"], keys["update"]])
    payload = read_payload(packed.path)
    assert [version for version, _ in payload.signatures] == [1, 2]
    assert payload.signatures_size == 528
    assert verify(payload, public(key_files, "update")).good
    assert not verify(payload, public(key_files, "other")).good


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_is_read_back(codec: str, release_images: list[Any], tmp_path: Path) -> None:
    images = [Image("kernel", release_images[0].kernel)]
    packed = pack(images, tmp_path / "p.bin", major=2, codecs=[codec])
    assert packed.operations == {CODECS[codec][0]: 1}
    check_applies(packed, images, tmp_path)


def test_zstd_in_a_delta_raises_the_minor_version(
    release_images: list[Any], tmp_path: Path
) -> None:
    old, new = release_images[:2]
    tiny = tmp_path / "tiny"
    tiny.write_bytes(b"one block\n" * 400)
    less = tmp_path / "less"
    less.write_bytes(b"less than a block")
    for codecs, minor in ((["zstd"], 10), (["bz2"], 3)):
        images = [Image("kernel", tiny, less)]
        packed = pack(images, tmp_path / "p.bin", major=2, codecs=codecs)
        check_applies(packed, images, tmp_path)
        assert packed.minor == minor
    images = [Image("usr", new.usr, old.usr)]
    packed = pack(images, tmp_path / "p.bin", major=2, bsdf2=False)
    assert "BROTLI_BSDIFF" not in packed.operations
    check_applies(packed, images, tmp_path)


@pytest.mark.parametrize("major", [1, 2])
def test_blocks_that_change_places(major: int, tmp_path: Path) -> None:
    """Swaps, rotations and overlaps: in place nothing may be read after it was overwritten."""
    blocks = [hashlib.shake_128(bytes([n // 256, n % 256])).digest(4096) for n in range(1600)]
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"".join(blocks))
    turned = blocks[700:] + [bytes(4096)] * 3 + blocks[5:700] + [blocks[9], b"\x01" * 4096]
    turned[100], turned[1300] = turned[1300], turned[100]
    turned[50] = turned[50][:2000] + b"changed" + turned[50][2007:]
    new.write_bytes(b"".join(turned[:1600]))
    images = [Image("usr", new, old)]
    packed = pack(images, tmp_path / "p.bin", major=major, workers=2)
    check_applies(packed, images, tmp_path)
    if major == 2:
        assert packed.size < 40_000


def test_images_that_grow_and_shrink_and_are_empty(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    body = hashlib.shake_128(b"kernel").digest(50_001)
    for before, after in ((body, body[:30_000]), (body[:30_000], body), (body, b""), (b"", body)):
        old.write_bytes(before)
        new.write_bytes(after)
        images = [Image("kernel", new, old)]
        check_applies(pack(images, tmp_path / "p.bin", major=2), images, tmp_path)


def test_what_pack_refuses(tmp_path: Path, keys: dict[str, SigningKey]) -> None:
    odd, even = tmp_path / "odd", tmp_path / "even"
    odd.write_bytes(b"x" * 5000)
    even.write_bytes(b"x" * 8192)
    out = tmp_path / "p.bin"
    for images, options, said in (
        ([Image("usr", odd)], {}, "multiple"),
        ([Image("usr", even, tmp_path / "none")], {}, "none"),
        ([Image("kernel", even)], {}, "usr"),
        ([], {}, "at least one"),
        ([Image("usr", even)], {"major": 3}, "major"),
        ([Image("usr", even)], {"codecs": ["xz"]}, "codecs"),
        ([Image("usr", even)], {"keys": [keys["curve"]]}, "RSA"),
        ([Image("usr", even, odd)], {}, "same size"),
    ):
        with pytest.raises(UsageError, match=said):
            pack(images, out, **options)
    assert not out.exists() and sorted(tmp_path.iterdir()) == [even, odd]


def test_codecs_are_strict() -> None:
    data = b"hello " * 5000
    for name, (operation, pack_) in CODECS.items():
        blob = pack_(data)
        assert decode(operation, blob, len(data)) == data
        with pytest.raises(PayloadError, match="more than"):
            decode(operation, blob, len(data) - 1)
        if name != "raw":
            for bad in (blob[:-5], blob + b"more", b"", blob[:10] + b"\xff" * 40):
                with pytest.raises(PayloadError):
                    decode(operation, bad, len(data))
    assert smallest(data, list(CODECS))[0] != "REPLACE"
    assert smallest(hashlib.shake_128(b"").digest(4096), list(CODECS))[0] == "REPLACE"
    assert chosen("bz2, raw") == ("raw", "bz2")
    with pytest.raises(UsageError):
        chosen("gzip")


def test_order_is_kept_and_a_failure_is_passed_on() -> None:
    assert list(in_order([partial(pow, n, 2) for n in range(50)], workers=4)) == [
        n * n for n in range(50)
    ]

    def fail() -> int:
        raise MockError("no")

    with pytest.raises(MockError):
        list(in_order([fail] * 9, workers=2))


@pytest.mark.skipif(not patching.available(), reason="neither bsdiff4 nor bsdiff is here")
def test_patches_are_read_by_our_own_and_others_appliers() -> None:
    old = hashlib.shake_128(b"old").digest(60_000)
    new = old[:20_000] + b"inserted" * 9 + old[21_000:] + hashlib.shake_128(b"n").digest(300)
    for bsdf2 in (False, True):
        made = patching.make_patch(old, new, bsdf2=bsdf2)
        assert made is not None
        is_bsdf2, patch = made
        assert bspatch(old, patch, len(new)) == new
        if not is_bsdf2:
            bsdiff4 = pytest.importorskip("bsdiff4")
            assert bsdiff4.patch(old, patch) == new
        for bad in (
            patch[:31],
            patch[:100],
            b"X" + patch[1:],
            patch[:24] + b"\xff" * 8 + patch[32:],
        ):
            with pytest.raises(PayloadError):
                bspatch(old, bad, len(new))
        with pytest.raises(PayloadError):
            bspatch(old, patch, len(new) - 1)


def test_ec_signatures_are_the_same_each_time(keys: dict[str, SigningKey]) -> None:
    digest = hashlib.sha256(b"x").digest()
    assert signatures_message(2, [keys["curve"]], digest) == signatures_message(
        2, [keys["curve"]], digest
    )
    sizes = {
        len(signatures_message(2, [keys["curve"]], hashlib.sha256(bytes([n])).digest()))
        for n in range(40)
    }
    assert sizes == {81}


def test_keys_that_are_none(tmp_path: Path, key_files: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN NOTHING-----\n")
    actions: tuple[Callable[[], object], ...] = (
        lambda: load_signing_key(bad),
        lambda: load_signing_key(tmp_path / "none.pem"),
        lambda: load_signing_key(key_files / "update.pub.pem"),
        lambda: load_verifying_keys([bad]),
        lambda: load_verifying_keys([tmp_path / "none.pem"]),
        lambda: keygen(key_files, name="update"),
        lambda: keygen(tmp_path, kind="rsa1024"),
    )
    for action in actions:
        with pytest.raises(UsageError):
            action()
    assert (key_files / "update.key.pem").stat().st_mode & 0o777 == 0o600
    assert len(load_verifying_keys([key_files])) == 4


def test_metadata_signature_is_base64_of_one_raw_signature(
    tmp_path: Path, key_files: Path, keys: dict[str, SigningKey]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    packed = pack([Image("usr", image)], tmp_path / "p.bin", keys=[keys["update"]])
    assert packed.metadata_signature is not None
    assert len(base64.b64encode(packed.metadata_signature)) == 344
