"""What can go wrong: one tree.

Every class carries a number (Omaha's error code where it has one, ours from 3000 on), a stable
id, one sentence of cause and one of remedy, and the exit code of the command that meets it.
The same id is the tail of the D-Bus error name, the key of the journal catalogue, and what
``updatectl explain`` and the docs print.

Number source: Flatcar update_engine ``action_processor.h`` (reference 3.9).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, ClassVar

__all__ = ["BasculeError", "Exit", "catalogue", "omaha_code"]

_MESSAGE_NAMESPACE = "5b1f6c1e-6a0e-4c9c-9c0a-3f2d7f0b1a55"


class Exit(enum.IntEnum):
    """Exit codes of every Bascule command. The man page, README and docs print this table."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    NOT_PERMITTED = 4
    BUSY = 5
    NO_UPDATE = 6
    SETTINGS = 7
    NETWORK = 8
    PAYLOAD = 9
    TRUST = 10
    STORAGE = 11
    NO_SPACE = 12
    BOOT = 13
    HELD = 14
    UNHEALTHY = 15
    ROLLED_BACK = 16
    STOPPED = 17

    @property
    def sentence(self) -> str:
        """One sentence for the exit code table."""
        return _EXIT_SENTENCES[self]


_EXIT_SENTENCES: dict[Exit, str] = {
    Exit.DONE: "Done, or nothing was left to do.",
    Exit.FAILED: "It failed for a reason that has no code of its own; the message says which.",
    Exit.USAGE: "The command line is wrong.",
    Exit.NO_DAEMON: "The daemon is not running or the bus cannot be reached.",
    Exit.NOT_PERMITTED: "You may not do this.",
    Exit.BUSY: "Something else is under way; try again when it has ended.",
    Exit.NO_UPDATE: "The server has no update for this host.",
    Exit.SETTINGS: "A configuration file is wrong.",
    Exit.NETWORK: "A server could not be reached or did not answer as it should.",
    Exit.PAYLOAD: "The payload is damaged or of a kind that is not understood.",
    Exit.TRUST: "The payload is not proven: signature, key or digest.",
    Exit.STORAGE: "A disk, device, partition table or state file failed.",
    Exit.NO_SPACE: "There is not enough room.",
    Exit.BOOT: "The slots do not allow this step.",
    Exit.HELD: "Policy holds this back: a hold, window, pin, floor or quarantine.",
    Exit.UNHEALTHY: "The host did not pass its health checks.",
    Exit.ROLLED_BACK: "The update was tried and the host is back on the old release.",
    Exit.STOPPED: "It was cancelled or interrupted.",
}


class BasculeError(Exception):
    """Base of everything that Bascule raises on purpose.

    Args:
        detail: what exactly was seen, with figures and names; appended to the cause.
        context: machine-readable facts for ``--json`` and the journal.
    """

    number: ClassVar[int] = 1
    id: ClassVar[str] = "internal"
    cause: ClassVar[str] = "Something went wrong that Bascule has no name for."
    remedy: ClassVar[str] = "Read `updatectl logs`, and report it with that text."
    exit: ClassVar[Exit] = Exit.FAILED

    def __init__(self, detail: str = "", **context: Any) -> None:
        self.detail = detail
        self.context = context
        super().__init__(detail)

    def __str__(self) -> str:
        return f"{self.cause.rstrip('.')}: {self.detail}" if self.detail else self.cause

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.detail, self.context))

    @classmethod
    def bus_name(cls) -> str:
        """D-Bus error name, as in ``org.bascule.Update1.Error.payload-hash`` in CamelCase."""
        return "org.bascule.Update1.Error." + "".join(p.capitalize() for p in cls.id.split("-"))

    @classmethod
    def message_id(cls) -> str:
        """Journal MESSAGE_ID: 32 hexadecimal digits, derived from the id (RFC 9562 version 5)."""
        import uuid  # 4 ms, which every command would pay

        return uuid.uuid5(uuid.UUID(_MESSAGE_NAMESPACE), cls.id).hex

    def as_dict(self) -> dict[str, Any]:
        """The error as ``--json`` prints it and as the errand reports it to the daemon."""
        return {
            "id": self.id,
            "number": self.number,
            "message": str(self),
            "detail": self.detail,
            "remedy": self.remedy,
            "exit": int(self.exit),
            "context": self.context,
        }


