"""Every configuration field, once: its default, its meaning, its limits."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Field:
    """One configuration field: its type is the type of its default."""

    default: int | float | str | bool
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None


MAX_SEED = 2**32 - 1  # JAX's keys hold no more: larger seeds wrap around or overflow.
SYSTEMS = ("sigma", "sigma-task", "causal", "gssm", "memory")
POSITIONS = ("learned", "sinusoidal", "learned-sinusoidal", "alibi", "rope", "none")
TOKENIZERS = ("char", "gpt2", "sentencepiece")
NORMS = ("layer", "rms", "none")
ORDERS = ("random", "left-to-right", "fractal", "curriculum")

FIELDS: dict[str, Field] = {
    "system": Field("sigma", "what is trained", SYSTEMS),
    "seed": Field(1337, "seeds every random stream", minimum=0),
    "steps": Field(5000, "optimizer steps", minimum=1),
    "batch_size": Field(64, "sequences per step over all devices", minimum=1),
    "accumulation": Field(1, "micro-batches a step is split into", minimum=1),
    "init_from": Field(
        "", "start from the parameters of this run, or of a GPT-2 folder or name"
    ),
    "model.n_layer": Field(6, "transformer blocks", minimum=1),
    "model.n_head": Field(6, "attention heads", minimum=1),
    "model.n_embd": Field(384, "width of the residual stream", minimum=1),
    "model.block_size": Field(256, "longest sequence, in tokens", minimum=2),
    "model.vocab_size": Field(0, "tokens known; 0 takes the tokenizer's", minimum=0),
    "model.dropout": Field(0.0, "probability of dropping an activation", minimum=0),
    "model.positions": Field(
        "learned",
        "how a token knows where it stands; σ-GPT's are learned or sinusoidal",
        POSITIONS,
    ),
    "model.sinusoid_scale": Field(
        0.03, "sinusoidal: their amplitude, about that of fresh token embeddings"
    ),
    "model.rope_theta": Field(
        1e4, "RoPE: ratio of the fastest frequency to the slowest", minimum=1
    ),
    "model.rope_frequency": Field(
        1.0, "RoPE: the fastest frequency, in radians per token"
    ),
    "model.rope_pairs": Field(
        "halves",
        "RoPE: channel k of a head turns with k + half of its width, or 2k with 2k + 1",
        ("halves", "neighbours"),
    ),
    "model.norm": Field("layer", "before attention and feed-forward", NORMS),
    "model.norm_epsilon": Field(1e-5, "added to a norm's variance", minimum=0),
    "model.final_norm": Field(True, "a norm before the logits too"),
    "model.bias": Field(
        False, "biases in layer norms, linear layers (not SwiGLU's) and an untied head"
    ),
    "model.attention_bias": Field(True, "with model.bias: in attention too"),
    "model.activation": Field(
        "gelu",
        "of the feed-forward; gelu_tanh is OpenAI's, swiglu has a gate",
        ("gelu", "gelu_tanh", "relu", "swiglu"),
    ),
    "model.feed_forward_width": Field(
        0, "0 is 4 n_embd, or for swiglu two thirds of it: as many weights", minimum=0
    ),
    "model.tied_head": Field(True, "logits from the token table, not from their own"),
    "model.init": Field(
        "gpt2",
        "of matrices: Gaussian of deviation 0.02, less into the residual stream; or "
        "width_in ^ -0.5, cut off at three deviations",
        ("gpt2", "fan_in"),
    ),
    "model.key_width": Field(
        0, "of a head's queries and keys; 0 is that of its values", minimum=0
    ),
    "model.qk_norm": Field(False, "bring queries and keys to root mean square 1"),
    "model.dtype": Field(
        "float32",
        "operands of matrix products; parameters, softmax and loss stay float32",
        ("float32", "bfloat16", "float64"),
    ),
    "model.remat": Field(
        "none",
        "computed again in the backward pass, to save memory: nothing, all of a block "
        "but its matrix products, or all of it",
        ("none", "dots", "full"),
    ),
    "model.scan_layers": Field(
        False, "compile one block and loop over the layers: minutes less for deep ones"
    ),
    "optimizer.learning_rate": Field(1e-3, "peak learning rate", minimum=0),
    "optimizer.min_learning_rate": Field(1e-4, "where the cosine ends", minimum=0),
    "optimizer.warmup_steps": Field(100, "linear warmup, in steps", minimum=0),
    "optimizer.warmup_from_zero": Field(
        False, "the first step's rate is 0, not peak / (warmup_steps + 1)"
    ),
    "optimizer.decay_steps": Field(
        0, "step at which the cosine ends; 0 means steps", minimum=0
    ),
    "optimizer.rates": Field(
        "",
        "instead of the cosine, rates from steps on, like 2000:2e-5,6000:4e-6; before "
        "them learning_rate",
    ),
    "optimizer.beta1": Field(0.9, "AdamW: decay of the first moment", minimum=0),
    "optimizer.beta2": Field(0.99, "AdamW: decay of the second moment", minimum=0),
    "optimizer.weight_decay": Field(0.1, "AdamW: decay of parameters", minimum=0),
    "optimizer.decays": Field(
        "matrices", "AdamW: which parameters decay", ("matrices", "all")
    ),
    "optimizer.grad_clip": Field(
        1.0, "largest global gradient norm; 0 never clips", minimum=0
    ),
    "optimizer.ema_decay": Field(
        0.0,
        "average parameters with this decay a step, evaluate and sample with the "
        "average; 0 keeps none",
        minimum=0,
    ),
    "data.path": Field(
        "data/shakespeare.txt",
        "a text file, a folder of text files, or a folder of nanoGPT .bin files; of "
        "gssm an HDF5 file, or empty to draw sequences as they are needed; of memory a "
        "folder of documents, or empty for the recall task",
    ),
    "data.tokenizer": Field("char", "vocabulary of the text", TOKENIZERS),
    "data.vocab_size": Field(
        0, "sentencepiece: tokens to train for; 0 takes those of its model", minimum=0
    ),
    "data.sentencepiece_model": Field(
        "", "sentencepiece: a .model file to use; without it one is trained"
    ),
    "data.sentencepiece_type": Field(
        "unigram", "sentencepiece: how one is trained", ("unigram", "bpe")
    ),
    "data.split": Field(
        "end",
        "which part is held out: the end of the text (nanoGPT's), or chunks of it that "
        "split_seed draws (teenyGPT's)",
        ("end", "chunks"),
    ),
    "data.val_fraction": Field(0.1, "share of the text held out to choose by"),
    "data.test_fraction": Field(
        0.0, "share held out and never looked at; 0 has no test split", minimum=0
    ),
    "data.chunk_tokens": Field(10000, "split=chunks: tokens of each", minimum=2),
    "data.split_seed": Field(0, "split=chunks: seeds their order", minimum=0),
    "sigma.order": Field("random", "generation orders in training", ORDERS),
    "sigma.order_start": Field(
        0.0, "curriculum: share of random orders at step 0", minimum=0
    ),
    "sigma.left_to_right_share": Field(
        0.0, "share of sequences read left to right whatever the order", minimum=0
    ),
    "sigma.begin_token": Field(
        False, "read a beginning token first, so that the first token is modelled too"
    ),
    "sigma.adaptive_norm": Field(
        False, "scale and shift each block's norms by the target position (AdaLN)"
    ),
    "task.name": Field("maze", "what a sigma-task learns; see docs/sigma-tasks.md"),
    "task.train_sequences": Field(100000, "drawn to train on", minimum=1),
    "task.val_sequences": Field(10000, "drawn to judge by", minimum=1),
    "task.data_seed": Field(0, "seeds them", minimum=0),
    "task.path": Field(
        "",
        "of file two texts, TRAIN,VAL; of mnist a folder of IDX files; of vertical a "
        "CSV file of flights, empty to draw them",
    ),
    "task.learn": Field(
        "rest",
        "what the loss counts: what follows the given tokens; or all, the given ones "
        "shuffled too, as the original does",
        ("rest", "all"),
    ),
    "task.strategies": Field(
        "left-to-right,shuffled,fractal,burst,exact-burst",
        "ways to generate at an evaluation; empty generates nothing",
    ),
    "task.eval_sequences": Field(
        64, "generated and judged in each way, per split and evaluation", minimum=1
    ),
    "task.height": Field(13, "of the grid: maze, snake, picoclvr, ...", minimum=2),
    "task.width": Field(21, "of the grid", minimum=2),
    "task.walls": Field(15, "in the grid: maze, greed", minimum=0),
    "task.min_distance": Field(
        10, "maze: rows plus columns from start to goal, at least", minimum=1
    ),
    "task.length": Field(
        100,
        "of a sequence: tokens of the toy laws, steps of stack, snake, "
        "properties of picoclvr, instructions of rpl, places of guessop, ...",
        minimum=1,
    ),
    "task.probability": Field(0.1, "product: of a one", minimum=0),
    "task.step_length": Field(10, "step: ones in a row", minimum=1),
    "task.colors": Field(5, "snake, picoclvr: colours", minimum=1),
    "task.digits": Field(
        3, "of a number: stack, addition, learnop; of the source: guessop", minimum=1
    ),
    "gssm.graph": Field(
        "data/graphs/easy.yaml",
        "a JSON or YAML file with the nodes, or the JSON itself (as a run keeps it)",
    ),
    "gssm.sequences": Field(
        0, "train on the first so many sequences only; 0 on all there are", minimum=0
    ),
    "gssm.graph_seed": Field(0, "draws the kernels of the graph", minimum=0),
    "gssm.clip": Field(
        1e-10, "least probability in a kernel drawn; 0 leaves zeros", minimum=0
    ),
    "gssm.first_token": Field(
        "start",
        "sequences begin with the start state 0, or with the first token drawn",
        ("start", "drawn"),
    ),
    "memory.mode": Field(
        "associative",
        "what is read from the memory: vectors joined with the input (VardaGPT); keys "
        "and values in one layer's attention (Memorizing Transformer); the next token "
        "of similar states, mixed into the prediction without training (kNN-LM)",
        ("associative", "attention", "output"),
    ),
    "memory.reading": Field(
        "on",
        "read one's own memory, none, or another row's",
        ("on", "off", "shuffled"),
    ),
    "memory.memory_size": Field(1024, "most entries of a row; more evict", minimum=1),
    "memory.memory_dim": Field(
        0, "associative: width of a storable vector; 0 is n_embd", minimum=0
    ),
    "memory.num_search_results": Field(5, "entries read for each token", minimum=1),
    "memory.shared": Field(False, "all rows of a batch share one memory"),
    "memory.eviction": Field(
        "oldest",
        "of a full row: which entry gives way, or whether what is new is left out",
        ("oldest", "weakest", "refuse"),
    ),
    "memory.keep": Field(
        "all",
        "in evaluation and sampling: store all, or what the store decision keeps",
        ("all", "decided"),
    ),
    "memory.forgetfulness_factor": Field(
        0.0, "training: share of entries forgotten at random a step", minimum=0
    ),
    "memory.decay": Field(
        1.0, "training: an entry's strength is multiplied by this a step", minimum=0
    ),
    "memory.context": Field(
        3,
        "associative: tokens that make an address, each weighing 0.6 of the next",
        minimum=1,
    ),
    "memory.store_layer": Field(
        0,
        "associative: the hidden state that is stored: 0 is what enters the first "
        "block, i leaves the i-th, -1 the last one's norm",
    ),
    "memory.join_std": Field(
        0.0, "associative: deviation of fresh weights on what is read; 0 reads nothing"
    ),
    "memory.budget": Field(
        0.0,
        "associative: loss for each entry kept, growing from 0.2 to 0.4 of the steps; "
        "store decisions are then drawn in training",
        minimum=0,
    ),
    "memory.delete": Field(False, "associative: the model also deletes what it read"),
    "memory.layer": Field(-1, "attention: the block that reads; -1 is the last"),
    "memory.weight": Field(
        0.25, "output: share of the memory's distribution", minimum=0
    ),
    "memory.temperature": Field(
        1.0, "output: of distances, each divided by the width", minimum=1e-6
    ),
    "memory.index_type": Field(
        "flat", "exact, or approximate", ("flat", "ivf", "compressed", "graph")
    ),
    "memory.num_clusters": Field(100, "ivf, compressed: clusters", minimum=1),
    "memory.num_probes": Field(8, "ivf, compressed: clusters looked at", minimum=1),
    "memory.code_bytes": Field(64, "compressed: bytes of a code", minimum=1),
    "memory.candidates": Field(
        16, "compressed: times as many are ranked exactly", minimum=1
    ),
    "memory.links": Field(32, "graph: links of a node (HNSW's M)", minimum=2),
    "memory.ef_construction": Field(40, "graph: breadth of building", minimum=1),
    "memory.ef_search": Field(64, "graph: breadth of searching", minimum=1),
    "memory.threads": Field(1, "of FAISS, which slow down XLA's", minimum=1),
    "patience": Field(
        0, "stop after so many evaluations without a better loss; 0 never", minimum=0
    ),
    "mesh.data": Field(
        0, "devices that split a batch; 0 is all that fsdp and tensor leave", minimum=0
    ),
    "mesh.fsdp": Field(
        1, "devices that split a batch, and parameters and moments too", minimum=1
    ),
    "mesh.tensor": Field(
        1, "devices that split heads, feed-forwards and the vocabulary", minimum=1
    ),
    "deterministic": Field(
        False,
        "sum gradients in a fixed order: the same bits on any number of devices that "
        "divides deterministic_groups",
    ),
    "deterministic_groups": Field(
        8, "parts of a batch that deterministic sums one after another", minimum=1
    ),
    "eval_interval": Field(250, "steps between evaluations", minimum=1),
    "eval_sequences": Field(256, "fixed windows per split and evaluation", minimum=1),
    "checkpoint_interval": Field(250, "steps between checkpoints", minimum=1),
    "keep": Field(2, "latest checkpoints kept, beside the best one", minimum=1),
    "nonfinite": Field(
        "stop",
        "a step whose loss or gradient is not finite stops the run, or is skipped",
        ("stop", "skip"),
    ),
    "log_interval": Field(10, "steps between metrics lines", minimum=1),
    "profile": Field(
        "",
        "steps to trace for XProf, FIRST:LAST, into profile/ of the run; also says "
        "where the time of a step goes",
    ),
    "tensorboard": Field(False, "also write TensorBoard events (extra: tracking)"),
    "wandb_project": Field("", "also log to this Weights & Biases project"),
}
