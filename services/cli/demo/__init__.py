"""The demo: a day of calls through the whole platform, with simulated callers and agents on the real gRPC APIs."""
