"""Runs in the workers and their nannies: partitions, one input after the other, and what watches them."""
