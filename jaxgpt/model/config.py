"""The shape and the options of a model, and its FLOPs."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from typing import Any

from jaxgpt.config import OptionGroup, option
from jaxgpt.errors import UserError, require

# Each position encoding's `positions.Encoding`, as text: --help lists them without JAX.
POSITIONS = {
    "learned": "jaxgpt.model.positions:LEARNED",
    "sinusoidal": "jaxgpt.model.positions:SINUSOIDAL",
    "learned-sinusoidal": "jaxgpt.model.positions:SINUSOIDAL",
    "alibi": "jaxgpt.model.positions:ALIBI",
    "rope": "jaxgpt.model.positions:ROPE",
    "none": "jaxgpt.model.positions:NONE",
}
# σ-GPT's: of a token's own position and of the one that it must predict. "double-x" is
# for model.positions=x; that of "learned" is just "double".
DOUBLE_POSITIONS = {
    "double": "jaxgpt.model.positions:LEARNED",
    "double-sinusoidal": "jaxgpt.model.positions:DOUBLE_SINUSOIDAL",
    "double-rope": "jaxgpt.model.positions:DOUBLE_ROPE",
}
# What mixes the tokens of a block, as text too: a module like `attention.Attention`.
MIXERS = {
    "attention": "jaxgpt.model.attention:Attention",
    "lstm": "jaxgpt.model.recurrent:LSTM",
    "gru": "jaxgpt.model.recurrent:GRU",
    "ssm": "jaxgpt.model.recurrent:SSM",
}
PAIRS = ("halves", "neighbours")  # of channels of a head
NORMS = ("layer", "rms", "none")


def _option(default: Any, help: str, **attributes: Any) -> Any:
    return option(default, help, architecture=True, **attributes)


@dataclasses.dataclass(frozen=True)
class ModelConfig(OptionGroup):
    """A model: `config.model`, and six fields that its system sets.

    `positions` may also be a key of `DOUBLE_POSITIONS`.
    """

    n_layer: int = _option(6, "transformer blocks", min=1)
    n_head: int = _option(6, "attention heads", min=1)
    n_embd: int = _option(384, "width of the residual stream", min=1)
    block_size: int = _option(256, "maximum sequence length, in tokens", min=2)
    vocab_size: int = _option(0, "vocabulary size; 0 is the tokenizer's", min=0)
    # Not `architecture`, nor is dtype: a run that starts from the weights of another
    # chooses its own.
    dropout: float = option(
        0.0, "probability of dropping an activation", min=0, below=1
    )
    mixer: str = _option(
        "attention",
        "what mixes the tokens of a block; ssm is a diagonal state-space model (LRU)",
        choices=MIXERS,
    )
    positions: str = _option(
        "learned", "σ-GPT's are learned, sinusoidal or rope", choices=POSITIONS
    )
    # By default of about the size of initial token embeddings.
    sinusoid_scale: float = _option(0.03, "sinusoidal: amplitude")
    rope_theta: float = _option(1e4, "RoPE: highest over lowest frequency", min=1)
    rope_frequency: float = _option(1.0, "RoPE: highest frequency, radians per token")
    rope_angles: str = _option(
        "float64",
        "RoPE: what angles are computed in; float32 is nanollama's",
        choices=("float64", "float32"),
    )
    rope_pairs: str = _option(
        "halves", "RoPE: k with k + half, or 2k with 2k + 1", choices=PAIRS
    )
    norm: str = _option("layer", "before attention and feed-forward", choices=NORMS)
    norm_epsilon: float = _option(1e-5, "added to a norm's variance", min=0)
    final_norm: bool = _option(True, "also a norm before the logits")
    bias: bool = _option(
        False, "biases in layer norms, linear layers (not SwiGLU's) and an untied head"
    )
    attention_bias: bool = _option(True, "with model.bias: in attention too")
    head_bias: bool = _option(True, "with model.bias: in an untied head too")
    activation: str = _option(
        "gelu",
        "of the feed-forward; gelu_tanh is OpenAI's, swiglu is gated",
        choices=("gelu", "gelu_tanh", "relu", "swiglu"),
    )
    feed_forward_width: int = _option(
        0, "0 is 4 n_embd; for swiglu 8/3 n_embd: as many weights", min=0
    )
    tied_head: bool = _option(
        True, "output projection is the token table (weight tying)"
    )
    init: str = _option(
        "gpt2",
        "of matrices: std 0.02, less into the residual stream, or fan_in ^ -0.5",
        choices=("gpt2", "fan_in"),
    )
    key_width: int = _option(0, "of queries and keys; 0 is that of values", min=0)
    qk_norm: bool = _option(False, "scale queries and keys to root mean square 1")
    dtype: str = option(
        "float32",
        "operands of matrix products; parameters, softmax and loss stay float32",
        choices=("float32", "bfloat16", "float64"),
    )
    remat: str = option(
        "none",
        "recompute in the backward pass: nothing, all but matrix products, or all",
        choices=("none", "dots", "full"),
        resumable=True,
    )
    scan_layers: bool = option(
        False, "compile one block and loop over the layers", resumable=True
    )
    loss_chunk: int = option(
        0,
        "tokens of a row whose logits are held at a time, to be computed again "
        "in the backward pass; 0 holds all",
        min=0,
        resumable=True,
    )
    # The rest is set by the system.
    # A token `vocab_size` that is read first, at position `block_size`, or that stands
    # for what is masked; neither is ever predicted.
    begin_token: bool = False
    mask_token: bool = False
    bidirectional: bool = False  # Tokens also see those after them.
    adaptive_norm: bool = False  # Norms depend on the target position.
    separate_tables: bool = False  # One for own positions, another for targets.
    # "cpu", "tpu" and "gpu" are the modules model/cpu.py, ..., and "xla" is plain JAX.
    # They agree up to rounding, "gpu" up to that of `dtype`.
    kernels: str = "xla"

    def __post_init__(self) -> None:
        """Raises UserError for widths that do not divide or are odd."""
        if self.mixer == "attention":
            rule = f"divisible by model.n_head {self.n_head}"
            require(self.n_embd % self.n_head == 0, "model.n_embd", rule, self.n_embd)
        else:
            self._check_without_attention()
        # Pairs of sine and cosine; double ones are two halves of pairs.
        multiple = {"sinusoidal": 2, "learned-sinusoidal": 2, "double-sinusoidal": 4}
        divisor = multiple.get(self.positions, 1)
        rule = f"divisible by {divisor} with {self.positions} positions"
        require(self.n_embd % divisor == 0, "model.n_embd", rule, self.n_embd)
        if self.key_width and (self.qk_norm or self.encoding.rotate):
            raise UserError(
                f"model.key_width={self.key_width} is incompatible with model.qk_norm "
                "and with rotated queries and keys (model.positions=rope): leave it "
                "at 0"
            )
        if self.encoding.rotate:  # It turns pairs of channels.
            width, rule = self.n_embd // self.n_head, "even with model.positions=rope"
            require(width % 2 == 0, "model.n_embd / model.n_head", rule, width)
        remedy = "the data or a tokenizer sets it"
        V = self.vocab_size
        require(V >= 1, "model.vocab_size", ">= 1", V, remedy)

    def _check_without_attention(self) -> None:
        """Raises UserError for an option of attention with another mixer."""
        added = not (self.encoding.rotate or self.encoding.bias)
        for field, allowed, rule in (
            ("positions", added, "none, or added to the embeddings,"),
            ("key_width", self.key_width == 0, "0"),
            ("qk_norm", not self.qk_norm, "False"),
        ):
            rule = f"{rule} with model.mixer={self.mixer}"
            require(allowed, f"model.{field}", rule, getattr(self, field))

    @property
    def param_dtype(self) -> str:
        """Parameters are float32 whatever the operands; float64 with float64."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def head_key_width(self) -> int:
        """Width of a head's queries and keys."""
        return self.key_width or self.n_embd // self.n_head

    @property
    def token_mixer(self) -> Any:
        """The module that `mixer` names."""
        return pkgutil.resolve_name(MIXERS[self.mixer])

    @property
    def encoding(self) -> Any:
        """The `positions.Encoding` that `positions` names."""
        return pkgutil.resolve_name((POSITIONS | DOUBLE_POSITIONS)[self.positions])

    @property
    def any_order(self) -> bool:
        """Whether each token comes with the position it must predict."""
        return self.positions in DOUBLE_POSITIONS

    @property
    def target_width(self) -> int:
        """Channels of what the target position is looked up as, with double ones."""
        return self.n_embd if self.separate_tables else self.n_embd // 2

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward; SwiGLU has three matrices to GELU's two."""
        if self.feed_forward_width:
            return self.feed_forward_width
        if self.activation == "swiglu":
            return 8 * math.ceil(self.n_embd / 3)
        return 4 * self.n_embd

    @property
    def ends_with_block(self) -> bool:
        """Whether no position past the block exists."""
        return self.encoding.bounded


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Returns the FLOPs of training on one token: 6 N + 12 L D T, or 6 N.

    N leaves out tables that are looked up, not multiplied. As in nanoGPT (after the
    PaLM paper, appendix B), the masked half of the attention scores is counted. For
    other mixers N is all: only matrix products count.
    """
    D, T = config.n_embd, config.block_size
    double = 2 * D if config.separate_tables else D // 2
    widths = {"learned": D, "double": double, "double-rope": double}
    tables = T * widths.get(config.positions, 0)
    if not config.tied_head:
        tables += config.vocab_size * D
    scores = 12 * config.n_layer * D * T if config.mixer == "attention" else 0
    return 6 * (parameters - tables) + scores
