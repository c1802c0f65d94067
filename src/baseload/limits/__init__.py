"""Physics and economics, pure: how long, how many bytes, how many joules, how much money."""
