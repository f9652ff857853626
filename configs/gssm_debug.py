"""A small graph with feedback from X, to see that everything runs.

python -m jaxgpt.train --config=configs/gssm_debug.py

A loss near the entropy is no sign of learning here: with alpha 1000 its latents are
noise, so that a model of token frequencies is nearly optimal. Structure shows on the
graphs of gssm_easy, gssm_low_entropy and gssm_two_chains. Exact 3.425, bigram 3.427,
unigram 3.425 nats per token of long sequences; not trained here.
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/debug.yaml",
            "gssm.graph_seed": 0,
            "steps": 100,
            "batch_size": 16,
            "model.block_size": 32,
            "eval_interval": 50,
            "checkpoint_interval": 50,
        },
    )
