"""The command line, as a publisher and an operator of a lab use it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from omaha_mock.__main__ import main
from omaha_mock.releases import APPID

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "usr.img"
    path.write_bytes(b"usr 1\n" * 2048)
    path.write_bytes(path.read_bytes().ljust(16384, b"\0"))
    return path


def packed(run: Run, tmp_path: Path, image: Path, *more: object) -> dict[str, Any]:
    if not (tmp_path / "keys").exists():
        assert run("keygen", tmp_path / "keys")[0] == 0
    key = tmp_path / "keys" / "update.key.pem"
    out = tmp_path / "p.bin"
    code, text, error = run("pack", "--image", image, "--key", key, "-o", out, "--json", *more)
    assert code == 0, error
    facts: dict[str, Any] = json.loads(text)
    return facts


def test_pack_inspect_verify_apply(run: Run, tmp_path: Path, image: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel" * 1000)
    facts = packed(run, tmp_path, image, "--kernel", kernel)
    payload = facts["payload"]
    assert facts["size"] == Path(payload).stat().st_size and len(facts["sha256"]) == 44

    code, text, _ = run("pack", "--inspect", payload, "--json")
    shown = json.loads(text)
    assert code == 0 and [part["name"] for part in shown["parts"]] == ["usr", "kernel"]
    assert shown["metadata_size"] == facts["metadata_size"]
    code, text, _ = run("pack", "--inspect", payload)
    assert code == 0 and "noop_operations" in text

    code, text, _ = run("pack", "--verify", payload, "--keys", tmp_path / "keys", "--json")
    assert code == 0 and json.loads(text)["signed_by"] == ["update.pub.pem"]
    code, text, _ = run("pack", "--verify", payload)
    assert code == 1 and "No key" in text

    arguments = ("pack", "--apply", payload, "--keys", tmp_path / "keys")
    code, _, error = run(*arguments, "-o", tmp_path / "o", "--to", f"kernel={tmp_path / 'k'}")
    assert code == 0, error
    assert (tmp_path / "o").read_bytes() == image.read_bytes()
    assert (tmp_path / "k").read_bytes() == kernel.read_bytes()


def test_two_keys_and_major_2(run: Run, tmp_path: Path, image: Path) -> None:
    assert run("keygen", tmp_path / "keys")[0] == 0
    assert run("keygen", tmp_path / "keys", "--name", "other", "--kind", "ec")[0] == 0
    second = tmp_path / "keys" / "other.key.pem"
    facts = packed(run, tmp_path, image, "--key2", second, "--major", 2, "--codecs", "raw,bz2")
    code, text, _ = run("pack", "--verify", facts["payload"], "--json", "--keys", tmp_path / "keys")
    found = json.loads(text)
    assert code == 0 and found["metadata_signed_by"] == ["other.pub.pem", "update.pub.pem"]
    assert facts["operations"] == {"REPLACE_BZ": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "COMMAND"),
        (("explode",), 2, "explode"),
        (("pack",), 2, "-o"),
        (("pack", "-o", "x"), 2, "--key"),
        (("pack", "-o", "x", "--unsigned"), 2, "--image"),
        (("pack", "-o", "x", "--unsigned", "--image", "none"), 2, "none"),
        (("pack", "-o", "x", "--unsigned", "--image", "a", "--image", "b"), 2, "twice"),
        (("pack", "-o", "x", "--unsigned", "--image", "a", "--old", "z=b"), 2, "--old"),
        (("pack", "-o", "x", "--key", "none", "--image", "a"), 2, "none"),
        (("pack", "-o", "x", "--key2", "none", "--image", "a"), 2, "--key2"),
        (("pack", "--inspect", "none"), 1, "none"),
        (("pack", "--verify", "{file}"), 1, "CrAU"),
        (("pack", "--apply", "{file}", "-o", "x"), 1, "CrAU"),
        (("publish", "{site}", "--payload", "{file}", "--version", "1"), 1, "CrAU"),
        (("publish", "{site}", "--payload", "{file}", "--version", "one"), 2, "version"),
        (("serve", "{site}/none"), 2, "directory"),
        (("serve", "{site}", "--port", "99999"), 2, "port"),
        (("serve", "{site}", "--tls-key", "x"), 2, "--tls-cert"),
        (("serve", "{site}", "--tls-cert", "{file}"), 2, "TLS"),
        (("serve", "{bad}"), 2, "TOML"),
        (("serve", "{site}", "--host", "256.0.0.1"), 2, "256"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], code: int, said: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no payload, but more than twenty bytes")
    (tmp_path / "site").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "releases.toml").write_text("[server")
    names = {name: str(tmp_path / name) for name in ("file", "site", "bad")}
    found, out, error = run(*(argument.format(**names) for argument in arguments))
    assert (found, out) == (code, "")
    assert said in error and "Traceback" not in error


def request(version: str, **attributes: str) -> bytes:
    app = {"appid": APPID, "track": "stable", "version": version, "machineid": "m", **attributes}
    root = ElementTree.Element("request", {"protocol": "3.0"})
    element = ElementTree.SubElement(root, "app", app)
    ElementTree.SubElement(element, "updatecheck")
    ElementTree.SubElement(element, "event", {"eventtype": "3", "eventresult": "2"})
    return ElementTree.tostring(root)


def post(url: str, body: bytes) -> ElementTree.Element:
    asked = urllib.request.Request(url, body, {"Content-Type": "text/xml"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return ElementTree.fromstring(answer.read())


def test_publish_and_serve(
    run: Run, tmp_path: Path, image: Path, omaha_process: Callable[..., str]
) -> None:
    facts = packed(run, tmp_path, image)
    site = tmp_path / "site"
    key = tmp_path / "keys" / "update.key.pem"
    code, text, error = run(
        "publish",
        site,
        "--payload",
        facts["payload"],
        "--version",
        "2.0.0",
        "--metadata-key",
        key,
        "--disable-backoff",
        "--name",
        "two.bin",
    )
    assert code == 0 and "2.0.0 is published" in text, error
    url = omaha_process(site)

    root = post(url, request("1.0.0"))
    action = root.find(".//action")
    assert action is not None
    assert action.attrib == {
        "event": "postinstall",
        "sha256": facts["sha256"],
        "DisablePayloadBackoff": "true",
        "MetadataSize": str(facts["metadata_size"]),
        "MetadataSignatureRsa": facts["metadata_signature"],
    }
    codebase = root.find(".//url")
    assert codebase is not None
    with urllib.request.urlopen(codebase.attrib["codebase"] + "two.bin", timeout=30) as answer:
        assert answer.read() == Path(facts["payload"]).read_bytes()

    # Published while it runs, without a restart; a fault and a mistake likewise.
    Path(facts["payload"]).write_bytes(Path(facts["payload"]).read_bytes())
    assert run("publish", site, "--payload", facts["payload"], "--version", "3.0.0")[0] == 0
    manifest = post(url, request("2.0.0")).find(".//manifest")
    assert manifest is not None and manifest.get("version") == "3.0.0"
    state = site / "releases.toml"
    state.write_text(state.read_text() + '[[fault]]\nkind = "status"\non = "omaha"\ntimes = 1\n')
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, request("2.0.0"))
    assert caught.value.code == 500
    caught.value.close()
    state.write_text(state.read_text() + "[[mistake]]\n")
    assert post(url, request("2.0.0")).find(".//manifest") is not None

    lines = [json.loads(line) for line in (site / "requests.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["omaha", "payload", "omaha", "omaha", "omaha"]
    assert lines[0]["app"]["version"] == "1.0.0" and lines[0]["events"][0]["eventtype"] == "3"
    assert (lines[1]["name"], lines[1]["sent"], lines[1]["whole"]) == (
        "two.bin",
        facts["size"],
        True,
    )
    assert lines[3]["faults"] == ["status"] and lines[3]["status"] == 500


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "omaha_mock", "serve", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "", "")


@pytest.fixture
def gpg_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not here")
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    base = ["gpg", "--homedir", str(home), "--batch", "--no-tty", "--passphrase", ""]
    subprocess.run(
        [*base, "--pinentry-mode", "loopback", "--quick-gen-key", "Fixture", "ed25519", "sign"],
        check=True,
        capture_output=True,
    )
    listed = subprocess.run(
        [*base, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
    )
    fingerprint = next(
        line.split(":")[9] for line in listed.stdout.splitlines() if line.startswith("fpr")
    )
    yield home, fingerprint
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def test_digest_lists_are_signed(
    run: Run, tmp_path: Path, image: Path, gpg_home: tuple[Path, str]
) -> None:
    home, fingerprint = gpg_home
    facts = packed(run, tmp_path, image, "--gpg-home", home, "--gpg-key", fingerprint)
    signed = Path(facts["digests"])
    assert signed.name == "p.bin.DIGESTS.asc"
    shown = subprocess.run(
        ["gpg", "--homedir", str(home), "--status-fd", "2", "--decrypt", str(signed)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"VALIDSIG {fingerprint}" in shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "# SHA256 HASH" and lines[2] == "# SHA512 HASH"
    assert lines[1].endswith("  p.bin") and len(lines[1].split()[0]) == 64

    assert (
        run("publish", tmp_path / "site", "--payload", facts["payload"], "--version", "2")[0] == 0
    )
    names = [path.name for path in (tmp_path / "site" / "payloads").iterdir()]
    assert sorted(names) == ["p.bin", "p.bin.DIGESTS.asc"]
    arguments = ("--payload", facts["payload"], "--version", "3", "--name", "three.bin")
    code, _, error = run("publish", tmp_path / "site", *arguments)
    assert code == 2 and "p.bin" in error
    key = tmp_path / "keys" / "update.key.pem"
    base = ("pack", "--image", image, "--key", key, "-o", tmp_path / "q.bin", "--gpg-home", home)
    assert run(*base)[0] == 2
    assert run(*base, "--gpg-key", "nobody")[0] == 1
    assert run(*base, "--gpg-key", fingerprint, "--digests", "crc")[0] == 2
