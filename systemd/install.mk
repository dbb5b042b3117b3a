# make install: lay Bascule out below DESTDIR, for a package or for an image tree.
#
#   DESTDIR      root of the tree; empty: this host
#   PREFIX       /usr
#   SYSCONFDIR   /etc
#   INTERPRETER  the Python that will run it there, 3.11 or later
#   PYTHON       the Python that installs it now
#   WITH_DEPS    yes: bring the Python packages it needs along; no: the tree has them already
#   PIP_FLAGS    further words for pip, e.g. --python-version 3.11 --only-binary=:all: for another Python
#   ENABLE       yes: enable the units too
#   INITRD       yes: the slot selector for initrds too, which needs a C compiler
#
# The package goes into a directory of its own that the entry points name, to their children too: no
# virtual environment, and nothing in the way of the distribution's own Python packages.

DESTDIR     ?=
PREFIX      ?= /usr
SYSCONFDIR  ?= /etc
INTERPRETER ?= /usr/bin/python3
PYTHON      ?= python3
WITH_DEPS   ?= yes
PIP_FLAGS   ?=
ENABLE      ?= no
INITRD      ?= no

INSTALL_PARTS := $(dir $(lastword $(MAKEFILE_LIST)))
INSTALL_CODE  := $(PREFIX)/lib/bascule/python
INSTALL_UNITS := bascule.service bascule-health.service bascule-bless.service bascule-deadman.timer

.PHONY: install install-code install-parts uninstall

install: install-code install-parts

# Byte code is checked by content, not by time: an image's files carry times of their own.
install-code:
	@rm -rf '$(DESTDIR)$(INSTALL_CODE)'
	@install -d '$(DESTDIR)$(INSTALL_CODE)' '$(DESTDIR)$(PREFIX)/bin'
	@wheel=$$(mktemp -d) && trap 'rm -rf "$$wheel"' EXIT && \
		$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$$wheel" '$(INSTALL_PARTS)..' && \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile --no-warn-script-location \
			--root-user-action ignore --target '$(DESTDIR)$(INSTALL_CODE)' \
			$(if $(filter yes,$(WITH_DEPS)),,--no-deps) $(PIP_FLAGS) "$$wheel"/bascule-*.whl
	@rm -rf '$(DESTDIR)$(INSTALL_CODE)/bin' '$(DESTDIR)$(INSTALL_CODE)/omaha_mock'
	@$(PYTHON) -m compileall -q --invalidation-mode unchecked-hash -s '$(DESTDIR)' '$(DESTDIR)$(INSTALL_CODE)' || true
	@for entry in bascule=bascule.__main__ updatectl=bascule.faces.cli update_engine_client=bascule.faces.legacy_client; do \
		printf '#!%s -I\nimport os\nimport sys\n\nsys.path.insert(0, "%s")\nos.environ.update(PYTHONPATH="%s", PYTHONSAFEPATH="1")\nfrom %s import main\n\nsys.exit(main())\n' \
			'$(INTERPRETER)' '$(INSTALL_CODE)' '$(INSTALL_CODE)' "$${entry#*=}" > '$(DESTDIR)$(PREFIX)/bin/'"$${entry%%=*}"; \
		chmod 755 '$(DESTDIR)$(PREFIX)/bin/'"$${entry%%=*}"; \
	done

# $(call lay,FROM,TO): the files of one directory of this one, where it exists.
define lay
if [ -d '$(INSTALL_PARTS)$(1)' ]; then \
		install -d '$(DESTDIR)$(2)'; \
		find '$(INSTALL_PARTS)$(1)' -maxdepth 1 -type f -exec install -m 644 -t '$(DESTDIR)$(2)' {} +; \
	fi
endef

