"""What is seen of a run while it goes on: progress, and the page "At once"."""
