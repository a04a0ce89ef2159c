"""The views of a run while it goes on: progress, and the page "At once"."""
