"""Runs in the workers and their nannies: partitions, input after input, and who watches."""
