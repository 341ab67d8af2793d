"""What may be chosen: strategies, budgets, the space of strategies and its sampling."""
