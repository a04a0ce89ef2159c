"""The user's program: its text, its objects, and how they cross to the workers."""
