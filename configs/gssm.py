"""A transformer on sequences of a graph whose exact likelihood is known.

python -m jaxgpt.train --config=configs/gssm.py:easy

A variant is a graph of data/graphs/; NAME-tiny is its size for tests. Losses are nats
per token. After training (2 cores of an Intel Xeon) and, of long sequences, untrained:

easy           a slow latent behind a faster one: 900 steps in 35 CPU seconds end
               0.0092 ± 0.0011 above the exact 1.306; bigram 0.329, unigram 0.798 above
low_entropy    four independent latents, nearly deterministic: 1000 steps in 38 seconds
               end 0.0006 ± 0.0001 above the exact 0.559; bigram 0.231, unigram 1.205
two_chains     two chains of two latents, 1,296 joint states: 1200 steps in 45 seconds
               end 0.181 ± 0.005 above the exact 2.036; bigram 0.601, unigram 0.915
slow_evolving  four latents that mostly keep their state: exact 2.043, bigram 2.332,
               unigram 3.206
dead_mode_env  four latents that mostly fall back to state 0: exact 2.560, bigram 2.571,
               unigram 2.651, so there is little to learn beyond pairs of tokens
base           one latent of 256 states: exact 3.404, bigram 3.407, unigram 3.409
sparse         four independent latents: exact 3.325, bigram 3.342, unigram 3.379
dense          four latents that read each other: exact 3.358, bigram 3.369, unigram
               3.393
icl_chain      a chain drawn anew for every sequence (2 cores of an AMD EPYC, test
               sequences): 3000 steps in 54 CPU seconds end 0.0094 ± 0.0004 above the
               Bayes floor 1.633; given the chains 1.224, bigram 2.069, unigram 2.080
icl_hmm        the same with a slow latent that chooses one of three chains: 63 seconds,
               0.0094 to 0.0096 ± 0.0007 above a floor of 1.685
debug          a small graph with feedback from X, to see that everything runs: exact
               3.425, bigram 3.427, unigram 3.425

A loss near the entropy is no sign of learning on base, sparse, dense and debug: their
latents change almost at random, so token frequencies alone are nearly optimal. The
alphas of slow_evolving and dead_mode_env are ours: only the names of the original's
graphs were available.
"""

import math

from jaxgpt.config import base, override, with_variant

# The original's transformer.
NANOLLAMA = {
    "model.positions": "rope",
    "model.rope_frequency": 2 * math.pi,
    "model.rope_pairs": "neighbours",
    "model.norm": "rms",
    "model.activation": "swiglu",
    "model.tied_head": False,
    "model.init": "fan_in",
    "optimizer.beta2": 0.95,
    "optimizer.decays": "all",
}
TRAINING = NANOLLAMA | {
    "system": "gssm",
    "seed": 0,
    "steps": 900,
    "batch_size": 32,
    "data.path": "",
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 64,
    "model.block_size": 64,
    "model.feed_forward_width": 256,
    "optimizer.learning_rate": 3e-3,
    "optimizer.min_learning_rate": 3e-5,
    "eval_interval": 150,
    "checkpoint_interval": 450,
}
TINY = {
    "model.n_embd": 16,
    "model.block_size": 16,
    "steps": 20,
    "batch_size": 8,
    "eval_interval": 10,
    "eval_sequences": 32,
    "checkpoint_interval": 10,
    "optimizer.warmup_steps": 5,
}
IN_CONTEXT = {"gssm.context": "sequence", "steps": 3000, "eval_interval": 500}
GRAPHS = {
    "easy": {"gssm.graph_seed": 1},
    "low_entropy": {"steps": 1000},
    "two_chains": {"steps": 1200},
    "slow_evolving": {},
    "dead_mode_env": {},
    "base": {},
    "sparse": {},
    "dense": {},
    "debug": {
        "steps": 100,
        "batch_size": 16,
        "model.block_size": 32,
        "eval_interval": 50,
        "checkpoint_interval": 50,
    },
    "icl_chain": IN_CONTEXT,
    "icl_hmm": IN_CONTEXT,
}


def get_config(variant=""):
    name, _, size = variant.partition("-")
    name = name or "easy"
    graphs = {
        name: {"gssm.graph": f"data/graphs/{name}.yaml", **changes}
        for name, changes in GRAPHS.items()
    }
    # The size first: debug has batches of its own, also when it is tiny.
    config = with_variant(override(base(), TRAINING), size, {"tiny": TINY})
    return with_variant(config, name, graphs)
