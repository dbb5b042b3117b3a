#!/bin/sh
# Without systemd in the initrd: runs each time that udev has settled, chooses once.
/usr/lib/bascule/bascule-slot || warn "bascule: no slot can be booted"
