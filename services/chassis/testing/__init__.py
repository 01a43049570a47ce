"""What tests of every service share. Modules that load grpc are imported only where they are used."""

from __future__ import annotations

from chassis.testing.clock import FakeClock

__all__ = ["FakeClock"]
