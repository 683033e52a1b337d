# make demo    embed the standard library's documentation with a small model, and ask it questions
# make test    the test suite (a GPU's tests aside)
# make chaos   minutes of kills, lost nodes and failing storage; each dataset compared with an undisturbed one
# make check   style, types, and which package may import which
# make bench-smoke    five benchmarks at a tiny size: the encoder is faster than sentence-transformers, and kept fed
# make clean   remove what these made

PYTHON = python3

BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: demo test chaos check bench-smoke clean

demo: $(INSTALLED) demo/.corpus
	@$(BIN)/python -m jobs.embed examples/demo.yaml --model "$$($(BIN)/python examples/minilm.py)"
	@$(BIN)/python examples/search.py demo/embeddings --model "$$($(BIN)/python examples/minilm.py)" \
		"How do I compress a file?" \
		"parse a date from a string" \
		"draw a progress bar in the terminal"

# Two files at a time, the longest first: who starts Ray waits more than it computes.
test: $(INSTALLED)
	@$(BIN)/python -m pytest --quiet -m "not gpu and not chaos" --durations=10 \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder

chaos: $(INSTALLED)
	@$(BIN)/python -m pytest --quiet -m chaos --numprocesses 2 --dist loadfile --no-loadscope-reorder
	@$(BIN)/python -m tests.chaos.rounds --rounds $${ROUNDS:-15} --seed $${SEED:-1}

check: $(INSTALLED)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }

bench-smoke: $(INSTALLED) demo/.corpus
	@$(BIN)/python benchmarks/encoder.py demo/corpus --model "$$($(BIN)/python examples/minilm.py)" \
		--texts 400 --rounds 3 --ways ours-float32 ours-bfloat16 ours-int8 \
		--floors ours-float32=1.2 ours-bfloat16=2.2 ours-int8=1.5
	@$(BIN)/python benchmarks/gpu.py --tiny
	@$(BIN)/python benchmarks/growth.py 100
	@$(BIN)/python benchmarks/tiny.py 20 --model "$$($(BIN)/python examples/minilm.py)"
	@$(BIN)/python benchmarks/pipeline.py --model "$$($(BIN)/python examples/minilm.py)" \
		--nodes 1 --gpus 2 --rows-per-second 1000 --seconds 4 --fragment-rows 200 --most-starved 25

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "PYTHON=$(PYTHON) is missing or older than 3.11; name another, as in: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "installing into .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

# A stamp beside the shards: rewriting them would make new versions, and the run would embed everything anew.
demo/.corpus: examples/make_corpus.py | $(INSTALLED)
	@rm -rf demo/corpus
	@$(BIN)/python examples/make_corpus.py demo/corpus --max-docs 4000
	@touch $@
