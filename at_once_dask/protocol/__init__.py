"""What driver and workers both know: the forms that cross between them, and the files they share."""
