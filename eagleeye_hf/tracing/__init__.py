"""Network -> channel graph, by shadow execution."""
