"""Graph-structured sequential models: data whose exact likelihood is known."""