def _rebuild(cls: type[BasculeError], detail: str, context: dict[str, Any]) -> BasculeError:
    return cls(detail, **context)


def catalogue() -> Iterator[type[BasculeError]]:
    """Every class of the tree that has an id of its own, depth first, base included."""
    stack: list[type[BasculeError]] = [BasculeError]
    while stack:
        cls = stack.pop()
        if "id" in cls.__dict__:
            yield cls
        stack.extend(reversed(cls.__subclasses__()))


def from_dict(data: dict[str, Any]) -> BasculeError:
    """Rebuild an error that crossed a pipe or the bus; an unknown id becomes the base class."""
    for cls in catalogue():
        if cls.id == data.get("id"):
            context = data.get("context")
            return cls(
                str(data.get("detail", "")), **(context if isinstance(context, dict) else {})
            )
    return BasculeError(str(data.get("message", "")))


RESUMED_FLAG = 1 << 30
DEV_MODE_FLAG = 1 << 29
CUSTOM_SERVER_FLAG = 1 << 28


def omaha_code(
    error: BasculeError, *, resumed: bool = False, dev_mode: bool = False, custom_server: bool
) -> int:
    """The ``errorcode`` attribute of a 3/0 event (reference 2.3): number with flag bits.

    Numbers of our own (3000 and up) are sent as the nearest one that servers know.
    """
    number = error.number
    if number >= 3000:
        known = (getattr(cls, "number", 0) for cls in type(error).__mro__)
        number = next((n for n in known if 0 < n < 3000), 1)
    if resumed:
        number |= RESUMED_FLAG
    if dev_mode:
        number |= DEV_MODE_FLAG
    if custom_server:
        number |= CUSTOM_SERVER_FLAG
    return number


# ── asking ───────────────────────────────────────────────────────────────────────────────────


class UsageError(BasculeError):
    """The command line is wrong."""

    number = 3001
    id = "usage"
    cause = "The command line is wrong."
    remedy = "Run the command with --help."
    exit = Exit.USAGE


class SettingsError(BasculeError):
    """A configuration file is wrong. `detail` names file and key."""

    number = 3002
    id = "settings"
    cause = "A configuration file is wrong."
    remedy = "Correct the named key and run `updatectl config check`."
    exit = Exit.SETTINGS


class DaemonNotRunning(BasculeError):
    """Nobody owns the bus name, or the bus cannot be reached."""

    number = 3003
    id = "daemon-not-running"
    cause = "The Bascule daemon is not running."
    remedy = "Start it with `systemctl start bascule`, and read `journalctl -u bascule` if it does not stay up."
    exit = Exit.NO_DAEMON


class NotPermitted(BasculeError):
    """The caller may not do this."""

    number = 3004
    id = "not-permitted"
    cause = "You may not do this."
    remedy = "Run it as root, or as a user whom polkit allows this action."
    exit = Exit.NOT_PERMITTED


class Busy(BasculeError):
    """Something else is under way."""

    number = 3005
    id = "busy"
    cause = "Something else is under way."
    remedy = "Follow it with `updatectl watch`, or stop it with `updatectl cancel`."
    exit = Exit.BUSY


class NoUpdate(BasculeError):
    """The server offers nothing."""

    number = 3006
    id = "no-update"
    cause = "There is no update for this host."
    remedy = "Nothing needs doing; `updatectl explain` says what the server answered."
    exit = Exit.NO_UPDATE


class NothingPending(BasculeError):
    """There is nothing to cancel, activate or roll back."""

    number = 3007
    id = "nothing-pending"
    cause = "There is nothing to act on."
    remedy = "See `updatectl status` for what is under way and `updatectl slots` for what can boot."
    exit = Exit.BOOT


class Stopped(BasculeError):
    """Cancelled by the operator or by a stop of the daemon; an attempt keeps its checkpoint."""

    number = 3008
    id = "stopped"
    cause = "The attempt was stopped."
    remedy = "Start it again with `updatectl update`; it goes on where it stopped."
    exit = Exit.STOPPED


