"""What Omaha servers say when they say no, in plain words.

Statuses source: Nebraska ``backend/pkg/omaha/omaha.go`` and go-omaha's status constants
(reference flatcar.md 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One status of a server.

    Attributes:
        sentence: what it means for this host.
        deferred: a limit or switch of the server's: not a failure, only later.
    """

    sentence: str
    deferred: bool = False


REFUSALS: dict[str, Refusal] = {
    "error-noPackageFound": Refusal(
        "this host's group has no release assigned to it, or its channel has no package"
    ),
    "error-unknownApplicationOrGroup": Refusal(
        "the server does not know this application id or this group"
    ),
    "error-unknownApplication": Refusal("the server does not know this application id"),
    "error-invalidAppId": Refusal("the server finds the application id malformed"),
    "error-instanceRegistrationFailed": Refusal(
        "the server could not register this host; its machine id or its group may be at fault"
    ),
    "error-maxUpdatesPerPeriodLimitReached": Refusal(
        "as many hosts of this group as the server allows in one period are updating", deferred=True
    ),
    "error-maxConcurrentUpdatesLimitReached": Refusal(
        "as many hosts of this group as the server allows at one time are updating", deferred=True
    ),
    "error-maxTimedOutUpdatesLimitReached": Refusal(
        "too many hosts of this group did not finish their update, so the server has stopped the"
        " rollout",
        deferred=True,
    ),
    "error-updatesDisabled": Refusal(
        "updates are switched off for this host's group on the server, or it is outside the"
        " server's office hours",
        deferred=True,
    ),
    "error-couldNotCheckUpdatesStats": Refusal("the server could not count the running updates"),
    "error-updateInProgressOnInstance": Refusal(
        "the server believes that this host is still busy with its last update", deferred=True
    ),
    "error-failedToRetrieveUpdatePackageInfo": Refusal(
        "the server could not look up the release in its database"
    ),
    "error-internal": Refusal("the server has an internal error"),
    "error-hash": Refusal("the server has no digest for the release"),
    "error-osnotsupported": Refusal("the server has nothing for this operating system"),
    "error-unsupportedProtocol": Refusal("the server does not speak Omaha protocol 3.0"),
    "error-pluginRestrictedHost": Refusal("the server restricts this application to other hosts"),
    "restricted": Refusal("the server restricts this application to other hosts"),
}


def refusal(status: str) -> Refusal:
    """The meaning of a status; one that is not in the table is quoted."""
    known = REFUSALS.get(status)
    return known if known is not None else Refusal(f"the server answered with status {status!r}")
