"""Baseload: an operating layer that runs AI like a utility."""
