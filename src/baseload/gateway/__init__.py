"""HTTP: requests to events."""
