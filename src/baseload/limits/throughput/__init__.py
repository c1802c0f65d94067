"""Throughput of offline, server and interactive inference, held against MLPerf."""
