"""Omaha v3, the protocol between this host and its update server: one door to its rooms."""

from __future__ import annotations

from bascule.formats.omaha_offer import Offer, Package, Response
from bascule.formats.omaha_request import (
    DEFAULT_APPID,
    ON_DEMAND,
    SCHEDULED,
    UPDATER,
    Client,
    OmahaEvent,
    build_request,
    check_event,
)
from bascule.formats.omaha_response import parse_response, server_words
from bascule.formats.omaha_words import REFUSALS, Refusal, refusal

__all__ = [
    "DEFAULT_APPID",
    "ON_DEMAND",
    "REFUSALS",
    "SCHEDULED",
    "UPDATER",
    "Client",
    "Offer",
    "OmahaEvent",
    "Package",
    "Refusal",
    "Response",
    "build_request",
    "check_event",
    "parse_response",
    "refusal",
    "server_words",
]
