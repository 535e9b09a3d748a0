"""For tests, yours and ours: a brute-force oracle, histories that break things, conformance suites. Nothing else may import this."""
