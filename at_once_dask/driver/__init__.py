"""The loop in the driver: inputs are cut into partitions, sent, and settled."""