install-parts:
	@$(call lay,system,$(PREFIX)/lib/systemd/system)
	@sed -i 's|/usr/bin/bascule|$(PREFIX)/bin/bascule|' $(foreach f,$(wildcard $(INSTALL_PARTS)system/*.service),'$(DESTDIR)$(PREFIX)/lib/systemd/system/$(notdir $(f))')
	@$(call lay,system/systemd-bless-boot.service.d,$(PREFIX)/lib/systemd/system/systemd-bless-boot.service.d)
	@$(call lay,system-preset,$(PREFIX)/lib/systemd/system-preset)
	@$(call lay,tmpfiles.d,$(PREFIX)/lib/tmpfiles.d)
	@$(call lay,sysusers.d,$(PREFIX)/lib/sysusers.d)
	@$(call lay,dbus-1/system.d,$(PREFIX)/share/dbus-1/system.d)
	@$(call lay,dbus-1/system-services,$(PREFIX)/share/dbus-1/system-services)
	@$(call lay,dbus-1/interfaces,$(PREFIX)/share/dbus-1/interfaces)
	@$(call lay,polkit-1/actions,$(PREFIX)/share/polkit-1/actions)
	@$(call lay,polkit-1/rules.d,$(PREFIX)/share/polkit-1/rules.d)
	@$(call lay,catalog,$(PREFIX)/lib/systemd/catalog)
	@$(call lay,../docs/man,$(PREFIX)/share/man/man8)
	@$(call lay,completions/bash,$(PREFIX)/share/bash-completion/completions)
	@$(call lay,completions/zsh,$(PREFIX)/share/zsh/site-functions)
	@$(call lay,completions/fish,$(PREFIX)/share/fish/vendor_completions.d)
	@$(call lay,examples,$(PREFIX)/share/doc/bascule/examples)
	@install -d '$(DESTDIR)$(PREFIX)/sbin' '$(DESTDIR)$(PREFIX)/lib/bascule/health.d' \
		'$(DESTDIR)$(SYSCONFDIR)/bascule/bascule.toml.d' '$(DESTDIR)$(SYSCONFDIR)/bascule/health.d'
	@sed 's|/usr/bin/bascule|$(PREFIX)/bin/bascule|' '$(INSTALL_PARTS)sbin/flatcar-setgoodroot' > '$(DESTDIR)$(PREFIX)/sbin/flatcar-setgoodroot'
	@chmod 755 '$(DESTDIR)$(PREFIX)/sbin/flatcar-setgoodroot'
	@install -d '$(DESTDIR)$(SYSCONFDIR)/update-motd.d' && install -m 755 '$(INSTALL_PARTS)update-motd.d/60-bascule' '$(DESTDIR)$(SYSCONFDIR)/update-motd.d/'
	@if [ '$(INITRD)' = yes ]; then $(MAKE) --no-print-directory -C '$(INSTALL_PARTS)initrd' install DESTDIR='$(abspath $(DESTDIR))' PREFIX='$(PREFIX)'; fi
	@if [ '$(ENABLE)' = yes ]; then systemctl --quiet --root='$(DESTDIR)/' enable $(INSTALL_UNITS); fi

# What the operator wrote below SYSCONFDIR and what the agent keeps in its state directory stay.
uninstall:
	@if [ -e '$(DESTDIR)$(PREFIX)/lib/systemd/system/bascule.service' ] && command -v systemctl >/dev/null; then \
		systemctl --quiet --root='$(DESTDIR)/' disable $(INSTALL_UNITS) 2>/dev/null || true; fi
	@rm -rf '$(DESTDIR)$(INSTALL_CODE)' '$(DESTDIR)$(PREFIX)/share/doc/bascule' '$(DESTDIR)$(PREFIX)/lib/dracut/modules.d/90bascule'
	@cd '$(DESTDIR)$(PREFIX)' && rm -f bin/bascule bin/updatectl bin/update_engine_client sbin/flatcar-setgoodroot \
		lib/bascule/bascule-select lib/bascule/bascule-slot lib/systemd/system/bascule*.service lib/systemd/system/bascule*.timer \
		lib/systemd/system/systemd-bless-boot.service.d/10-bascule.conf \
		lib/systemd/system-preset/80-bascule.preset lib/systemd/catalog/bascule.catalog lib/tmpfiles.d/bascule.conf \
		share/dbus-1/system.d/com.coreos.update1.conf share/dbus-1/system.d/org.bascule.Update1.conf \
		share/dbus-1/interfaces/org.bascule.Update1.xml share/polkit-1/actions/org.bascule.Update1.policy \
		share/bash-completion/completions/updatectl share/zsh/site-functions/_updatectl share/fish/vendor_completions.d/updatectl.fish \
		share/initramfs-tools/hooks/bascule share/initramfs-tools/scripts/local-top/bascule; \
		rmdir lib/systemd/system/systemd-bless-boot.service.d 2>/dev/null || true
	@cd '$(DESTDIR)$(PREFIX)/share/man/man8' 2>/dev/null && rm -f $(notdir $(wildcard $(INSTALL_PARTS)../docs/man/*)) || true
	@rm -f '$(DESTDIR)$(SYSCONFDIR)/update-motd.d/60-bascule'
