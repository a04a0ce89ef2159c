"""The things that driver and workers both know: the forms that cross, the files they share."""
