"""Images: streams, disjoint splits, transforms."""
