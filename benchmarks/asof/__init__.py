"""The same training set made by sameworld and by what you would use instead: `python -m benchmarks.asof`. See docs/benchmarks.md."""
