"""σ-GPT (arXiv 2404.09562): a GPT that generates in any order."""
