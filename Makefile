.PHONY: install test slow lint format ci

install:
	pip install -e ".[test]"

test:
	pytest

slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

ci:
	.ci/run
