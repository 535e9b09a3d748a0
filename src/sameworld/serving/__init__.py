"""Decisions as pure functions: which tier answers, when a breaker lets a model back in. No clock, no socket, no file."""
