"""Map-reduce by key: grouped in workers, brought together in the driver, folded in workers."""
