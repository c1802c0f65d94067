"""Choices, pure functions: admission, batching, routing, scaling, healing."""
