"""Tasks for σ-GPT beyond text: sequences that are generated, judged and drawn."""
