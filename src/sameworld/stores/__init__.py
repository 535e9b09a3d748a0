"""The online world's state: the event log, which is the truth, and the store, which is an index that can be rebuilt from it."""