class ErrandCrashed(BasculeError):
    """The child process that did the work ended without a report."""

    number = 3009
    id = "errand-crashed"
    cause = "The process that did the work ended without a report."
    remedy = "It is tried again at the next check; read `updatectl logs` for its last words."


class BusUnreachable(BasculeError):
    """The daemon's side: no bus to connect to, or its policy refuses the name."""

    number = 3010
    id = "bus-unreachable"
    cause = "The message bus cannot be used."
    remedy = "Check that dbus runs and that Bascule's bus policy is installed, then `systemctl restart bascule`."
    exit = Exit.NO_DAEMON


class BusNameTaken(BasculeError):
    """Another program owns a name that Bascule must own; `detail` tells which and who."""

    number = 3011
    id = "bus-name-taken"
    cause = "Another program owns Bascule's name on the message bus."
    remedy = "Stop the program named here (Flatcar's own agent: `systemctl disable --now update-engine`), then `systemctl restart bascule`."
    exit = Exit.BUSY


class DaemonTooOld(BasculeError):
    """The daemon that runs is of another version than the command that asks."""

    number = 3012
    id = "daemon-version"
    cause = "The running daemon does not know this request."
    remedy = "It is probably of another version than this command: `systemctl restart bascule`."
    exit = Exit.NO_DAEMON


class AnswerNotUnderstood(BasculeError):
    """What came over the bus is not an answer of the daemon's."""

    number = 3013
    id = "bus-answer"
    cause = "The answer that came over the bus is not understood."
    remedy = "See that the address is that of the system bus and that daemon and command are of one version."
    exit = Exit.NO_DAEMON


class OutputLost(BasculeError):
    """The answer could not be written where it was to go."""

    number = 3014
    id = "output-lost"
    cause = "The answer could not be written to the output."
    remedy = "Make room there, or write it elsewhere; what was asked for may have been done."


class LocalFileNotSeen(BasculeError):
    """A file or folder that the caller names is not there for the daemon."""

    number = 3015
    id = "file-not-seen"
    cause = "The daemon finds nothing at this path."
    remedy = "Check the path; files in /tmp are hidden from the service, so put it into /var/lib/bascule or on a mounted medium."
    exit = Exit.USAGE


# ── server ───────────────────────────────────────────────────────────────────────────────────


class ServerError(BasculeError):
    """The Omaha server could not be asked, or its answer cannot be used."""

    number = 2
    id = "omaha-request"
    cause = "The update server could not be asked."
    remedy = "Check the network, the proxy and the `server.url` setting; the next check is tried by itself."
    exit = Exit.NETWORK


class ServerUnreachable(ServerError):
    """No HTTP answer at all."""

    number = 2000
    id = "omaha-unreachable"
    cause = "The update server did not answer."
    remedy = "Check the network, DNS, the proxy and the `server.url` setting; the next check is tried by itself."


class ServerHttpError(ServerError):
    """An HTTP status that is not 2xx; the instance's number is 2000 + status."""

    number = 2000
    id = "omaha-http"
    cause = "The update server answered with an HTTP error."
    remedy = "Ask whoever runs the update server; the next check is tried by itself."

    def __init__(self, detail: str = "", *, status: int = 0, **context: Any) -> None:
        super().__init__(detail, status=status, **context)
        self.status = status
        self.number = 2000 + status if 0 < status < 999 else 2999  # type: ignore[misc]


class ServerRedirectRefused(ServerError):
    """A redirect that leads from https to something weaker, or too many of them."""

    number = 2000
    id = "omaha-redirect"
    cause = "The update server redirects to where Bascule does not follow."
    remedy = "Set `server.url` to the final https address."


class ResponseEmpty(ServerError):
    """An empty body."""

    number = 30
    id = "omaha-empty"
    cause = "The update server's answer is empty."
    remedy = "Check that `server.url` is the address of an Omaha service."


