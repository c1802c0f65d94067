"""The training loop: data, optimizer, checkpoints, export."""
