"""Accelerators, prices, fabrics and published model shapes, with sources."""
