"""Machines, sans-IO: router, batcher, fleet, ledger and the control machine that joins them; ports."""
