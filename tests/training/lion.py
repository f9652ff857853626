"""Trains with an optimizer that the package does not have, registered here: Lion.

python -m tests.training.lion --config=... --config.optimizer.name=lion
"""

import optax

from jaxgpt import cli, train
from jaxgpt.training import optimizers


def lion(config, learning_rate):
    decay = config.optimizer.weight_decay
    return optax.lion(learning_rate, weight_decay=decay)


optimizers.OPTIMIZERS["lion"] = lion

if __name__ == "__main__":
    cli.main(train.command)
