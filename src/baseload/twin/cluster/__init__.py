"""A fleet of sites under the gang scheduler: jobs, services and faults over days, without single requests."""
