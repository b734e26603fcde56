PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test test-all test-gpu lint

# From a fresh clone to the picture: the reviews task, three runs on two cores, KL against win rate.
# At beta 0.024 offline IPO's optimum is as far from SFT as online IPO's at the default 0.1: 2.7 nats.
demo: .venv/installed
	$(PY) -m prepare --out setups/reviews
	rm -rf runs/demo
	export OMP_NUM_THREADS=1; \
	(export TQDM_POSITION=1; $(PY) ipo_offline.py --steps 240 --out runs/demo/offline && \
	$(PY) ipo_offline.py --steps 240 --beta 0.024 --out runs/demo/offline_beta_0.024) & offline=$$!; \
	$(PY) ipo_online.py --steps 240 --out runs/demo/online; online=$$?; wait $$offline && exit $$online
	$(PY) -m paper frontier runs/demo/offline runs/demo/offline_beta_0.024 runs/demo/online \
		--out runs/demo/frontier --title "IPO, same setup and steps: offline and online"

test: .venv/installed-test
	HF_HUB_OFFLINE=1 $(PY) -m pytest

lint: .venv/installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# The same with more patience: a run is killed 30 times instead of 5.
test-all: .venv/installed-test
	HF_HUB_OFFLINE=1 TANDEM_KILLS=30 $(PY) -m pytest

# What only a GPU can show. It takes a few minutes, and a PyTorch that was built for CUDA.
test-gpu: .venv/installed-test
	HF_HUB_OFFLINE=1 TANDEM_DEVICE=cuda $(PY) -m pytest --numprocesses=0 tests/test_fast.py

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-test: requirements-test.txt .venv/installed
	$(PY) -m pip install --quiet -r requirements-test.txt
	touch $@
