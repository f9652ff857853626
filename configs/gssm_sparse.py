"""Four independent latents of 4 states: nearly unlearnable.

python -m jaxgpt.train --config=configs/gssm_sparse.py

A loss near the entropy is no sign of learning here: with alpha 1 its latents change
nearly at random, so that a model of token frequencies is nearly optimal. Structure
shows on the graphs of gssm_easy, gssm_low_entropy and gssm_two_chains. Exact 3.325,
bigram 3.342, unigram 3.379 nats per token of long sequences; not trained here.
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/sparse.yaml",
            "gssm.graph_seed": 0,
        },
    )
