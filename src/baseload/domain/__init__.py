"""Frozen values: work, model, fleet, tenant, money, units, events, actions, errors."""
