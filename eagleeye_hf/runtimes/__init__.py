"""Where networks run: timed there, and written for it."""
