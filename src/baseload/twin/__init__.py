"""The simulated world: clock, faults, workloads, checkers, report."""
