#!/bin/bash
# dracut module: choose the slot in the initrd. Ask for it: add_dracutmodules+=" bascule ".

check() {
	[[ -x ${dracutsysrootdir-}/usr/lib/bascule/bascule-select ]] || return 1
	return 255
}

depends() {
	echo udev-rules
}

install() {
	inst_multiple cat mkdir mv rm ln udevadm
	inst_binary /usr/lib/bascule/bascule-select
	inst_script "$moddir/bascule-slot" /usr/lib/bascule/bascule-slot
	if dracut_module_included systemd; then
		inst_simple "$moddir/bascule-select.service" "$systemdsystemunitdir/bascule-select.service"
		mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
		ln -sf ../bascule-select.service \
			"$initdir$systemdsystemunitdir/initrd.target.wants/bascule-select.service"
	else
		inst_hook initqueue/settled 50 "$moddir/choose-slot.sh"
	fi
}
