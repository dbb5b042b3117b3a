"""The documentation of ``org.bascule.Update1``: it is served with the introspection data."""

from __future__ import annotations

from collections.abc import Mapping

from dbus_fast import introspection as intr

from bascule.faces.bus_shown import Shown

__all__ = ["documented"]

_DOC = "org.gtk.GDBus.DocString"
_DOCS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Check": (
        "Ask the update server now and install nothing. polkit: org.bascule.Update1.check.",
        (),
        ("job",),
    ),
    "Update": (
        "Ask the update server and install what it offers. Options: version (s): only this "
        "release; file (s) and repository (s): from there instead of the server; now (b): go past "
        "the gates that may be overridden; no_reboot (b): do not reboot by itself afterwards; "
        "allow_downgrade (b): below the version floor too; force_full (b): no delta; prepare (b): "
        "write the slot and leave the running one the next boot. polkit: "
        "org.bascule.Update1.update; with now or allow_downgrade org.bascule.Update1.override.",
        ("options",),
        ("job",),
    ),
    "Cancel": (
        "Stop what runs, or undo what is staged; answers with one sentence. "
        "polkit: org.bascule.Update1.cancel.",
        (),
        ("sentence",),
    ),
    "Rollback": (
        "Prefer the other slot for the next boot. Options: once (b): for one boot; "
        "no_quarantine (b): the release that is left may come again. "
        "polkit: org.bascule.Update1.rollback.",
        ("options",),
        ("sentence",),
    ),
    "Reboot": (
        "Reboot into what is staged, as policy allows. polkit: org.bascule.Update1.reboot.",
        (),
        ("sentence",),
    ),
    "Reset": (
        "Forget a finished update: the staged slot is not booted. "
        "polkit: org.bascule.Update1.cancel.",
        (),
        ("sentence",),
    ),
    "Act": (
        "A further verb: activate, deactivate, doctor-repair, hold, pin, quarantine-clear or "
        "settle; answers with one sentence. polkit: org.bascule.Update1.configure; update for "
        "activate, cancel for deactivate, override for quarantine-clear, repair for doctor-repair.",
        ("verb", "options"),
        ("sentence",),
    ),
    "Document": (
        "A document to read: config, doctor, explain, history, hold, list, pin, plan, quarantine "
        "or slots, as JSON text whose schema member is 1. Open to everybody, but for plan and "
        "list, which ask a server (polkit: org.bascule.Update1.check), and for whatever names a "
        "file or a repository (org.bascule.Update1.update).",
        ("name", "options"),
        ("json",),
    ),
    "Refusal": (
        "The last error that this caller got from here, as JSON: id, number, message, detail, "
        "remedy, exit, context; an empty object if there was none. Open to everybody.",
        (),
        ("json",),
    ),
    "Finished": (
        "The job has ended: result is done, no-update or failed; error_id and message are "
        "empty unless it failed.",
        (),
        ("result", "error_id", "message"),
    ),
}


def documented(interface: intr.Interface, shown: tuple[Shown, ...]) -> intr.Interface:
    """Give the members of an introspected interface their argument names and texts."""
    texts = {entry.name: entry.doc for entry in shown}
    for prop in interface.properties:
        prop.annotations[_DOC] = texts[prop.name]
    for method in interface.methods:
        text, in_names, out_names = _DOCS[method.name]
        method.annotations[_DOC] = text
        for arg, name in zip(
            [*method.in_args, *method.out_args], [*in_names, *out_names], strict=True
        ):
            arg.name = name
    for signal in interface.signals:
        text, _, names = _DOCS[signal.name]
        signal.annotations[_DOC] = text
        for arg, name in zip(signal.args, names, strict=True):
            arg.name, arg.direction = name, None
    return interface
