"""Trains with an optimizer that the package does not have, registered here: Muon.

python -m tests.training.muon --config=... --config.optimizer.name=muon
"""

import optax

from jaxgpt import cli, train
from jaxgpt.training import optimizers


def muon(config, learning_rate):
    decay = config.optimizer.weight_decay
    return optax.contrib.muon(learning_rate, weight_decay=decay)


optimizers.OPTIMIZERS["muon"] = muon

if __name__ == "__main__":
    cli.main(train.command)
