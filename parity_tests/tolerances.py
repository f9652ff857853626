"""Every tolerance of the suite, in one place.

float32: what two correct programs may differ by; the float64 rows show that no more
than rounding is behind it: there the same comparison must agree ten thousand times
better, which an error of meaning never would. Relative figures are to the largest
entry of what is compared. No test loosens its own. Those of `measures` have the names
that docs/parity.md has them under.
"""

# Nats between the output distributions in bfloat16 and in float32.
BFLOAT16_KL = 2e-3

FLOAT32 = {
    "activation": 2e-5,
    "logits": 2e-5,
    "loss": 1e-6,
    "gradient": 2e-5,
    "logits of teenyGPT": 1e-5,
    "gradient of teenyGPT": 1e-5,
    # Adam divides by the gradient's size, so a gradient that is zero but for rounding
    # (the key's bias: softmax does not see it) moves by up to the learning rate.
    "parameters after a step": 2e-5,
    # 2.5e-5 on a processor without AVX-512.
    "parameters after 60 steps": 5e-5,
    "loss of a trajectory": 1e-5,
    "loss of a trained model": 1e-5,
    # What `measures` finds.
    "logits through the cache": 2e-5,
    "matrices after 2 AdamW steps": 2e-5,
    "matrices after 12 AdamW steps": 5e-5,
    "matrices after 50 AdamW steps": 5e-5,
    "loss of 50 AdamW steps": 1e-5,
    "loss of 20 steps after a checkpoint": 1e-5,
    "matrices 20 steps after a checkpoint": 5e-5,
    "loss of 20 steps of PyTorch from our export of it": 1e-5,
    # RoPE's float32 cosines are NumPy's in our exports; the others' are equal.
    "logits of PyTorch from our export": 1e-5,
    "arrays equal after import, export, import": 0,
    "greedy tokens": 0,
    # Learning rates.
    "nanogpt": 1e-6,
    "sigma-gpt": 1e-6,
    "nats lost by bfloat16 (by autocast)": BFLOAT16_KL,
    "ratio of the two": 2,
    # Standard errors.
    "share kept": 4,
    "mean loss": 4,
    "standard deviation": 4,
    "difference of the factor on it from 1 / share": 1e-6,
    # Its standard error is 0.022.
    "spread between rows, relative to a binomial's": 0.1,
    "nats of a token": 5e-6,
    "nats of a sequence": 1e-4,
}
FLOAT64 = {
    "logits": 1e-10,
    "loss": 1e-12,
    "gradient": 1e-10,
    "logits through the cache": 1e-10,
    "matrices after 2 AdamW steps": 1e-10,
    "matrices after 50 AdamW steps": 1e-10,
    "loss of 50 AdamW steps": 1e-10,
    "nats of a token": 1e-8,
    "nats of a sequence": 1e-8,
}
