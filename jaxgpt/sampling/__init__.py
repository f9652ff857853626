"""Generation: decode state, logits to tokens, prompts, display."""
