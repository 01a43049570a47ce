"""Fixtures for every test of the project."""

pytest_plugins = ["chassis.testing.grpc", "chassis.testing.stack"]