class ResponseNotXml(ServerError):
    """Not well-formed XML, a DTD, an entity, or too large."""

    number = 31
    id = "omaha-xml"
    cause = "The update server's answer is not XML that can be trusted."
    remedy = "Check that `server.url` is the address of an Omaha service and that no captive portal or proxy page answers instead."


class ResponseInvalid(ServerError):
    """Well-formed, but without what an answer must have."""

    number = 34
    id = "omaha-response"
    cause = "The update server's answer lacks something."
    remedy = "Ask whoever runs the update server; the answer is kept in the state directory as `full-response`."


class ResponseHandlingError(ServerError):
    """The answer is good, but this host cannot act on it."""

    number = 3
    id = "omaha-handling"
    cause = "This host cannot act on the update server's answer."
    remedy = "See the detail; `updatectl doctor` checks the host's side."


class ServerRefused(ResponseInvalid):
    """The server answered with an error status of its own (Nebraska's `error-…`)."""

    number = 34
    id = "omaha-refused"
    cause = "The update server refuses this host for now."
    remedy = (
        "Look at this host's group and its limits on the server; the next check is tried by itself."
    )


class DeferredByServer(ServerRefused):
    """A server-side limit (rate, concurrency, office hours): not a failure, only later."""

    number = 36
    id = "omaha-deferred"
    cause = "The update server asks this host to wait."
    remedy = "Nothing needs doing; the next check is tried by itself."
    exit = Exit.HELD


class IndexInvalid(ServerError):
    """A static repository has no index, or one that cannot be used."""

    number = 34
    id = "repository-index"
    cause = "The static repository's index cannot be used."
    remedy = "Write the repository's `index.json` again, and check the `server.repository` setting."


# ── policy ───────────────────────────────────────────────────────────────────────────────────


class PolicyRefusal(BasculeError):
    """A setting or rule of this host holds the update back."""

    number = 35
    id = "policy"
    cause = "Policy holds this update back."
    remedy = "`updatectl explain` names each gate and when it opens."
    exit = Exit.HELD


class BackingOff(PolicyRefusal):
    """Payload back-off after failures (reference 3.5)."""

    number = 40
    id = "backing-off"
    cause = "This payload failed before and is left alone for a while."
    remedy = "`updatectl update --now` tries it at once."


class Quarantined(PolicyRefusal):
    """This payload failed here before and is not tried again."""

    number = 35
    id = "quarantined"
    cause = "This release failed on this host before and is not tried again."
    remedy = "Publish a newer release, or let it be tried again with `updatectl quarantine clear`."


class BelowFloor(PolicyRefusal):
    """Older than the version floor."""

    number = 35
    id = "below-floor"
    cause = "The offered release is older than this host may go."
    remedy = "Publish a newer release, or allow it once with `updatectl update --allow-downgrade`."


class Pinned(PolicyRefusal):
    """Outside the pinned version or range."""

    number = 35
    id = "pinned"
    cause = "The offered release is outside the pinned range."
    remedy = "Change or lift the pin with `updatectl pin`."


class BudgetSpent(PolicyRefusal):
    """The data budget of this period is spent."""

    number = 36
    id = "budget-spent"
    cause = "The data budget of this period is spent."
    remedy = "Wait for the next period, raise `download.budget`, or use `updatectl update --now`."


class NotRebootable(PolicyRefusal):
    """logind or the coordinator refused the reboot."""

    number = 36
    id = "reboot-refused"
    cause = "The reboot was refused."
    remedy = "`updatectl explain` names who holds it; reboot by hand when it suits."


# ── download ─────────────────────────────────────────────────────────────────────────────────


class TransferError(BasculeError):
    """The payload could not be fetched from any of its URLs."""

    number = 9
    id = "transfer"
    cause = "The payload could not be downloaded."
    remedy = "Check the network and the payload's address; the download goes on where it stopped."
    exit = Exit.NETWORK


class TransferHttpError(TransferError):
    """The payload's server answered with an HTTP error on every URL."""

    number = 37
    id = "transfer-http"
    cause = "The payload's server answered with an HTTP error."
    remedy = "Check that the release's files are where the server says; the next check is tried by itself."


