"""Responses: the samples of reference 2.4–2.5 and 2.7, and hostile ones."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import (
    BasculeError,
    DeferredByServer,
    ResponseEmpty,
    ResponseInvalid,
    ResponseNotXml,
    ServerError,
    ServerRefused,
)
from bascule.formats.omaha import REFUSALS, Offer, parse_response, server_words

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "omaha"
DIGEST = hashlib.sha256(b"payload").digest()
B64 = base64.b64encode(DIGEST).decode()


def answer(
    *,
    status: str | None = "ok",
    app_status: str = "ok",
    poll: str | None = None,
    codebases: tuple[str, ...] = ("http://update.example/packages/",),
    packages: str | None = None,
    name: str = "update.gz",
    size: str = "4096",
    action: str | None = None,
    sha256: str = B64,
    extra: str = "",
    version: str = "3602.1.5",
    manifest: bool = True,
) -> bytes:
    """An update response, every part of which can be made wrong."""
    attributes = "".join(
        f' {k}="{v}"' for k, v in (("status", status), ("PollInterval", poll)) if v is not None
    )
    urls = "".join(f'<url codebase="{c}"></url>' for c in codebases)
    if packages is None:
        packages = f'<package name="{name}" hash="x" size="{size}" required="true"></package>'
    if action is None:
        action = f'<action event="postinstall" sha256="{sha256}"{extra}></action>'
    body = (
        f'<manifest version="{version}"><packages>{packages}</packages>'
        f"<actions>{action}</actions></manifest>"
        if manifest
        else ""
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<response protocol="3.0" server="test">'
        f'<daystart elapsed_seconds="0"></daystart><app appid="x" status="{app_status}">'
        f'<ping status="ok"></ping><updatecheck{attributes}><urls>{urls}</urls>{body}</updatecheck>'
        "</app></response>"
    ).encode()


def offer(body: bytes) -> Offer:
    found = parse_response(body).offer
    assert found is not None
    return found


# ── the recorded and the documented ones ─────────────────────────────────────────────────────


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no ../shared/vectors/omaha")
def test_recorded_answers() -> None:
    seen = []
    for path in sorted(VECTORS.glob("*/*check*.txt")):
        body = path.read_text().partition("--- response 200 ---\n")[2].encode()
        response = parse_response(body)
        assert response.server == "oracle"
        seen.append(response)
    offers = [r.offer for r in seen if r.offer is not None]
    assert len(offers) >= 4
    first = next(o for o in offers if o.size == 44404529)
    assert first.version == "3602.1.5"
    assert first.urls == ("http://127.0.0.1:8089/payload/full_mini_v2.signed.gz",)
    assert first.sha256 == base64.b64decode("4E4I9eHEs+n05Vuhj9cfxGfD5rHYZo+TOoBqCJcTTp8=")
    assert first.disable_backoff and not first.is_delta and first.max_failures == 10
    assert [r.poll_interval for r in seen if r.poll_interval] == [120]


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no ../shared/vectors/omaha")
def test_recorded_answers_to_events_and_pings_hold_no_update_check() -> None:
    for path in [*VECTORS.glob("*/*event13*.txt"), *VECTORS.glob("sched_ping/*_ping.txt")]:
        body = path.read_text().partition("--- response 200 ---\n")[2].encode()
        with pytest.raises(ResponseInvalid):
            parse_response(body)


def test_the_answer_of_flatcar_update() -> None:
    body = (
        '<response protocol="3.0" server="flatcar-update"><daystart elapsed_seconds="0"></daystart>\n'
        '<app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok"><ping status="ok"></ping>\n'
        '<updatecheck status="ok"><urls><url codebase="http://localhost:9091/"></url>'
        '<url codebase="http://second.example/dir"></url></urls>\n'
        '<manifest version="3510.2.0"><packages>'
        '<package name="flatcar_production_update.gz" hash="x" size="10" required="true"></package>'
        f'<package name="oem-qemu.gz" size="3" hash_sha256="{DIGEST.hex()}" required="false"></package>'
        '<package name="flatcar-zfs.gz" size="" required="true"></package>'
        "</packages>\n<actions>"
        '<action event="update" sha256="zzz"></action>'
        f'<action event="postinstall" sha256="{B64}" DisablePayloadBackoff="true"></action>'
        "</actions></manifest>\n"
        '</updatecheck><event status="ok"></event></app></response>\n'
    )
    found = offer(body.encode())
    assert found.urls == (
        "http://localhost:9091/flatcar_production_update.gz",
        "http://second.example/dir/flatcar_production_update.gz",
    )
    assert [(p.name, p.size, p.sha256, p.required) for p in found.packages] == [
        ("oem-qemu.gz", 3, DIGEST, False),
        ("flatcar-zfs.gz", 0, None, True),
    ]


def test_a_chromeos_flavoured_answer_with_placeholders() -> None:
    found = offer(
        answer(
            version="",
            extra=' ChromeOSVersion="9999.0.0" needsadmin="false" IsDelta="true"'
            ' IsDeltaPayload="true" MetadataSignatureRsa="ixi6Oebo" MetadataSize="190"'
            ' deadline="now" MaxFailureCountPerUrl="3" MoreInfo="https://example" Prompt="true"',
        )
    )
    assert found.is_delta and found.max_failures == 3 and found.version == ""
    assert found.metadata_size is None and found.metadata_signature is None
    assert found.attributes["MetadataSize"] == "190"
    assert found.attributes["deadline"] == "now"


def test_metadata_signature() -> None:
    signature = bytes(range(256))
    text = base64.b64encode(signature).decode()
    found = offer(answer(extra=f' MetadataSize="11769" MetadataSignatureRsa="{text}"'))
    assert (found.metadata_size, found.metadata_signature) == (11769, signature)
    assert offer(answer(extra=f' MetadataSignatureRsa="{text}"')).metadata_signature is None
    assert offer(answer(extra=' MetadataSize="5" MetadataSignatureRsa="%"')).metadata_size is None


def test_the_first_manifest_package_and_action_count() -> None:
    body = answer(packages='<package name="a.gz" size="1"/><package name="b.gz" size="2"/>')
    body = body.replace(b"</manifest>", b"</manifest><manifest version='9'><packages/></manifest>")
    found = offer(body)
    assert (found.name, found.size, found.version) == ("a.gz", 1, "3602.1.5")


def test_noupdate() -> None:
    response = parse_response(answer(status="noupdate", poll="7200"))
    assert response.offer is None and response.poll_interval == 7200


@pytest.mark.parametrize("poll", ["", "0", "-5", "soon", "1e3", "٣", "9" * 40])
def test_a_senseless_poll_interval_is_no_wish(poll: str) -> None:
    assert parse_response(answer(status="noupdate", poll=poll)).poll_interval is None


@pytest.mark.parametrize(
    ("attribute", "field", "value"),
    [
        ('IsDeltaPayload="True"', "is_delta", False),
        ('IsDeltaPayload="1"', "is_delta", False),
        ('DisablePayloadBackoff="yes"', "disable_backoff", False),
        ('MaxFailureCountPerUrl="-1"', "max_failures", 10),
        ('MaxFailureCountPerUrl="0"', "max_failures", 1),
        ('MaxFailureCountPerUrl="25"', "max_failures", 25),
    ],
)
def test_exact_strings(attribute: str, field: str, value: object) -> None:
    assert getattr(offer(answer(extra=" " + attribute)), field) == value


# ── error numbers ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "kind", "number"),
    [
        (b"", ResponseEmpty, 30),
        (b"not xml at all", ResponseNotXml, 31),
        (b"<!doctype html><html><body>Log in here<br></body></html>", ResponseNotXml, 31),
        (b"<response><app></response>", ResponseNotXml, 31),
        (b"<response protocol='3.0'><app appid='x'", ResponseNotXml, 31),
        (b"\0\0\0\0", ResponseNotXml, 31),
        (b'<?xml version="1.0" encoding="no-such-thing"?><response/>', ResponseNotXml, 31),
        (b"<response/>", ResponseInvalid, 34),
        (b"<html/>", ResponseInvalid, 34),
        (b"<response><app status='ok'/></response>", ResponseInvalid, 34),
        (answer(status=None), ResponseInvalid, 34),
        (answer(status="bogus"), ServerRefused, 34),
        (answer(manifest=False), ResponseInvalid, 34),
        (answer(codebases=()), ResponseInvalid, 34),
        (answer(codebases=("http://a/", "")), ResponseInvalid, 34),
        (answer(codebases=("http://a/",) * 40), ResponseInvalid, 34),
        (answer(packages=""), ResponseInvalid, 34),
        (answer(packages="<package name='a' size='1'/>" * 300), ResponseInvalid, 34),
        (answer(name=""), ResponseInvalid, 34),
        (answer(size="0"), ResponseInvalid, 34),
        (answer(size="-4"), ResponseInvalid, 34),
        (answer(size="12 kB"), ResponseInvalid, 34),
        (answer(size="9" * 19), ResponseInvalid, 34),
        (answer(action=""), ResponseInvalid, 34),
        (answer(action='<action event="update" sha256="x"/>'), ResponseInvalid, 34),
        (answer(sha256=""), ResponseInvalid, 34),
        (answer(sha256="!!!"), ResponseInvalid, 34),
        (answer(sha256=B64 + "="), ResponseInvalid, 34),
        (answer(sha256=B64[:-2] + "9="), ResponseInvalid, 34),
        (answer(sha256=base64.b64encode(DIGEST[:31]).decode()), ResponseInvalid, 34),
        (answer(sha256=" " + B64), ResponseInvalid, 34),
        (answer(sha256=DIGEST.hex()), ResponseInvalid, 34),
        (answer(version="1" * 200), ResponseInvalid, 34),
        (answer(version="1&#10;2"), ResponseInvalid, 34),
    ],
)
def test_refusals(body: bytes, kind: type[BasculeError], number: int) -> None:
    with pytest.raises(kind) as caught:
        parse_response(body)
    assert caught.value.number == number
    assert type(caught.value) is kind
    assert caught.value.remedy


@pytest.mark.parametrize(
    "name",
    [
        "../update.gz",
        "a/../../update.gz",
        "/etc/passwd",
        "..",
        ".",
        "a//b",
        "%2e%2e/update.gz",
        "a%2f..%2fb",
        "a\\b",
        "..%5cb",
        "a b.gz",
        "a&#10;b",
        "a&#127;b",
        "a#b",
        "a%00b",
        "?token=1",
        "x" * 1100,
        "\u202egz.etadpu",
    ],
)
def test_hostile_package_names(name: str) -> None:
    with pytest.raises(ResponseInvalid):
        parse_response(answer(name=name))
    with pytest.raises(ResponseInvalid):
        parse_response(answer(packages=f'<package name="a" size="1"/><package name="{name}"/>'))


@pytest.mark.parametrize(
    "name",
    [
        "update.gz",
        "flatcar_production_update.gz",
        "amd64-usr/3510.2.0/flatcar_production_update.gz",
        "update.gz?token=a%2F..%2Fb&amp;x=1",
        "0123...gz",
        "größe.gz",
    ],
)
def test_legal_package_names(name: str) -> None:
    assert offer(answer(name=name)).name == name.replace("&amp;", "&")


@pytest.mark.parametrize(
    "codebase",
    [
        "ftp://a/",
        "file:///etc/",
        "//a/",
        "update/",
        "http://",
        "http:///x/",
        "http://a:99999/",
        "http://[::1/",
        "http://a b/",
        "http://a/#x",
        "http://a/&#10;",
        "http://user:secret@a/",
        "HTTP\\\\a",
    ],
)
def test_hostile_addresses(codebase: str) -> None:
    with pytest.raises(ResponseInvalid) as caught:
        parse_response(answer(codebases=("http://good.example/", codebase)))
    assert "secret" not in str(caught.value)


def test_legal_addresses() -> None:
    found = offer(answer(codebases=("HTTPS://u:p@a", "http://[::1]:80/x?y=1", "http://a//")))
    assert found.urls == (
        "HTTPS://u:p@a/update.gz",
        "http://[::1]:80/x?y=1/update.gz",
        "http://a//update.gz",
    )


# ── statuses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", sorted(REFUSALS))
def test_every_status_of_a_server_has_words(status: str) -> None:
    body = answer(status="error-internal", app_status=status, manifest=False, poll="3600")
    with pytest.raises(ServerRefused) as caught:
        parse_response(body)
    assert REFUSALS[status].sentence in str(caught.value)
    assert status in str(caught.value)
    assert isinstance(caught.value, DeferredByServer) is REFUSALS[status].deferred
    assert caught.value.context == {"status": status, "poll_interval": 3600}


def test_rate_limits_are_deferrals() -> None:
    assert {s for s, r in REFUSALS.items() if r.deferred} == {
        "error-maxUpdatesPerPeriodLimitReached",
        "error-maxConcurrentUpdatesLimitReached",
        "error-maxTimedOutUpdatesLimitReached",
        "error-updatesDisabled",
        "error-updateInProgressOnInstance",
    }


def test_go_omaha_refuses_without_an_update_check() -> None:
    body = b'<response protocol="3.0"><app appid="x" status="error-unknownApplication"/></response>'
    with pytest.raises(ServerRefused, match="does not know this application"):
        parse_response(body)
    assert "does not know this application" in server_words(body)


def test_go_omaha_names_the_update_check_status() -> None:
    body = answer(status="error-osnotsupported", manifest=False)
    with pytest.raises(ServerRefused, match="operating system"):
        parse_response(body)
    assert server_words(body).endswith("(error-osnotsupported)")


@pytest.mark.parametrize("body", [b"", b"<html>oops", b"<html/>", b"Bad Gateway", answer()])
def test_an_error_body_without_words(body: bytes) -> None:
    assert server_words(body) == ""


def test_an_unknown_status_is_quoted_and_clipped() -> None:
    with pytest.raises(ServerRefused) as caught:
        parse_response(answer(status="error-" + "x" * 5000))
    assert len(str(caught.value)) < 6000 and len(caught.value.context["status"]) < 200


# ── hostile documents ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE r [<!ENTITY a "aaaa">]><response>&a;</response>',
        b'<!DOCTYPE response SYSTEM "http://evil.example/x.dtd"><response/>',
        b'<!DOCTYPE r [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><response/>',
        '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE r [<!ENTITY a "a">]><r/>'.encode(
            "utf-16"
        ),
        b"<response>&undefined;</response>",
    ],
)
def test_dtds_and_entities_are_refused(body: bytes) -> None:
    with pytest.raises(ResponseNotXml):
        parse_response(body)


def test_size_depth_and_element_caps() -> None:
    with pytest.raises(ResponseNotXml, match="longer"):
        parse_response(b"<response>" + b" " * (1 << 20) + b"</response>")
    with pytest.raises(ResponseNotXml, match="deep"):
        parse_response(b"<a>" * 20 + b"</a>" * 20)
    with pytest.raises(ResponseNotXml, match="elements"):
        parse_response(b"<response>" + b"<a/>" * 5000 + b"</response>")
    assert parse_response(answer(status="noupdate"), max_body=2000).offer is None


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_answer_never_escapes_the_error_tree(data: st.DataObject) -> None:
    body = bytearray(answer(extra=' IsDeltaPayload="true"'))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=6))
    try:
        response = parse_response(bytes(body))
    except ServerError:
        return
    if response.offer is not None:
        assert len(response.offer.sha256) == 32 and response.offer.size > 0
        assert all(re.match("https?://", u, re.IGNORECASE) for u in response.offer.urls)


def test_an_offer_survives_the_errands_pipe() -> None:
    signature = base64.b64encode(bytes(256)).decode()
    found = offer(
        answer(
            packages=f'<package name="u" size="7"/><package name="o" hash_sha256="{"ab" * 32}"/>',
            extra=f' MetadataSize="99" MetadataSignatureRsa="{signature}" IsDeltaPayload="true"',
        )
    )
    crossed: dict[str, Any] = json.loads(json.dumps(found.as_dict()))
    assert Offer.from_dict(crossed) == found


def test_the_types_come_without_an_xml_parser_and_the_source_without_aiohttp() -> None:
    code = (
        "import sys, bascule.formats.omaha, bascule.updater.policy, bascule.updater.payload_state;"
        "import bascule.engine.fetch, bascule.engine.omaha_client, bascule.engine.host;"
        "print([m for m in ('pyexpat', 'defusedxml', 'aiohttp', 'yarl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
