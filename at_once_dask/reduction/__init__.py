"""Map-reduce by key: grouped in the workers, brought together in the driver, folded in the workers."""
