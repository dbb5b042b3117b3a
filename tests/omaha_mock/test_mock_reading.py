"""The mock's reader against payloads that Flatcar's and AOSP's own programs made."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from pathlib import Path

import pytest

from omaha_mock.applying import apply
from omaha_mock.errors import PayloadError
from omaha_mock.reading import read_payload, verify
from omaha_mock.signing import load_verifying_keys

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
V1, V2 = VECTORS / "flatcar_v1", VECTORS / "aosp_v2"
pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason="the shared vectors are not here")

V1_INDEX = json.loads((V1 / "index.json").read_text()) if V1.is_dir() else {"payloads": {}}
V2_IMAGES = {"system": "ext", "squash": "sq", "erofs": "er", "boot": "raw"}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    for packed in [*V1.glob("images/*.xz"), *V2.glob("images/*.xz")]:
        (directory / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return directory


@pytest.mark.parametrize("name", sorted(V1_INDEX["payloads"]))
def test_flatcar_payload_is_read_and_gives_its_image(
    name: str, images: Path, tmp_path: Path
) -> None:
    facts = V1_INDEX["payloads"][name]
    payload = read_payload(V1 / "payloads" / name)
    assert (payload.size, payload.metadata_size) == (facts["size"], facts["metadata_size"])
    update = load_verifying_keys([V1 / "keys" / "update.pub.pem"])
    found = verify(payload, update)
    assert base64.b64encode(found.sha256).decode() == facts["sha256_base64"]
    assert found.good == ("update" in (facts["signed_by"] or "")), found.faults
    other = verify(payload, load_verifying_keys([V1 / "keys" / "other.pub.pem"]))
    assert other.good == (facts["signed_by"] == "other")

    usr = payload.parts[0]
    counted = {kind: sum(op.name == kind for op in usr.operations) for kind in facts["operations"]}
    assert counted == facts["operations"]
    names = [part for part in ("usr", "kernel") if part in facts]
    assert [part.name for part in payload.parts] == names
    out = {part: tmp_path / part for part in names}
    old = {part: images / facts[part]["old"] for part in names if facts[part].get("old")}
    apply(payload, out, old)
    for part in names:
        assert out[part].read_bytes() == (images / facts[part]["new"]).read_bytes()


@pytest.mark.parametrize("path", sorted(V2.glob("payloads/*.bin")), ids=lambda path: path.stem)
def test_aosp_payload_is_read_and_gives_its_images(
    path: Path, images: Path, tmp_path: Path
) -> None:
    facts = dict(
        line.split("=", 1)
        for line in path.with_name(path.name + ".properties").read_text().splitlines()
    )
    payload = read_payload(path)
    assert (payload.size, payload.metadata_size) == (
        int(facts["FILE_SIZE"]),
        int(facts["METADATA_SIZE"]),
    )
    with path.open("rb") as file:
        metadata = hashlib.sha256(file.read(payload.metadata_size)).digest()
    assert base64.b64encode(metadata).decode() == facts["METADATA_HASH"]
    keys = load_verifying_keys(sorted((V2 / "keys").glob("*.pem")))
    found = verify(payload, keys)
    assert base64.b64encode(found.sha256).decode() == facts["FILE_HASH"]
    key = "unittest_key_EC.pub.pem" if path.stem.endswith("_EC") else "unittest_key.pub.pem"
    signed = () if path.stem == "full_unsigned" else (key,)
    assert (found.signed_by, found.metadata_signed_by) == (signed, signed)
    assert found.good == bool(signed)

    out = {name: tmp_path / name for name in V2_IMAGES}
    old = {name: images / f"{stem}_old.img" for name, stem in V2_IMAGES.items()}
    apply(payload, out, old if payload.delta else {})
    for name, stem in V2_IMAGES.items():
        assert out[name].read_bytes() == (images / f"{stem}_new.img").read_bytes()


@pytest.mark.parametrize("cut", [0, 3, 19, 20, 300, 5000, -264, -1])
def test_cut_payload_is_refused(cut: int, tmp_path: Path) -> None:
    whole = (V1 / "payloads" / "delta_v1_v2.bin").read_bytes()
    path = tmp_path / "cut.bin"
    path.write_bytes(whole[:cut])
    with pytest.raises(PayloadError):
        read_payload(path)


def test_flipped_bit_is_seen(tmp_path: Path) -> None:
    whole = bytearray((V1 / "payloads" / "delta_v1_v2.bin").read_bytes())
    whole[50_000] ^= 1
    path = tmp_path / "flipped.bin"
    path.write_bytes(whole)
    found = verify(read_payload(path), load_verifying_keys([V1 / "keys"]))
    assert len(found.faults) == 2 and not found.good
