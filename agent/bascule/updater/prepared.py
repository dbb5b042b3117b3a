"""A release that lies whole and proven in its slot, and that may be let boot without a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bascule.formats.slots import Slot

if TYPE_CHECKING:
    from bascule.formats.omaha_offer import Offer


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the ledger says of a prepared slot. It is a hint, never a proof: the slot is proven
    again before it is staged.

    Attributes:
        attempt: id of the attempt that wrote it.
        offer: what was offered; its digest names the payload.
        slot: where it lies.
        at: unix seconds.
        downgrade: an operator allowed an older release when it was prepared.
        cost: what the installation took, as in `Intent.cost`.
        asked: an operator wants it to wait; else it lies there because its attempt was cut off, and the
            next check goes on with it.
    """

    attempt: str
    offer: Offer
    slot: Slot
    at: int
    downgrade: bool = False
    cost: Mapping[str, Any] = field(default_factory=dict)
    asked: bool = True

    @property
    def payload(self) -> str:
        """Hex SHA-256 of the payload."""
        return self.offer.sha256.hex()

    @property
    def version(self) -> str:
        """The release, or the beginning of its digest where it has no name."""
        return self.offer.version or self.payload[:12]

    def sentence(self) -> str:
        """How it stands, for an operator."""
        if not self.asked:
            return (
                f"Release {self.version} lies proven in slot {self.slot.name}; "
                "the next check goes on with it, and so does `updatectl activate`."
            )
        return (
            f"Release {self.version} is prepared in slot {self.slot.name}; "
            "`updatectl activate` lets it boot next."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in `ledger.Record.prepared`."""
        return {
            "attempt": self.attempt,
            "offer": self.offer.as_dict(),
            "version": self.offer.version,
            "payload": self.payload,
            "size": self.offer.size,
            "slot": self.slot.name,
            "at": self.at,
            "downgrade": self.downgrade,
            "cost": dict(self.cost),
            "asked": self.asked,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Prepared | None:
        """The inverse; None for nothing, and for what no agent of this version wrote."""
        if not data:
            return None
        from bascule.formats.omaha_offer import Offer  # few hosts have one prepared

        try:
            return cls(
                attempt=str(data["attempt"]),
                offer=Offer.from_dict(data["offer"]),
                slot=Slot(data["slot"]),
                at=int(data["at"]),
                downgrade=bool(data.get("downgrade")),
                cost=dict(data.get("cost") or {}),
                asked=data.get("asked") is not False,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
