"""One latent of 256 states that changes at every step: nearly unlearnable.

python -m jaxgpt.train --config=configs/gssm_base.py

A loss near the entropy is no sign of learning here: its latent forgets its state within
a step, so that a model of token frequencies is nearly optimal. Structure shows on the
graphs of gssm_easy, gssm_low_entropy and gssm_two_chains. Exact 3.404, bigram 3.407,
unigram 3.409 nats per token of long sequences; not trained here.
"""

import pathlib

from jaxgpt.config import load, override

EASY = pathlib.Path(__file__).with_name("gssm_easy.py")


def get_config(variant=""):
    return override(
        load(f"{EASY}:{variant}", {}),
        {
            "gssm.graph": "data/graphs/base.yaml",
            "gssm.graph_seed": 0,
        },
    )
