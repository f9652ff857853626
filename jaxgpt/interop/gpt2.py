"""GPT-2's family, and OpenAI's GPT-2 as Hugging Face has it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data import huggingface_folder
from jaxgpt.data.tokenizers import GPT2Tokenizer, Tokenizer
from jaxgpt.errors import UserError, listed
from jaxgpt.interop import weights
from jaxgpt.interop.base import Export, Format
from jaxgpt.interop.rules import (
    LARGEST_NUMBER,
    Rule,
    check_setting,
    layer_rules,
    shown,
)
from jaxgpt.interop.weights import Arrays, Source

TABLE, POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"
HEAD, UP = "lm_head.weight", "transformer.h.0.mlp.c_fc.weight"
# Heads for other tasks than language modelling.
OTHER_HEADS = ("classifier", "multiple_choice_head", "qa_outputs", "score", "v_head")
# The prefixes that wrapping modules, such as PyTorch Lightning's, add to each name.
OUTER = re.compile(
    r"(\w+\.)*?(?=((transformer\.)?(wte|wpe|h|ln_f)|lm_head|"
    + "|".join(OTHER_HEADS)
    + r")\.)"
)
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
# An export writes the last of several names for the same function.
ACTIVATIONS = {
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu": "gelu",
    "relu": "relu",
}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
# Settings that our config has no field for: an export writes them back to config.json.
KEPT = (
    *DROPOUTS,
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("initializer_range", "reorder_and_upcast_attn", "task_specific_params"),
)
# What else config.json has, in this version of transformers and in older ones: settings
# of training, generation, other heads and the outputs of a call.
HARMLESS = """
_attn_implementation _name_or_path _num_labels architectures attn_implementation
attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id eos_token_ids
exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder
label2id length_penalty max_length max_new_tokens min_length n_ctx n_inner n_special
no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
output_attentions output_hidden_states output_past output_scores pad_token_id
predict_special_tokens prefix problem_type pruned_heads remove_invalid_values
reorder_and_upcast_attn repetition_penalty resid_pdrop return_dict
return_dict_in_generate sep_token_id summary_activation summary_first_dropout
summary_proj_to_labels summary_type summary_use_proj suppress_tokens
task_specific_params temperature tf_legacy_loss tie_encoder_decoder
tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
transformers_version typical_p use_bfloat16 use_cache
"""
BLOCK = {
    "ln_1": "norm_1",
    "attn.c_attn": "attn/qkv",
    "attn.c_proj": "attn/out",
    "ln_2": "norm_2",
    "mlp.c_fc": "mlp/up",
    "mlp.c_proj": "mlp/down",
}


def gpt_rules(n_layer: int, bias: bool, conv1d: bool) -> list[Rule]:
    """Returns the table of GPT-2's family.

    With conv1d linear weights are [in, out], like OpenAI's and ours, not [out, in].
    """
    layers = {
        f"transformer.h.{i}.{there}": f"transformer/blocks/{i}/{here}"
        for i in range(n_layer)
        for there, here in BLOCK.items()
    }
    layers["transformer.ln_f"] = "transformer/norm_f"
    table = [Rule(TABLE, "table"), Rule(POSITIONS, "positions/table")]
    for name, path in layers.items():
        table += layer_rules(name, path, bias, not conv1d)
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Family(Format):
    """What GPT-2's family shares: the block, and a head that is mostly tied."""

    conv1d: bool = False

    def rules(self, model: ConfigDict) -> list[Rule]:
        """See `gpt_rules`; adds an untied head."""
        head = Rule(HEAD, "unembed/kernel", transposed=True)
        table = gpt_rules(model.n_layer, model.bias, self.conv1d)
        return table + ([] if model.tied_head else [head])

    def model_fields(self, source: Source) -> dict[str, Any]:
        """Adds whether the head is tied."""
        fields = super().model_fields(source)
        tied = source.settings.get("tie_word_embeddings")
        valid = tied is None or isinstance(tied, bool)
        check_setting(valid, source.path, "tie_word_embeddings", "true or false", tied)
        untied = {"tied_head": False, "head_bias": False}
        return fields | (untied if tied is False else {})

    def plain_name(self, name: str) -> str:
        """Adds the "transformer." that is missing if the body alone was saved."""
        name = OUTER.sub("", super().plain_name(name), count=1)
        bare = name.startswith(("wte.", "wpe.", "h.", "ln_f."))
        return f"transformer.{name}" if bare else name

    def parameters(self, source: Source) -> Arrays:
        """Leaves out a tied head; UserError if it is not the token table."""
        found = super().parameters(source)
        if source.settings.get("tie_word_embeddings") is False or HEAD not in found:
            return found
        head = found.pop(HEAD)
        # safetensors' save_model keeps either of two names of one array.
        table = found.setdefault(TABLE, head)
        if table is not head and not np.array_equal(head, table, equal_nan=True):
            raise UserError(
                f"'{source.path}' has an untied head: lm_head.weight differs from "
                "wte.weight: if that is meant, pass --source_config=FILE.json with "
                '{"tie_word_embeddings": false}'
            )
        return found


