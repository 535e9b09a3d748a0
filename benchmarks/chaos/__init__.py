"""A server under load while things are broken on purpose: `python -m benchmarks.chaos`."""
