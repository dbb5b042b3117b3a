"""What somebody's pydbus script does with the daemon. Run by the system's Python, which has gi:
``python3 pydbus_client.py ADDRESS``; prints one JSON object."""

import json
import sys

import pydbus
from gi.repository import GLib


def main(address):
    bus = pydbus.connect(address)
    legacy = bus.get("com.coreos.update1", "/com/coreos/update1")
    new = bus.get("org.bascule.Update1", "/org/bascule/Update1")
    manager = legacy["com.coreos.update1.Manager"]
    update1 = new["org.bascule.Update1"]
    loop = GLib.MainLoop()
    heard = {"status": [], "states": [], "finished": []}

    def on_status(checked, progress, operation, version, size):
        heard["status"].append([checked, progress, operation, version, size])

    def on_properties(interface, changed, invalidated):
        if "State" in changed:
            heard["states"].append(changed["State"])

    def on_finished(result, error_id, message):
        heard["finished"].append([result, error_id, message])
        # What was sent before is delivered before; leave the loop after this dispatch.
        GLib.idle_add(loop.quit)

    manager.StatusUpdate.connect(on_status)
    new["org.freedesktop.DBus.Properties"].PropertiesChanged.connect(on_properties)
    result = {
        "before": list(manager.GetStatus()),
        "state": update1.State,
        "slots": update1.Slots,
        "progress": update1.Progress,
        "document": json.loads(update1.Document("history", {"last": GLib.Variant("i", 1)})),
    }
    path = update1.Update({"version": GLib.Variant("s", "3602.1.5")})
    result["job"] = path
    job = bus.get("org.bascule.Update1", path)["org.bascule.Update1.Job"]
    job.Finished.connect(on_finished)
    try:
        update1.Check()
    except GLib.Error as error:
        result["busy"] = str(error)
    try:
        manager.ResetStatus()
    except GLib.Error as error:
        result["reset"] = str(error)
    GLib.timeout_add_seconds(60, loop.quit)
    loop.run()
    result["after"] = list(manager.GetStatus())
    result["job_result"] = job.Result
    result["heard"] = heard
    print(json.dumps(result))


main(sys.argv[1])