class TransferStalled(TransferError):
    """Slower than the allowed minimum for too long."""

    number = 9
    id = "transfer-stalled"
    cause = "The download stalled."
    remedy = "Check the network; the download goes on where it stopped."


# ── payload ──────────────────────────────────────────────────────────────────────────────────


class PayloadError(BasculeError):
    """The payload is damaged or not understood."""

    number = 12
    id = "payload"
    cause = "The payload cannot be used."
    remedy = "Publish it again; nothing on this host has become bootable."
    exit = Exit.PAYLOAD


class PayloadSizeMismatch(PayloadError):
    """Length differs from what was announced."""

    number = 11
    id = "payload-size"
    cause = "The payload's length is not what was announced."
    remedy = "Publish the release again, or look for a proxy that alters downloads."


class BadMagic(PayloadError):
    """The first bytes are not ``CrAU``."""

    number = 21
    id = "payload-magic"
    cause = "This is not an update payload."
    remedy = "Check the address: a login page or an error page may have been downloaded instead."


class UnsupportedMajor(PayloadError):
    """A payload version that is neither 1 nor 2."""

    # AOSP's number for this is 44, which a Flatcar server reads as "rolled back".
    number = 23
    id = "payload-major"
    cause = "The payload's format version is unknown."
    remedy = "Publish a payload of major version 1 or 2, or update the agent."


class UnsupportedMinor(PayloadError):
    """A delta of a minor version that is not 2–10."""

    number = 45
    id = "payload-minor"
    cause = "The payload's minor version is unknown."
    remedy = "Publish a full payload, or a delta of minor version 2 to 10."


class ManifestError(PayloadError):
    """The manifest cannot be parsed or breaks a rule."""

    number = 23
    id = "payload-manifest"
    cause = "The payload's manifest is wrong."
    remedy = "Build the payload again; `bascule payload inspect` shows what can be read of it."


class MetadataSizeError(ManifestError):
    """The header's lengths are impossible, over the cap, or not the announced ones."""

    number = 32
    id = "payload-metadata-size"
    cause = "The payload's header has impossible lengths."
    remedy = "Publish the release again, or look for a proxy that alters downloads."


class UnsupportedOperation(ManifestError):
    """An operation that this agent does not do; refused before the first byte is written."""

    number = 23
    id = "payload-operation"
    cause = "The payload holds an operation that Bascule does not do."
    remedy = "Publish a full payload, or a delta without that operation."


class OperationFailed(PayloadError):
    """An operation could not be carried out."""

    number = 28
    id = "operation-failed"
    cause = "An operation of the payload could not be carried out."
    remedy = "Build the payload again; nothing on this host has become bootable."


class OperationHashMissing(PayloadError):
    """An operation has data but no hash."""

    number = 38
    id = "operation-hash-missing"
    cause = "An operation of the payload carries no hash."
    remedy = "Build the payload again with a current generator."


class OperationHashMismatch(PayloadError):
    """An operation's data does not have the manifest's hash."""

    number = 29
    id = "operation-hash"
    cause = "Data of the payload does not have the hash that its manifest says."
    remedy = "Publish the release again, or look for a proxy that alters downloads."


class SourceMismatch(PayloadError):
    """The booted slot is not what the delta was made from."""

    number = 20
    id = "delta-source"
    cause = "The booted slot is not what this delta starts from."
    remedy = (
        "Publish a full payload; `bascule payload inspect` names the source that the delta wants."
    )


class TimestampTooOld(PayloadError):
    """`max_timestamp` is older than the running build."""

    number = 51
    id = "payload-timestamp"
    cause = "The payload was built before the running release."
    remedy = "Publish a newer build, or allow it once with `updatectl update --allow-downgrade`."


class PartsMissing(PayloadError):
    """The payload and the slot do not have the same parts."""

    number = 13
    id = "payload-parts"
    cause = "The payload's parts and this host's slots do not fit together."
    remedy = "Map every part of the payload in the `slots` settings."


class PackagesMissing(PayloadError):
    """The offer lacks extra packages that this host needs."""

    number = 61
    id = "packages-missing"
    cause = "The offer lacks extra packages that this host needs."
    remedy = "Publish them with the release, or take them out of `postinst.packages`."


