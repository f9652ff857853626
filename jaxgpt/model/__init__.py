"""The transformer and what it is made of."""
