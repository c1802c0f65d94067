"""The real world: clock, driver, journal store, launchers, meters."""
