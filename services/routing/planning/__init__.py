"""Forecast, staffing, shifts, adherence and blended outbound calls. See docs/planning.md."""
