"""The log, and how what the functions print comes into it."""
