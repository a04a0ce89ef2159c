"""What driver and workers both know: the forms that cross, and the files they share."""
