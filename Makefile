# The main commands are `make run` and `make test`; CONTRIBUTING.md lists all.
#
#   make run [GUESTS=alpha-beta] [MACHINE=two] [KERNEL=6.12] [CPU=cortex-a72] [DISKS=keep] [APPEND=…] [SERIAL=/tmp/serial]
#   make test [FILTER=…]
#   make soak [HOURS=1] [PART=mix|resets] [SEED=…]

.PHONY: run image test soak bench lint doc clean setup

QEMU = tools/cargo run --package ballast-qemu --

# $(call option,NAME,VARIABLE): --NAME 'value', if the variable is set.
option = $(if $($(2)),--$(1) '$($(2))')
SOAK = $(call option,hours,HOURS) $(call option,part,PART) $(call option,seed,SEED)
RUN = $(call option,machine,MACHINE) $(call option,guests,GUESTS) $(call option,kernel,KERNEL) \
      $(call option,cpu,CPU) $(call option,disks,DISKS) $(call option,append,APPEND) $(call option,serial,SERIAL)

run: setup
	$(QEMU) run $(RUN)

image: setup
	$(QEMU) image

test: setup
	$(QEMU) test $(FILTER)

soak: setup
	tools/cargo test --quiet --package system-tests --test soak -- $(SOAK)

bench:
	@tools/setup.sh bench
	$(QEMU) bench $(PART)

lint:
	@tools/setup.sh lint
	@tools/lint.sh

doc: setup
	tools/cargo doc --workspace --no-deps --document-private-items

clean:
	rm -rf target tests/guests/target

setup:
	@tools/setup.sh $(filter debian,$(GUESTS))
