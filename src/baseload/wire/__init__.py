"""Bytes to values and back: journal records, OpenAI schemas, settings files."""
