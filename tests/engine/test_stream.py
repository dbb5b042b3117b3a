"""Whole installations: every recorded payload, every fault, resume."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from bascule.engine import digest, openpgp
from bascule.engine.apply import Applier
from bascule.engine.checkpoint import MAX_RESUMES
from bascule.engine.openpgp import SignedDigests
from bascule.engine.region import Region
from bascule.engine.stream import Announced, Progress
from bascule.errors import (
    BasculeError,
    ManifestError,
    MetadataSignatureMismatch,
    MetadataSignatureMissing,
    MetadataSizeError,
    NoKeys,
    NotEnoughSpace,
    OpenPgpError,
    OperationHashMismatch,
    PackagesMissing,
    PartsMissing,
    PayloadHashMismatch,
    PayloadSizeMismatch,
    SignatureMismatch,
    SignatureMissing,
    SourceMismatch,
    TimestampTooOld,
    TransferError,
    TrustError,
    WouldTouchBootedSlot,
)
from bascule.formats.signature import PublicKey, load_keys
from payload_builder import (
    IMAGE,
    KERNEL_IMAGE,
    OLD_IMAGE,
    draft_v1,
    draft_v2,
    public_pem,
    sign,
)
from payload_mutations import MUTATIONS, Mutation, Stage
from payload_vectors import V1, V1_NAMES, V2_NAMES, Bytes, Case, case, key, needs_vectors
from slot_files import SlotFiles


def slot(folder: Path, what: Case) -> SlotFiles:
    return SlotFiles(folder, old=what.old, new=what.new, files=what.files)


def announced(data: bytes) -> Announced:
    return Announced(len(data), hashlib.sha256(data).digest())


def built_keys(*names: str) -> tuple[PublicKey, ...]:
    return tuple(k for n in names or ("update",) for k in load_keys(public_pem(n), n))


# ── recorded payloads ────────────────────────────────────────────────────────────────────────


@needs_vectors
@pytest.mark.parametrize("name", [*V1_NAMES, *V2_NAMES])
async def test_a_recorded_payload_gives_its_image_bit_for_bit(name: str, tmp_path: Path) -> None:
    what = case(name)
    place = slot(tmp_path, what)
    installed = await place.install(what.data, [key(what.key)], announced=announced(what.data))
    verified = await place.verify(installed)
    assert verified.signed is installed.signed
    assert place.matches()
    assert place.untouched()
    assert installed.stats.fetched == len(what.data)
    assert not list(tmp_path.glob("*.partial"))


@needs_vectors
@pytest.mark.parametrize("name", ["full_v2_kernel_two_signatures.bin", "delta_minor4.bin"])
@pytest.mark.parametrize("chunk", [1000, 4096, 1 << 20])
async def test_the_size_of_the_pieces_does_not_matter(
    name: str, chunk: int, tmp_path: Path
) -> None:
    what = case(name)
    place = slot(tmp_path, what)
    await place.verify(
        await place.install(Bytes(what.data, chunk=chunk), [key(what.key)], workers=3)
    )
    assert place.matches()


@needs_vectors
async def test_the_same_payload_again_writes_nothing(tmp_path: Path) -> None:
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    first = await place.install(what.data, [key(what.key)])
    again = await place.install(what.data, [key(what.key)], workers=1)
    assert first.stats.written > 0
    assert again.stats.written == 0
    assert again.stats.skipped == len(what.new["usr"])


@needs_vectors
async def test_a_delta_onto_the_old_image_writes_only_what_changed(tmp_path: Path) -> None:
    what = case("delta_v1_v2.bin")
    place = slot(tmp_path, what)
    old, new = what.old["usr"], what.new["usr"]
    place.targets["usr"].path.write_bytes(old)
    installed = await place.install(what.data, [key(what.key)])
    await place.verify(installed)
    changed = sum(
        4096 for at in range(0, len(new), 4096) if old[at : at + 4096] != new[at : at + 4096]
    )
    # Temporary blocks may be written and written over; nothing else.
    assert changed <= installed.stats.written <= changed + (256 << 10)


@needs_vectors
async def test_an_unsigned_payload_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    for name in ("full_v2_unsigned.bin", "full_unsigned.bin"):
        what = case(name)
        place = slot(tmp_path / name, what)
        with pytest.raises(SignatureMissing):
            await place.install(what.data, [key(what.key)])
        for region in place.targets.values():
            assert set(region.path.read_bytes()) == {0xEE}


@needs_vectors
async def test_a_payload_of_another_key_is_refused_and_its_slot_unproven(tmp_path: Path) -> None:
    what = case("full_v2_wrong_key.bin")
    place = slot(tmp_path, what)
    with pytest.raises(SignatureMismatch) as caught:
        await place.install(what.data, [key(V1 / "keys" / "update.pub.pem")])
    assert caught.value.number == 18
    assert place.store.load("") is None


@needs_vectors
async def test_no_keys_is_no_trust(tmp_path: Path) -> None:
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    with pytest.raises(NoKeys):
        await place.install(what.data, [])
    assert set(place.targets["usr"].path.read_bytes()) == {0xEE}


# ── damage ───────────────────────────────────────────────────────────────────────────────────


@needs_vectors
@pytest.mark.parametrize("name", ["full_v2_kernel_two_signatures.bin", "delta_minor4.bin"])
async def test_a_payload_cut_short_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    what = case(name)
    place = slot(tmp_path, what)
    rng = random.Random(1)
    size = len(what.data)
    metadata = 20 + int.from_bytes(what.data[12:20], "big")
    cuts = {0, 1, 3, 4, 11, 19, 20, 23, 24, metadata - 1, metadata, metadata + 1, size - 1}
    cuts |= {size - 300, size // 2, *(rng.randrange(size) for _ in range(8))}
    for cut in sorted(cuts):
        with pytest.raises(PayloadSizeMismatch):
            await place.install(Bytes(what.data, cut=cut), [key(what.key)])


@needs_vectors
@pytest.mark.parametrize(
    "name", ["full_v2_kernel_two_signatures.bin", "full_signed_unittest_key.bin"]
)
@pytest.mark.parametrize("told", [True, False])
async def test_any_turned_bit_is_refused(name: str, told: bool, tmp_path: Path) -> None:
    what = case(name)
    rng = random.Random(7)
    size = len(what.data)
    spots = [rng.randrange(size) for _ in range(12)]
    spots += [rng.randrange(24, 200), size - 1, size - 40, 5, 15]
    for at in spots:
        data = bytearray(what.data)
        data[at] ^= 1 << rng.randrange(8)
        place = slot(tmp_path, what)
        told_of = announced(what.data) if told else None
        with pytest.raises(BasculeError):
            place_of = await place.install(bytes(data), [key(what.key)], announced=told_of)
            # Two signatures: a bit in the one that is not looked at changes nothing that counts.
            if not told:
                await place.verify(place_of)
                assert place.matches()
                raise TrustError("harmless")


@needs_vectors
async def test_the_manifest_of_one_with_the_data_of_another_is_refused(tmp_path: Path) -> None:
    one, other = case("full_v1.bin"), case("full_v2.bin")
    cut = 20 + int.from_bytes(one.data[12:20], "big")
    cut_other = 20 + int.from_bytes(other.data[12:20], "big")
    place = slot(tmp_path, one)
    for data in (one.data[:cut] + other.data[cut_other:], other.data[:cut_other] + one.data[cut:]):
        with pytest.raises(OperationHashMismatch):
            await place.install(data, [key(one.key)])
    a, b = case("full_signed_unittest_key.bin"), case("full_signed_unittest_key_EC.bin")
    size = 24 + int.from_bytes(a.data[12:20], "big") + int.from_bytes(a.data[20:24], "big")
    size_b = 24 + int.from_bytes(b.data[12:20], "big") + int.from_bytes(b.data[20:24], "big")
    place = slot(tmp_path / "v2", a)
    with pytest.raises(BasculeError) as caught:
        await place.install(a.data[:size] + b.data[size_b:], [key(a.key), key(b.key)])
    assert caught.value.number in (11, 18)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
async def test_a_mutated_payload_gets_its_number(mutation: Mutation, tmp_path: Path) -> None:
    data = mutation.build()
    draft = mutation.draft()
    if draft.major == 1:
        new = {"usr": IMAGE, "kernel": KERNEL_IMAGE}
        old = {"usr": bytes(len(IMAGE)), "kernel": bytes(len(KERNEL_IMAGE))}
    else:
        new, old = {"system": IMAGE}, {"system": OLD_IMAGE}
    place = SlotFiles(tmp_path, old=old, new=new, files=frozenset({"kernel"}))

    async def both() -> None:
        told = Announced(len(data), None)
        await place.verify(await place.install(data, built_keys(), announced=told))

    if mutation.number is None:
        await both()
        assert place.matches()
        return
    with pytest.raises(BasculeError) as caught:
        await both()
    assert caught.value.number == mutation.number, caught.value
    if mutation.stage is Stage.METADATA:
        first = next(iter(place.targets.values()))
        assert set(first.path.read_bytes()) == {0xEE}
    assert place.untouched()


# ── what was announced ───────────────────────────────────────────────────────────────────────


async def test_another_size_or_digest_than_announced_is_refused(tmp_path: Path) -> None:
    data = draft_v1().build()
    place = SlotFiles(
        tmp_path, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE}, files=frozenset({"kernel"})
    )
    keys = built_keys()
    good = hashlib.sha256(data).digest()
    for wrong, error in (
        (Announced(len(data) + 1, good), PayloadSizeMismatch),
        (Announced(len(data) - 1, good), PayloadSizeMismatch),
        (Announced(len(data), bytes(32)), PayloadHashMismatch),
        (Announced(len(data), good, metadata_size=5), MetadataSizeError),
    ):
        with pytest.raises(error):
            await place.install(data, keys, announced=wrong)
        assert not place.targets["kernel"].path.exists()
    assert (await place.install(data, keys, announced=Announced(len(data), good))).signed


async def test_announced_metadata_signatures_are_checked_before_anything_is_written(
    tmp_path: Path,
) -> None:
    data = draft_v1(kernel=False).build()
    size = 20 + int.from_bytes(data[12:20], "big")
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    keys = built_keys()
    good = sign("update", hashlib.sha256(data[:size]).digest())
    whole = hashlib.sha256(data).digest()
    both = frozenset({"rsa", "signed-metadata"})
    for bad in (sign("other", hashlib.sha256(data[:size]).digest()), good[:-1], b"x"):
        with pytest.raises(MetadataSignatureMismatch):
            await place.install(
                data, keys, announced=Announced(len(data), whole, size, bad), require=both
            )
    with pytest.raises(MetadataSignatureMissing):
        await place.install(data, keys, announced=announced(data), require=both)
    assert set(place.targets["usr"].path.read_bytes()) == {0xEE}
    told = Announced(len(data), whole, size, good)
    assert base64.b64encode(good)
    installed = await place.install(data, keys, announced=told, require=both)
    assert installed.signed.proofs == both
    only = frozenset({"signed-metadata"})
    assert (await place.install(data, keys, announced=told, require=only)).signed.proofs >= only


async def test_required_proofs_are_required(tmp_path: Path) -> None:
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    data = draft_v1(kernel=False).build()
    for nonsense in (frozenset(), frozenset({"md5"})):
        with pytest.raises(TrustError):
            await place.install(data, built_keys(), require=nonsense)
    with pytest.raises(OpenPgpError):
        await place.install(data, built_keys(), require=frozenset({"rsa", "openpgp"}))
    any_of = frozenset({"rsa", "openpgp", "signed-metadata"})
    assert (await place.install(data, built_keys(), require=any_of, any_of=True)).signed


def digests(data: bytes, *kinds: str) -> SignedDigests:
    found = {kind: hashlib.new(kind, data).digest() for kind in kinds}
    return SignedDigests("update.gz", found, frozenset({"AA"}), maker=openpgp._MAKER)


@pytest.mark.parametrize("kinds", [("sha256",), ("sha512",), ("sha256", "sha512")])
@pytest.mark.parametrize("major", [1, 2])
async def test_a_signed_digest_list_proves_a_payload(
    kinds: tuple[str, ...], major: int, tmp_path: Path
) -> None:
    draft = draft_v1(kernel=False) if major == 1 else draft_v2()
    draft.signatures = b""
    draft.metadata_signers = ()
    data = draft.build()
    name = "usr" if major == 1 else "system"
    place = SlotFiles(tmp_path, old={}, new={name: IMAGE})
    only = frozenset({"openpgp"})
    for listed, error in (
        (None, OpenPgpError),
        (digests(data + b"x", *kinds), OpenPgpError),
        (digests(b"", *kinds), OpenPgpError),
    ):
        with pytest.raises(error):
            await place.install(data, (), require=only, listed=listed)
    # An unsigned payload without a key on the host: the list is the proof.
    done = await place.install(data, (), require=only, listed=digests(data, *kinds))
    assert done.signed.proofs == only
    await place.verify(done)
    with pytest.raises((SignatureMissing, NoKeys)):
        await place.install(
            data, built_keys(), require=only | {"rsa"}, listed=digests(data, *kinds)
        )


async def test_a_list_in_sha512_alone_is_resumed_too(tmp_path: Path) -> None:
    data = draft_v1(kernel=False).build()
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    both = frozenset({"rsa", "openpgp"})
    listed = digests(data, "sha512")
    told = announced(data)
    with pytest.raises(TransferError):
        await place.install(
            Bytes(data, cut=len(data) - 400, error=TransferError("gone")),
            built_keys(),
            announced=told,
            require=both,
            listed=listed,
        )
    done = await place.install(data, built_keys(), announced=told, require=both, listed=listed)
    assert done.resumed
    assert done.signed.proofs == both


async def test_unsigned_metadata_of_major_2_is_refused_where_it_is_required(
    tmp_path: Path,
) -> None:
    draft = draft_v2()
    draft.metadata_signers = ()
    place = SlotFiles(tmp_path, old={}, new={"system": IMAGE})
    data = draft.build()
    with pytest.raises(MetadataSignatureMissing):
        await place.install(data, built_keys(), require=frozenset({"signed-metadata"}))
    assert set(place.targets["system"].path.read_bytes()) == {0xEE}
    assert (await place.install(data, built_keys())).signed.proofs == {"rsa"}


async def test_an_old_build_is_refused(tmp_path: Path) -> None:
    draft = draft_v2()
    draft.manifest.max_timestamp = 1000
    place = SlotFiles(tmp_path, old={}, new={"system": IMAGE})
    with pytest.raises(TimestampTooOld):
        await place.install(draft.build(), built_keys(), not_before=1001)
    assert (await place.install(draft.build(), built_keys(), not_before=1000)).signed


# ── before the first byte ────────────────────────────────────────────────────────────────────


async def test_everything_that_is_too_small_is_named_with_figures(tmp_path: Path) -> None:
    data = draft_v1().build()
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE})
    for name in ("usr", "kernel"):
        place.targets[name].path.write_bytes(b"x" * 4096)
    with pytest.raises(NotEnoughSpace) as caught:
        await place.install(data, built_keys())
    for figure in ("usr", str(len(IMAGE)), "kernel", str(len(KERNEL_IMAGE)), "4096"):
        assert figure in str(caught.value)
    assert place.targets["usr"].path.read_bytes() == b"x" * 4096


async def test_every_shortfall_is_in_one_message_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partition, /boot, state and packages at once; of the payload only the metadata are read."""

    class Full:
        f_bavail, f_frsize = 1, 4096

    data = draft_v1().build()
    place = SlotFiles(
        tmp_path, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE}, files=frozenset({"kernel"})
    )
    place.targets["usr"].path.write_bytes(b"x" * 4096)
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    source = Bytes(data, chunk=64)
    with pytest.raises(NotEnoughSpace) as caught:
        await place.install(
            source, built_keys(), announced=announced(data), lacking=["oem-qemu.gz"]
        )
    text = str(caught.value)
    record = 20 + int.from_bytes(data[12:20], "big") + (64 << 10)
    for figure in (
        f"usr: {place.targets['usr'].path} has 4096 bytes of {len(IMAGE)} needed",
        f"kernel (8192), the resume record ({record})",
        f"lacks {8192 + record - 4096} bytes of {8192 + record}, 4096 are free",
        "no package oem-qemu.gz",
    ):
        assert figure in text, text
    assert source.fetched <= record - (64 << 10) + 64
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert place.targets["usr"].path.read_bytes() == b"x" * 4096


