"""Samplers of σ-GPT that settle several tokens at a time.

  exact.py     draft, verify in one order, resample: the law of one-by-one generation
  best_of.py   the original's burst: the best of N orders; biased, kept to compare
  unmask.py    the likeliest or surest tokens at once, as masked diffusion does; biased

Each is a compiled loop over `generate.State` (see core/generate.py).
"""