# ── trust ────────────────────────────────────────────────────────────────────────────────────


class TrustError(PayloadError):
    """The payload is not proven."""

    number = 12
    id = "trust"
    cause = "The payload is not proven."
    remedy = (
        "Publish a signed payload and install its key; nothing on this host has become bootable."
    )
    exit = Exit.TRUST


class PayloadHashMismatch(TrustError):
    """The whole file does not have the announced SHA-256."""

    number = 10
    id = "payload-hash"
    cause = "The payload does not have the digest that was announced."
    remedy = "Publish the release again, or look for a proxy that alters downloads."


class SignatureMissing(TrustError):
    """There is no signature in the payload."""

    number = 17
    id = "signature-missing"
    cause = "The payload is not signed."
    remedy = "Sign it with a key whose public half is in the keys directory."


class SignatureMismatch(TrustError):
    """No signature fits any trusted key."""

    number = 18
    id = "signature"
    cause = "The payload is not signed by a key that this host trusts."
    remedy = (
        "Sign it with a trusted key, or install the publisher's public key in the keys directory."
    )


class NoKeys(TrustError):
    """No usable public key: nothing can be proven, so nothing is accepted."""

    number = 18
    id = "no-keys"
    cause = "There is no usable public key on this host."
    remedy = "Install the publisher's public key (PEM) in the directory that the `trust.keys` setting names."


class IndexUntrusted(TrustError):
    """A static repository's index is not signed by a trusted key, or is older than one seen before."""

    number = 3050
    id = "repository-untrusted"
    cause = "The static repository's index is not proven."
    remedy = "Sign it anew with a trusted key: `openssl dgst -sha256 -sign KEY -out index.json.sig index.json`."


class MetadataSignatureMissing(TrustError):
    """The policy wants signed metadata and there is none."""

    number = 39
    id = "metadata-signature-missing"
    cause = "The payload's metadata is not signed."
    remedy = (
        "Publish it with a metadata signature, or take `signed-metadata` out of `trust.require`."
    )


class MetadataSignatureMismatch(TrustError):
    """The metadata signature fits no trusted key."""

    number = 26
    id = "metadata-signature"
    cause = "The payload's metadata is not signed by a key that this host trusts."
    remedy = (
        "Sign it with a trusted key, or install the publisher's public key in the keys directory."
    )


class OpenPgpError(TrustError):
    """The OpenPGP-signed digest list is missing, badly signed, or does not name this payload."""

    number = 18
    id = "openpgp"
    cause = "The OpenPGP-signed digest list does not prove this payload."
    remedy = "Publish `<payload>.DIGESTS.asc` signed by a key of the pinned keyring."


# ── slot contents ────────────────────────────────────────────────────────────────────────────


class SlotMismatch(BasculeError):
    """What was read back from the medium is not the release."""

    number = 15
    id = "slot-hash"
    cause = "What was written does not read back as the release."
    remedy = "Check the disk (`smartctl`, kernel log); the slot stays unbootable and is written again at the next try."
    exit = Exit.STORAGE


class KernelMismatch(SlotMismatch):
    """The kernel file read back is not the release's."""

    number = 16
    id = "kernel-hash"
    cause = "The kernel that was written does not read back as the release's."


class PostinstallFailed(BasculeError):
    """The new image's own ``/postinst`` failed."""

    number = 5
    id = "postinstall"
    cause = "The new image's post-installation step failed."
    remedy = "Read its output in `updatectl logs`; the release is quarantined until a newer one is published."


class PcrPolicyError(BasculeError):
    """The PCR policy of the payload could not be handled."""

    number = 42
    id = "pcr-policy"
    cause = "The payload's PCR policy could not be verified."
    remedy = "Build the payload again, or without a PCR policy."
    exit = Exit.PAYLOAD


# ── storage ──────────────────────────────────────────────────────────────────────────────────


class StorageError(BasculeError):
    """A disk, device or file failed."""

    number = 14
    id = "storage"
    cause = "Reading or writing storage failed."
    remedy = "Check the disk and the kernel log, and the path named here."
    exit = Exit.STORAGE


