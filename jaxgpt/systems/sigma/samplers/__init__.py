"""Samplers of σ-GPT.

  speculative.py  draft, verify in one order, resample: several tokens a forward pass,
                  with exactly the distribution of decoding one by one
  best_of.py      the original's burst: the best of N orders; biased, kept to compare
  unmasking.py    what masked diffusion models do: several tokens a pass that do not see
                  each other; biased, kept to compare
  one_by_one.py   one token a forward pass, in a fixed order or lowest entropy first
  fastest.py      which of the exact ones is faster on this machine: --sampler=auto

Each but the last has a `make_sampler(sampling, max_draft_length)`, which
`config.SAMPLERS` names. It returns a compiled loop `advance(decoder, params, state,
decode_params, limit)`, from a `DecodeState` of `prefill`, which is donated, to the one
after about `limit` forward passes, or with every slot up to `decode_params.end_B`
filled.
"""
