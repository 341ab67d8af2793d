"""Looking for the best strategy; knows nothing of images or models beyond a score."""
