"""The demo: a day of calls through the whole platform, by simulated callers and agents on the real APIs."""
