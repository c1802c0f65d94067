"""Plans: a search over limits for the accelerators, layouts, batches and sites that meet stated service levels."""
