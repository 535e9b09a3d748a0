"""The same model served by sameworld and by what you would use instead: requests a second, latencies, processor time a request."""
