"""Samplers of σ-GPT that decode several tokens in a forward pass.

  speculative.py  draft, verify in one order, resample: the distribution of decoding one
                  by one, exactly
  best_of.py      the original's burst: the best of N orders; biased, kept to compare
  unmask.py       the likeliest or surest tokens at once, as masked diffusion; biased

Each is a compiled loop over `DecodeState` (see sampling/state.py).
"""
