"""What answers are held to."""

DEADLINE_SECONDS = 0.050
"""Of the models in `world.py`."""
TOLERANCE_SECONDS = 0.020
"""What an answer may be later than its deadline, in 999 cases of 1,000."""
