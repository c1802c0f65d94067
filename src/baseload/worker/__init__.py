"""The process that holds an engine and serves it."""
