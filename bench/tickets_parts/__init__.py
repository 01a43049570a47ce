"""The parts of `bench.tickets`."""
