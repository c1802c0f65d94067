"""Training: what a step takes, whether it fits, what a run costs with failures; held against MLPerf."""