async def test_an_offer_without_a_needed_package_is_refused_unread(tmp_path: Path) -> None:
    data = draft_v1(kernel=False).build()
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    source = Bytes(data, chunk=64)
    with pytest.raises(PackagesMissing, match=r"oem-a\.gz; the offer has no package oem-b\.gz"):
        await place.install(source, built_keys(), lacking=["oem-a.gz", "oem-b.gz"])
    assert source.fetched < 20 + int.from_bytes(data[12:20], "big") + 64
    assert set(place.targets["usr"].path.read_bytes()) == {0xEE}


async def test_a_carried_kernel_needs_its_room_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied at the end; that /boot is short must be known at the beginning."""

    class Full:
        f_bavail, f_frsize = 0, 4096

    data = draft_v1(kernel=False).build()
    place = SlotFiles(
        tmp_path,
        old={"usr": OLD_IMAGE, "kernel": b"k" * 5000},
        new={"usr": IMAGE, "kernel": b"k" * 5000},
        files=frozenset({"kernel"}),
    )
    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(NotEnoughSpace, match=r"kernel \(8192\)"):
        await place.install(data, built_keys(), resumable=False)
    assert set(place.targets["usr"].path.read_bytes()) == {0xEE}


async def test_a_part_without_a_target_is_refused(tmp_path: Path) -> None:
    data = draft_v1().build()
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    with pytest.raises(PartsMissing, match="kernel"):
        await place.install(data, built_keys())


async def test_a_kernel_that_the_payload_does_not_name_is_the_booted_one(tmp_path: Path) -> None:
    data = draft_v1(kernel=False).build()
    place = SlotFiles(
        tmp_path,
        old={"usr": OLD_IMAGE, "kernel": b"old kernel"},
        new={"usr": IMAGE, "kernel": b"old kernel"},
        files=frozenset({"kernel"}),
    )
    installed = await place.install(data, built_keys())
    await place.verify(installed)
    assert place.matches()
    assert installed.carried["kernel"].size == 10


def _changed(image: bytes, at: int) -> bytes:
    return image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]


@pytest.mark.parametrize("by_operation", [True, False])
async def test_a_delta_onto_another_source_fetches_no_data(
    tmp_path: Path, by_operation: bool
) -> None:
    draft = draft_v2(delta=True)
    if not by_operation:
        draft.manifest.partitions[0].operations[0].ClearField("src_sha256_hash")
        draft.settle()
    data = draft.build()
    wrong = _changed(OLD_IMAGE, 7 * 4096 + 5)
    place = SlotFiles(tmp_path, old={"system": wrong}, new={"system": IMAGE})
    source = Bytes(data, chunk=512)
    with pytest.raises(SourceMismatch, match="operation 1 " if by_operation else "starts from"):
        await place.install(source, built_keys())
    metadata = 24 + int.from_bytes(data[12:20], "big") + int.from_bytes(data[20:24], "big")
    assert source.fetched <= metadata + 512
    assert set(place.targets["system"].path.read_bytes()) == {0xEE}
    place.sources["system"].path.write_bytes(OLD_IMAGE[:-4096])
    with pytest.raises(SourceMismatch):
        await place.install(data, built_keys())
    place.sources.clear()
    with pytest.raises(SourceMismatch):
        await place.install(data, built_keys())


async def test_what_no_operation_reads_need_not_be_as_it_was(tmp_path: Path) -> None:
    """The hashes of operations decide where all have one; else that of the whole part does."""
    old = {"system": _changed(OLD_IMAGE, 9 * 4096)}
    place = SlotFiles(tmp_path, old=old, new={"system": IMAGE})
    draft = draft_v2(delta=True)
    await place.verify(await place.install(draft.build(), built_keys()))
    assert place.matches()
    draft.manifest.partitions[0].operations[0].ClearField("src_sha256_hash")
    draft.settle()
    with pytest.raises(SourceMismatch, match="starts from"):
        await place.install(draft.build(), built_keys())


async def test_the_booted_slot_is_no_target(tmp_path: Path) -> None:
    data = draft_v2(delta=True).build()
    place = SlotFiles(tmp_path, old={"system": OLD_IMAGE}, new={"system": IMAGE})
    place.targets["system"] = Region(place.sources["system"].path)
    with pytest.raises(WouldTouchBootedSlot):
        await place.install(data, built_keys())
    assert place.untouched()


# ── resume ───────────────────────────────────────────────────────────────────────────────────


@needs_vectors
@pytest.mark.parametrize(
    "name", ["full_v2_kernel_two_signatures.bin", "delta_v1_v2_kernel.bin", "delta_minor4.bin"]
)
async def test_a_broken_transfer_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    what = case(name)
    place = slot(tmp_path, what)
    told = announced(what.data)
    cut = len(what.data) * 2 // 3
    first = Bytes(what.data, chunk=4096, cut=cut, error=TransferError("gone"))
    with pytest.raises(TransferError):
        await place.install(first, [key(what.key)], announced=told)
    second = Bytes(what.data, chunk=4096)
    installed = await place.install(second, [key(what.key)], announced=told)
    await place.verify(installed)
    assert place.matches()
    assert installed.resumed
    largest = max(op.data_length for op in installed.signed.manifest.operations)
    assert second.asked[0] > 0
    # Nothing that was carried out is fetched again: at most the blob that was cut.
    assert first.fetched + second.fetched <= len(what.data) + largest + 4096


@needs_vectors
async def test_a_stop_keeps_what_was_done(tmp_path: Path) -> None:
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    told = announced(what.data)
    reached = asyncio.Event()

    class Slow(Bytes):
        async def stream(self, offset: int):  # type: ignore[no-untyped-def]
            async for piece in super().stream(offset):
                if self.fetched > len(self.data) // 2:
                    reached.set()
                    await asyncio.sleep(3600)
                yield piece

    task = asyncio.create_task(
        place.install(Slow(what.data, chunk=8192), [key(what.key)], announced=told)
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    second = Bytes(what.data)
    installed = await place.install(second, [key(what.key)], announced=told)
    await place.verify(installed)
    assert installed.resumed
    assert second.asked[0] > len(what.data) // 4


@needs_vectors
async def test_without_the_hash_of_the_beginning_it_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    told = announced(what.data)
    with pytest.raises(TransferError):
        await place.install(
            Bytes(what.data, cut=1_000_000, error=TransferError("gone")),
            [key(what.key)],
            announced=told,
        )
    monkeypatch.setattr(digest, "_library", lambda: None)
    second = Bytes(what.data)
    installed = await place.install(second, [key(what.key)], announced=told)
    assert second.asked == [0]
    assert not installed.resumed
    assert installed.stats.skipped > 0


@needs_vectors
async def test_a_resumed_payload_is_still_proven_whole(tmp_path: Path) -> None:
    """Genuine remaining data behind another beginning: reference 1.8, point 12."""
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    told = announced(what.data)
    wrong = case("full_v2_wrong_key.bin")
    cut = 1_000_000
    assert wrong.data[20:cut] == what.data[20:cut] or True
    with pytest.raises(TransferError):
        await place.install(
            Bytes(what.data, cut=cut, error=TransferError("gone")), [key(what.key)], announced=told
        )
    spliced = what.data[:-300] + wrong.data[-300:]
    with pytest.raises((PayloadHashMismatch, SignatureMismatch)):
        await place.install(spliced, [key(what.key)], announced=told)
    # The record is gone: the good payload starts over, and is taken.
    again = Bytes(what.data)
    assert (await place.install(again, [key(what.key)], announced=told)).signed
    assert again.asked == [0]


async def test_a_manifest_that_differs_from_the_first_is_refused_once(tmp_path: Path) -> None:
    first, second = draft_v2(), draft_v2()
    second.manifest.max_timestamp = 1
    place = SlotFiles(tmp_path, old={}, new={"system": IMAGE})
    told = Announced(None, bytes(32))
    with pytest.raises(TransferError):
        await place.install(
            Bytes(first.build(), cut=2000, error=TransferError("gone")),
            built_keys(),
            announced=told,
        )
    with pytest.raises(ManifestError, match="at first"):
        await place.install(second.build(), built_keys(), announced=told)
    with pytest.raises(PayloadHashMismatch):
        await place.install(second.build(), built_keys(), announced=told)


async def test_resumes_without_progress_come_to_an_end(tmp_path: Path) -> None:
    data = draft_v1(kernel=False).build()
    place = SlotFiles(tmp_path, old={}, new={"usr": IMAGE})
    told = announced(data)
    # The first operation's 16 KiB, and no more, ever.
    cut = 20 + int.from_bytes(data[12:20], "big") + 4 * 4096 + 10
    starts = []
    for _ in range(MAX_RESUMES + 4):
        source = Bytes(data, chunk=4096, cut=cut, error=TransferError("gone"))
        with pytest.raises(TransferError):
            await place.install(source, built_keys(), announced=told, interval=1)
        starts.append(source.asked[0])
    assert starts[0] == 0
    assert starts[1] > 0
    assert 0 in starts[2:]
    assert starts.index(0, 1) <= MAX_RESUMES + 2


async def test_after_the_last_byte_nothing_is_fetched_again(tmp_path: Path) -> None:
    draft = draft_v1()
    data = draft.build()
    place = SlotFiles(
        tmp_path, old={}, new={"usr": IMAGE, "kernel": KERNEL_IMAGE}, files=frozenset({"kernel"})
    )
    told = announced(data)
    assert (await place.install(data, built_keys(), announced=told)).signed
    assert place.targets["kernel"].path.exists()
    again = Bytes(data)
    installed = await place.install(again, built_keys(), announced=told)
    await place.verify(installed)
    assert installed.resumed
    assert again.asked == [len(data) - installed.signed.manifest.signatures_size]  # type: ignore[operator]
    assert place.matches()


# ── what is counted ──────────────────────────────────────────────────────────────────────────


@needs_vectors
async def test_memory_flushes_and_progress_are_bounded_and_told(tmp_path: Path) -> None:
    what = case("full_v2.bin")
    place = slot(tmp_path, what)
    told: list[Progress] = []
    installed = await place.install(
        Bytes(what.data, chunk=1 << 20),
        [key(what.key)],
        announced=announced(what.data),
        observer=told.append,
        budget=2 << 20,
        interval=2 << 20,
        clock=lambda: 0.0,
    )
    stats = installed.stats
    largest = max(op.data_length for op in installed.signed.manifest.operations)
    assert stats.peak <= (2 << 20) + 2 * (largest + (1 << 20)) + (4 << 20)
    # 8 MiB of target, one checkpoint every 2 MiB at most, one at the end.
    assert 1 <= stats.checkpoints <= 6
    assert stats.flushes <= stats.checkpoints
    assert stats.written + stats.skipped == len(what.new["usr"])
    assert [p.bytes_done for p in told] == sorted(p.bytes_done for p in told)
    assert told[-1].bytes_done == told[-1].bytes_total == len(what.data)


async def test_no_disk_runs_away_from_a_record_that_is_slow_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses what is not recorded: two intervals and what is in flight, however slow it is."""
    blocks, interval, budget = 16, 4 * 65536, 2 * 65536
    draft = draft_v1(kernel=False)
    image = random.Random(1).randbytes(64 * blocks * 4096)
    del draft.manifest.partition_operations[:]
    draft.operations, draft.blobs = [], []
    for number in range(64):
        operation = draft.manifest.partition_operations.add(type=0)
        operation.dst_extents.add(start_block=number * blocks, num_blocks=blocks)
        draft.operations.append(operation)
        draft.blobs.append(image[number * blocks * 4096 : (number + 1) * blocks * 4096])
    draft.settle()
    info = draft.manifest.new_partition_info
    info.size, info.hash = len(image), hashlib.sha256(image).digest()
    data = draft.build()

    unrecorded: list[int] = []
    sync = Applier._sync

    def slow(self: Applier, prefix: int) -> None:
        """A disk that takes until nothing moves any more."""
        recorded, seen, still = self.durable, -1, 0
        while still < 3:
            done = self.prefix + len(self._done)
            still = still + 1 if done == seen else 0
            seen = done
            time.sleep(0.005)
        unrecorded.append(seen - recorded)
        sync(self, prefix)

    monkeypatch.setattr(Applier, "_sync", slow)
    place = SlotFiles(tmp_path, old={}, new={"usr": image})
    installed = await place.install(
        Bytes(data, chunk=65536),
        built_keys(),
        announced=announced(data),
        interval=interval,
        budget=budget,
    )
    await place.verify(installed)
    assert len(unrecorded) >= 5
    # In operations of 64 KiB: two intervals, the budget, one behind each of them.
    assert max(unrecorded) <= 4 + 4 + 2 + 3
