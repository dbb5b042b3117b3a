"""Engine floor: one thing done to the disk or the wire. No policy."""
