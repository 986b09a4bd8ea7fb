# Measurements on a Hopper GPU. PEERS: where benchmarks/get_fa3.sh put FlashAttention-3; OUT: where results and pictures go;
# BENCH: more options of hopper_forward, such as BENCH="--cells D128:causal --peers fcgen,fa3,cudnn --budget-s 300".
PYTHON ?= python
PEERS ?= .peers
OUT ?= out
BENCH ?=

.PHONY: bench bench-forward bench-gemm bench-accuracy bench-all bench-dry test

bench: bench-forward bench-gemm bench-accuracy

bench-forward:
	$(PYTHON) -m benchmarks.hopper_forward --fa3 $(PEERS) --json $(OUT)/forward.json --plots $(OUT) $(BENCH)

bench-gemm:
	$(PYTHON) -m benchmarks.gemms --json $(OUT)/gemm.json

bench-accuracy:
	$(PYTHON) -m benchmarks.accuracy --fa3 $(PEERS) --json $(OUT)/accuracy.json

# What matters most first, within SECONDS; what is finished by then is in OUT.
SECONDS ?= 480
bench-all:
	PYTHON=$(PYTHON) benchmarks/hopper_all.sh $(OUT) $(SECONDS) $(PEERS)

# All of it on a pretend GPU, tiny, in about a minute: needs torch, with or without CUDA. Its numbers mean nothing.
bench-dry:
	$(PYTHON) -m benchmarks.dry benchmarks.hopper_forward --json $(OUT)/dry/forward.json --plots $(OUT)/dry $(BENCH)
	$(PYTHON) -m benchmarks.dry benchmarks.gemms --json $(OUT)/dry/gemm.json
	$(PYTHON) -m benchmarks.dry benchmarks.accuracy --json $(OUT)/dry/accuracy.json
	$(PYTHON) -m benchmarks.dry benchmarks.search_schedules --d 64 --limit 3 --json $(OUT)/dry/search.json

test:
	$(PYTHON) -m pytest
