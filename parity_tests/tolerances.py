"""Every tolerance of the suite, in one place.

float32: what two correct programs may differ by; the float64 rows show that no more
than rounding is behind it: there the same comparison must agree ten thousand times
better, which an error of meaning never would. Relative figures are to the largest
entry of the array compared. No test loosens its own.
"""

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
}
FLOAT64 = {
    "logits": 1e-10,
    "loss": 1e-12,
    "gradient": 1e-10,
    "parameters after a step": 1e-10,
    "loss of a trajectory": 1e-10,
}
# Nats between the output distributions in bfloat16 and in float32.
BFLOAT16_KL = 2e-3
