"""What each ATen operator does to channel ids."""