class HuggingFaceGPT2(GPT2Family):
    """OpenAI's GPT-2, in the form of Hugging Face's transformers."""

    def own_fields(self, model: Any) -> dict[str, Any]:
        """Biases everywhere but in the head."""
        return {"bias": True, "head_bias": False}

    def parameters(self, source: Source) -> Arrays:
        """Leaves out heads of other tasks: see `notes`."""
        found = super().parameters(source)
        return {k: v for k, v in found.items() if not _is_other_head(k)}

    def model_fields(self, source: Source) -> dict[str, Any]:
        """Adds the feed-forward's width, and dropout."""
        settings, path = source.settings, source.path
        classes = settings.get("architectures") or []
        known = isinstance(classes, list) and all(
            isinstance(name, str) and name.startswith("GPT2") for name in classes
        )
        check_setting(known, path, "architectures", "GPT2*", classes)
        pruned = settings.get("pruned_heads")
        check_setting(not pruned, path, "pruned_heads", "{}", pruned)
        fields = super().model_fields(source)
        fields["bias"] = True
        inner, default = settings.get("n_inner"), 4 * fields["n_embd"]
        width = default if inner is None else inner
        valid = type(width) is int and 1 <= width <= LARGEST_NUMBER
        check_setting(valid, path, "n_inner", "an integer >= 1", width)
        held = source.state[UP].shape if UP in source.state else ()
        if held and width not in held:
            raise UserError(
                f"'{path}': n_inner is {width} in the configuration and {held[-1]} in "
                "the weights"
            )
        rates = _dropouts(settings)
        for key, rate in rates.items():
            valid = type(rate) in (int, float) and 0 <= rate < 1
            check_setting(valid, path, key, "a number in [0, 1)", rate)
        fields |= {
            "feed_forward_width": 0 if width == default else width,
            "dropout": _one(rates),
        }
        return fields | self.fixed_fields(fields)

    def notes(self, source: Source) -> tuple[str, ...]:
        """Lists heads of other tasks, and dropout that our model does not have."""
        lines = []
        heads = [n for n in source.state if _is_other_head(self.plain_name(n))]
        if heads:
            lines.append(f"skipped: {listed([*map(shown, heads)], 5)}")
        rates = _dropouts(source.settings)
        if len({*map(str, rates.values())}) > 1:
            given = ", ".join(f"{key} {shown(rate)}" for key, rate in rates.items())
            lines.append(f"{given} differ: model.dropout is set to 0")
        return tuple(lines)

    def tokenizer(
        self, folder: Path, vocab_size: int
    ) -> tuple[Tokenizer | None, tuple[str, ...]]:
        """Reads that of the folder; the default is GPT-2's if the size allows."""
        found, notes = huggingface_folder.read(folder, vocab_size)
        if found is not None or notes:
            return found, notes
        found, _ = super().tokenizer(folder, vocab_size)
        more = vocab_size - GPT2Tokenizer.vocab_size
        line = (
            f"it has no tokenizer: its {vocab_size:,} tokens are taken to be GPT-2's"
            + (f", and {more} without text" if more else "")
            + ": --tokenizer=FILE names another"
        )
        return found, (line,) if found else ()

    def kept(self, source: Source) -> dict[str, Any]:
        """Returns the settings in `KEPT`."""
        held = {*source.held} & {*KEPT}
        return {key: source.settings[key] for key in sorted(held)}

    def write(self, output: Path, export: Export) -> None:
        """Writes a folder that transformers' GPT2LMHeadModel loads."""
        model = export.config.model
        names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
        settings = {
            "architectures": ["GPT2LMHeadModel"],
            **self.required,
            "activation_function": names[model.activation],
            **{key: model[field] for field, key in self.sizes.items()},
            "n_ctx": model.block_size,
            "n_inner": model.feed_forward_width or None,
            "layer_norm_epsilon": model.norm_epsilon,
            "tie_word_embeddings": model.tied_head,
            "initializer_range": 0.02,
            # Without these transformers takes GPT-2's.
            **dict.fromkeys(("bos_token_id", "eos_token_id")),
            **huggingface_folder.named_ids(export.tokenizer),
            **export.kept,
        }
        rates = _dropouts(export.kept)
        if _one(rates) != model.dropout:
            rates = dict.fromkeys(DROPOUTS, model.dropout)
        settings |= rates
        output.mkdir(parents=True, exist_ok=True)
        state = self._with_biases(export)
        weights.write_safetensors(output / "model.safetensors", state)
        (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        if export.tokenizer and huggingface_folder.has_form(export.tokenizer):
            huggingface_folder.write(export.tokenizer, output, model.block_size)

    def _with_biases(self, export: Export) -> Arrays:
        """Adds biases of 0 to a model without biases: transformers always has them."""
        state, every = export.state, gpt_rules(export.config.model.n_layer, True, True)
        for name in [rule.name for rule in every if rule.name not in state]:
            weight = state[f"{name.removesuffix('.bias')}.weight"]
            state = state | {name: np.zeros(weight.shape[-1], weight.dtype)}
        return state

    def export_notes(self, export: Export) -> tuple[str, ...]:
        """Says which biases are added, and if the tokenizer cannot be written."""
        lines = []
        if not export.config.model.bias:
            lines.append("its biases are 0: the run's model has none")
        if export.tokenizer and not huggingface_folder.has_form(export.tokenizer):
            kind = export.tokenizer.to_json()["kind"]
            lines.append(
                f"it has no tokenizer: transformers has no form of a {kind} one"
            )
        return tuple(lines)


def _is_other_head(name: str) -> bool:
    return name.startswith(tuple(f"{head}." for head in OTHER_HEADS))


def _dropouts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the three probabilities; transformers' default is 0.1."""
    return {key: settings.get(key, 0.1) for key in DROPOUTS}


def _one(rates: dict[str, Any]) -> float:
    """Returns the probability if all three are the same, else 0."""
    return rates[DROPOUTS[0]] if len({*rates.values()}) == 1 else 0.0


GPT2 = HuggingFaceGPT2(
    sizes={**dict(zip(SIZES, SIZES, strict=True)), "block_size": "n_positions"},
    shapes={
        "vocab_size": (TABLE, 0),
        "n_embd": (TABLE, 1),
        "block_size": (POSITIONS, 0),
    },
    layer_prefix="transformer.h.",
    choices={"activation": ("activation_function", ACTIVATIONS, "gelu_new")},
    required={
        "model_type": "gpt2",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
    },
    numbers={"norm_epsilon": ("layer_norm_epsilon", 1e-5)},
    open_fields=("bias", "tied_head", "feed_forward_width"),
    harmless=tuple(HARMLESS.split()),
    buffers=(".attn.bias", ".attn.masked_bias"),
    # With a few added tokens, or padded to a multiple of 64.
    gpt2_vocabularies=tuple(range(50257, 50305)),
    conv1d=True,
    suffixes=(),
)
