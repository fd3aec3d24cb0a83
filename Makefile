# What one types most. Each target is one line that can be typed itself.
.PHONY: install train test lint bench

install:
	pip install -r requirements.txt -r benchmarks/requirements.txt

train:
	accelerate launch train.py --config configs/quickstart.yaml

test:
	python -m pytest tests

lint:
	ruff check . && ruff format --check . && ty check

bench:
	python -m benchmarks.throughput --rounds 3