class DeviceOpenError(StorageError):
    """A target device could not be opened, or is in use."""

    number = 7
    id = "device-open"
    cause = "A device could not be opened."
    remedy = "Check that it exists, is not mounted, and that nothing else writes to it."


class DeviceInUse(DeviceOpenError):
    """The target is mounted, is the booted slot, or another process holds it."""

    number = 7
    id = "device-in-use"
    cause = "A device that must not be written is in use."
    remedy = "Unmount it or stop the program that holds it; the booted slot is never written."


class NotEnoughSpace(StorageError):
    """Something does not fit; `detail` has every shortfall with figures."""

    number = 60
    id = "no-space"
    cause = "There is not enough room for this release."
    remedy = "Free the room that the figures name, or make the partition larger."
    exit = Exit.NO_SPACE


class TableError(StorageError):
    """The partition table is not usable."""

    number = 3020
    id = "partition-table"
    cause = "The partition table cannot be used."
    remedy = (
        "Look at it with `bascule disk show`, and mend one bad copy with `bascule disk repair`."
    )


class TableBroken(TableError):
    """Both copies are bad."""

    number = 3021
    id = "partition-table-broken"
    cause = "Both copies of the partition table are damaged."
    remedy = "Do not reboot. Restore the table from a backup (`sgdisk --load-backup`), then run `bascule disk show`."


class TableUnsound(TableError):
    """The table is intact but contradicts itself: partitions overlap, GUIDs repeat."""

    number = 3024
    id = "partition-table-unsound"
    cause = "The partition table contradicts itself."
    remedy = "Correct the partitions that the detail names; `sgdisk -v` shows every conflict."


class SlotsNotFound(TableError):
    """The slots could not be identified on the disk."""

    number = 3022
    id = "slots-not-found"
    cause = "The two slots could not be told apart on this host."
    remedy = "Name the disk and its partitions in the `slots` settings."


class LedgerError(StorageError):
    """The state directory cannot be read or written."""

    number = 3023
    id = "state"
    cause = "The state directory cannot be read or written."
    remedy = "Check the room and the permissions of the directory that the `state.directory` setting names."


# ── boot decisions ───────────────────────────────────────────────────────────────────────────


class BootError(BasculeError):
    """The slots do not allow this step."""

    number = 6
    id = "boot"
    cause = "The slots do not allow this step."
    remedy = "See `updatectl slots`."
    exit = Exit.BOOT


class BootedSlotNotBlessed(BootError):
    """The booted slot is still on trial, so the other one is the last known good."""

    number = 3030
    id = "booted-not-blessed"
    cause = "The running release is not settled yet, so the other slot must be kept."
    remedy = "Wait until it is confirmed (`bascule bless` does so by hand) and `reboot.late_window` is over; `updatectl explain` says until when."


class SlotNotBootable(BootError):
    """The bootloader would not take this slot."""

    number = 3031
    id = "slot-not-bootable"
    cause = "The bootloader would not start this slot."
    remedy = "Only a slot that holds a whole, proven release can be chosen; see `updatectl slots`."


class WouldTouchBootedSlot(BootError):
    """Refused: the step would change the slot that is running."""

    number = 3032
    id = "booted-slot"
    cause = "This step would change the slot that is running."
    remedy = "Name the other slot."


class BlessRefused(BootError):
    """This boot is not the one that may be blessed."""

    number = 3033
    id = "bless-refused"
    cause = "This boot cannot be confirmed."
    remedy = "See the detail; `updatectl status` tells which slot is on trial."


class Unhealthy(BasculeError):
    """The health checks failed."""

    number = 3040
    id = "unhealthy"
    cause = "The host did not pass its health checks."
    remedy = "Read the failed checks' output in `updatectl history` and mend the release."
    exit = Exit.UNHEALTHY


class RolledBack(BasculeError):
    """The update was tried and the host came back on the old release."""

    number = 44
    id = "rolled-back"
    cause = "The new release did not boot healthy; the host is back on the old one."
    remedy = "Nothing needs doing on the host; publish a mended release."
    exit = Exit.ROLLED_BACK
