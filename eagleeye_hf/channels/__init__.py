"""What can be removed from a network, and what it costs."""
