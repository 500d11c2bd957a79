# Everything that a user or contributor runs. Each target sets up what it needs, in .venv.

PYTHON ?= python3
OUT ?= out/demo

.PHONY: help setup demo docs docs-serve examples reproduce test test-all adapters page ray bench speed
.PHONY: peers engine batch faults lint clean

help:
	@echo "make demo       complete a real digit with every method; writes pictures and a table to $(OUT)"
	@echo "make test       run the quick tests"
	@echo "make test-all   run all tests; CROSSCODING_DATA and CROSSCODING_MODELS add those on real data"
	@echo "make adapters   test the adapters on the libraries themselves, in environments of their own"
	@echo "make docs       build the documentation as a site, into out/site; make docs-serve shows it"
	@echo "make examples   run the examples and write their pages, docs/examples"
	@echo "make page       test crosscoding serve, its page in Chromium included, in an environment of its own"
	@echo "make ray        test batch runs on a small Ray cluster, in an environment of its own"
	@echo "make reproduce  draw the paper's figures from small runs, in minutes, into out/reproduce"
	@echo "make bench      run the next four, in this order (hours, the first time)"
	@echo "make speed      measure the speed of the paper's methods"
	@echo "make peers      measure NumPyro, Pyro and BlackJAX on the same queries"
	@echo "make engine     measure the cascade against its targets, for docs/benchmarks.md"
	@echo "make batch      measure batch runs: rates, memory over ten million rows, start-up"
	@echo "make faults     inject faults into batch runs, also on a small Ray cluster (an hour)"
	@echo "make lint       check style, types and layers"
	@echo "make clean      remove .venv and generated files"

setup: .venv/ready

COMPANIONS := crosscoding-faces/pyproject.toml crosscoding-families/pyproject.toml

.venv/ready: requirements.lock pyproject.toml $(COMPANIONS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crosscoding needs Python 3.11 or later; choose one with make PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv from requirements.lock (once; torch is large) ..."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable . --editable crosscoding-faces \
		--editable crosscoding-families
	@touch $@

demo: setup
	@echo "Completing a real digit with every method of the paper (about half a minute) ..."
	@.venv/bin/crosscoding demo --out $(OUT)

# Real digits and faces: CROSSCODING_DATA=folder CROSSCODING_MODELS=folder make reproduce
reproduce: setup
	@.venv/bin/crosscoding reproduce all --quick --out out/reproduce

# One thread per worker, as more would wait for each other.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: setup
	@echo "Running the quick tests (up to six minutes on two cores) ..."
	@$(PYTEST) -m "not slow"

test-all: setup
	@echo "Running all tests (a quarter of an hour on two cores) ..."
	@$(PYTEST)

ADAPTERS := .venv-adapters

# SDV and scvi-tools have environments of their own, as SDV needs pandas 2.
adapters: $(ADAPTERS)/ready .venv-sdv/ready .venv-scvi/ready
	@$(ADAPTERS)/bin/python -m pytest tests/adapters
	@.venv-sdv/bin/python -m pytest $(addprefix tests/adapters/test_,ctgan.py sdv.py docs.py examples.py)
	@.venv-scvi/bin/python -m pytest $(addprefix tests/adapters/test_,scvi.py docs.py examples.py)

# The tests of the page need Chromium on the path, and are skipped without it.
page: .venv-serve/ready
	@OMP_NUM_THREADS=1 .venv-serve/bin/python -m pytest tests/serve tests/cli/test_serve.py

# Batch runs on Ray, and the example on a cluster of two nodes; other tests of batches are in make test.
ray: .venv-ray/ready
	@OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest tests/batch/test_ray.py
	@OMP_NUM_THREADS=1 .venv-ray/bin/python examples/batch.py

$(ADAPTERS)/ready: requirements.lock requirements-adapters.lock pyproject.toml $(COMPANIONS)
	@echo "Setting up $(ADAPTERS) from requirements.lock and requirements-adapters.lock (once) ..."
	@test -x $(ADAPTERS)/bin/python || $(PYTHON) -m venv $(ADAPTERS)
	@$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements-adapters.lock
	@$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable . --editable crosscoding-faces \
		--editable crosscoding-families
	@touch $@

.venv-%/ready: requirements-%.lock pyproject.toml
	@echo "Setting up .venv-$* from requirements-$*.lock (once) ..."
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements-$*.lock
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable . --editable crosscoding-faces
	@touch $@

# Material for MkDocs 9 announces MkDocs 2, which this site does not use.
MKDOCS := NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs

docs: .venv-docs/ready
	@$(MKDOCS) build --strict
	@echo "built out/site: open out/site/index.html, or make docs-serve, where search works too"

docs-serve: .venv-docs/ready
	@$(MKDOCS) serve --dev-addr 127.0.0.1:8000

.venv-docs/ready: requirements-docs.lock pyproject.toml
	@echo "Setting up .venv-docs from requirements-docs.lock (once) ..."
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements-docs.lock
	@touch $@

# In the environments of make adapters, as each library needs its own.
RECORD := docs/tools/examples.py
examples: setup $(ADAPTERS)/ready .venv-sdv/ready .venv-scvi/ready
	@.venv/bin/python $(RECORD)
	@$(ADAPTERS)/bin/python $(RECORD) pythae_picture diffusers_picture onnx_file exported_program
	@.venv-sdv/bin/python $(RECORD) ctgan_table sdv_table
	@.venv-scvi/bin/python $(RECORD) scvi_counts

# One after the other, even under make -j, as they would slow each other down. If the peers cannot be
# installed, their earlier results stay.
bench: setup
	@$(MAKE) --no-print-directory speed
	-@$(MAKE) --no-print-directory $(PEERS)/.venv/ready && $(MAKE) --no-print-directory peers
	@$(MAKE) --no-print-directory engine
	@$(MAKE) --no-print-directory batch

speed: setup
	@.venv/bin/python benchmarks/speed.py

PEERS := benchmarks/peers

$(PEERS)/.venv/ready: $(PEERS)/requirements.txt
	@echo "Setting up $(PEERS)/.venv from $< (once) ..."
	@test -x $(PEERS)/.venv/bin/python || $(PYTHON) -m venv $(PEERS)/.venv
	@$(PEERS)/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $< || \
		{ grep -v '^#' $< | xargs -n 1 $(PEERS)/.venv/bin/python -m pip install --quiet; exit 1; }
	@touch $@

# The leading minus: a peer that cannot be installed gets a row that says so.
peers: setup
	-@$(MAKE) --no-print-directory $(PEERS)/.venv/ready
	@.venv/bin/python $(PEERS)/run.py

# Real digits and faces: CROSSCODING_DATA=folder CROSSCODING_MODELS=folder make engine
engine: setup
	@.venv/bin/python benchmarks/engine/run.py

batch: setup
	@.venv/bin/python benchmarks/batch/rates.py

faults: .venv-ray/ready
	@OMP_NUM_THREADS=1 .venv-ray/bin/python benchmarks/batch/faults.py

lint: setup
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/pyright --pythonpath .venv/bin/python
	@.venv/bin/lint-imports

clean:
	rm -rf .venv .venv-serve .venv-ray .venv-docs $(ADAPTERS) $(PEERS)/.venv out dist build
