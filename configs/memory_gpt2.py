"""GPT-2 with an associative memory, on documents.

python -m scripts.wikitext                                    # needs the network
python -m jaxgpt.train --config=configs/memory_gpt2.py        # needs GPT-2's weights

pip install -e '.[memory,plays]'; python -m scripts.plays
python -m jaxgpt.train --config=configs/memory_gpt2.py:laptop

Without any training an imported GPT-2 looks up your own documents:

python -m jaxgpt.convert --format=gpt2 --source=GPT2_FOLDER --workdir=runs/gpt2
python -m jaxgpt.memory ingest --workdir=runs/gpt2 --memory=notes.memory notes/

variant      what                           hardware             time    val. loss, nats
(none)       124M on WikiText-2             a GPU or TPU         (not run yet)
:laptop      3 layers, 128, block 64,       2 cores, AMD EPYC    34 s    4.026, 3.964
             30 plays, seeds 0 and 1
:laptop-off  the same, reading masked       the same             28 s    4.440, 4.414
:tiny        2 layers, 16, block 16         the same             seconds

Times are CPU time. Losses are validation losses during training, on the first segments
of four plays; docs/memory.md has the test plays.
"""

from jaxgpt.config import base, override, with_variant


def get_config(variant=""):
    config = override(
        base(),
        {
            # VardaGPT's settings.
            "system": "memory",
            "init_from": "gpt2",
            "steps": 10000,
            "batch_size": 2,
            "patience": 5,
            "data.path": "data/wikitext2",
            "data.tokenizer": "gpt2",
            "model.n_layer": 12,
            "model.n_head": 12,
            "model.n_embd": 768,
            "model.block_size": 1024,
            "model.bias": True,
            "model.activation": "gelu_tanh",
            "memory.memory_size": 10000,
            "memory.memory_dim": 768,
            "memory.num_search_results": 5,
            "memory.forgetfulness_factor": 0.001,
            "memory.delete": True,
            "optimizer.learning_rate": 1e-4,
            "optimizer.min_learning_rate": 1e-5,
        },
    )
    laptop = {
        "init_from": "",
        "steps": 500,
        "batch_size": 16,
        "patience": 0,
        "data.path": "data/plays",
        "data.tokenizer": "sentencepiece",
        "data.sentencepiece_type": "bpe",
        "data.vocab_size": 1024,
        "model.n_layer": 3,
        "model.n_head": 4,
        "model.n_embd": 128,
        "model.block_size": 64,
        "model.bias": False,
        "model.activation": "gelu",
        # Larger token embeddings: they, and with them addresses, change less per step.
        "model.init": "fan_in",
        "memory.memory_size": 1024,
        "memory.memory_dim": 128,
        "memory.num_search_results": 2,
        "memory.forgetfulness_factor": 0.0,
        "memory.delete": False,
        "optimizer.learning_rate": 3e-3,
        "optimizer.min_learning_rate": 3e-4,
        "optimizer.warmup_steps": 50,
        "eval_interval": 250,
    }
    variants = {
        "laptop": laptop,
        "laptop-off": laptop | {"memory.reading": "off"},
        "tiny": laptop
        | {
            "steps": 20,
            "batch_size": 4,
            "data.tokenizer": "char",
            "data.vocab_size": 0,
            "model.n_layer": 2,
            "model.n_head": 2,
            "model.n_embd": 16,
            "model.block_size": 16,
            "memory.memory_size": 64,
            "memory.memory_dim": 16,
            "eval_interval": 10,
            "eval_sequences": 16,
            "checkpoint_interval": 10,
        },
    }
    return with_variant(config, variant, variants)
