"""What all formats share: reading, checking and writing an original."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.data.tokenizers import GPT2Tokenizer, Tokenizer
from jaxgpt.errors import UserError, listed, require
from jaxgpt.interop import adamw, rules, weights
from jaxgpt.interop.rules import (
    LARGEST_NUMBER,
    Rule,
    check_setting,
    read_numbers,
    shown,
)
from jaxgpt.interop.weights import Arrays, Source
from jaxgpt.systems.registry import build_system, system_class

# What PyTorch's wrappers of modules put into names: torch.compile, checkpointing and
# FSDP where they wrap a module, DistributedDataParallel only in front.
INNER = "_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module"
WRAPPERS = re.compile(rf"^((module|{INNER})\.)+|(?<=\.)(({INNER})\.)+")

Choice = tuple[str, Mapping[str, str], str | None]


@dataclasses.dataclass(frozen=True)
class Original:
    """An original's weights in our layout, and the state of its training if any."""

    config: ConfigDict
    params: dict
    moments: dict[str, dict] | None = None  # AdamW's "mu" and "nu".
    count: int = 0  # AdamW's.
    step: int = 0
    notes: tuple[str, ...] = ()  # For the user.
    folder: Path = Path()  # Of the source.
    # Settings that an export writes back.
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Export:
    """A run, with its parameters under the original's names.

    Attributes:
      state: the parameters.
      config: of the run.
      step: how many updates it has had.
      rate: the learning rate of the next one.
      dataset: a name for what it was trained on.
      tokenizer, tokenizer_file: of the run, if it has one.
      val_loss: infinity if unknown.
      moments, count, kept: as in `Original`.
    """

    state: Arrays
    config: ConfigDict
    step: int
    rate: float
    dataset: str
    tokenizer: Tokenizer | None = None
    tokenizer_file: Path = Path()
    val_loss: float = math.inf
    moments: dict[str, Arrays] | None = None
    count: int = 0
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One original: tables of its settings, and methods that subclasses add to.

    All tables have the names of our fields of `config.model` as keys.
    """

    # The original's keys of the sizes that a configuration must have.
    sizes: Mapping[str, str]
    # (matrix, axis) of the weights that show a size; the prefix of a layer's number.
    shapes: Mapping[str, tuple[str, int]]
    layer_prefix: str
    # (key, {its value: ours}, default or None if it is required).
    choices: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    # (key, the original's default).
    numbers: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    # Other fields that vary.
    open_fields: tuple[str, ...] = ()
    # Optional settings for which our model supports only this value.
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Settings in none of the tables, because they change no logit or a subclass reads
    # them. A source with any other is refused.
    harmless: tuple[str, ...] = ()
    # A checkpoint's key of the state of torch.optim.AdamW; "" if there is none.
    optimizer_key: str = ""
    # Suffixes of buffers, which old versions saved with the parameters.
    buffers: tuple[str, ...] = ()
    # Vocabulary sizes taken to be GPT-2's if no tokenizer is given.
    gpt2_vocabularies: tuple[int, ...] = ()
    # Of files to write; () if it writes folders.
    suffixes: tuple[str, ...] = (".pt", ".npz")
    system: str = "causal"

    def rules(self, model: ConfigDict) -> list[Rule]:
        """Returns the table of names for a model of this format."""
        raise NotImplementedError

    def own_fields(self, model: Any) -> dict[str, Any]:
        """Returns those of `fixed_fields` that differ from our defaults."""
        return {}

    def fixed_fields(self, model: Any) -> dict[str, Any]:
        """Returns the fields that are the same for all models of the original.

        Args:
          model: the other fields, of an original or a run.
        """
        # Includes future options of the architecture: until a format knows one, a run
        # that uses it is not exported.
        fields = {
            key.removeprefix("model."): option.default
            for key, option in configs.options().items()
            if key.startswith("model.") and option.architecture
        }
        fields |= self.own_fields(model)
        varying = {*self.sizes, *self.choices, *self.numbers, *self.open_fields}
        # Fields without effect on trained weights, or on this model.
        varying |= {"init"}
        if not model.get("bias", fields["bias"]):
            varying |= {"attention_bias", "head_bias"}
        if model.get("tied_head", fields["tied_head"]):
            varying |= {"head_bias"}
        positions = model.get("positions", fields["positions"])
        if positions != "sinusoidal":
            varying |= {"sinusoid_scale"}
        if positions != "rope":
            varying |= {"rope_theta", "rope_frequency", "rope_angles", "rope_pairs"}
        return {name: v for name, v in fields.items() if name not in varying}

    def model_fields(self, source: Source) -> dict[str, Any]:
        """Returns the fields of `config.model` for a source.

        Raises:
          UserError: for a setting that is missing, contradicts the weights, or is not
            supported by our model.
        """
        settings, path = source.settings, source.path
        for key, only in self.required.items():
            value = settings.get(key)
            check_setting(value in (None, only), path, key, repr(only), value)
        needed = [*self.sizes.values()]
        needed += [key for key, _, default in self.choices.values() if default is None]
        missing = [key for key in needed if settings.get(key) is None]
        if missing:
            raise UserError(
                f"'{path}' does not give its {', '.join(missing)}: pass the original's "
                "configuration with --source_config=FILE.json, or another --format"
            )
        fields: dict[str, Any] = {}
        shown_sizes = self._sizes_of(source)
        for field, key in self.sizes.items():
            size = fields[field] = settings[key]
            valid = type(size) is int and 1 <= size <= LARGEST_NUMBER
            check_setting(valid, path, key, "an integer >= 1", size)
            # Checked here, because building a billion layers would take forever.
            if shown_sizes.get(field, size) != size:
                raise UserError(
                    f"'{path}': {key} is {size} in the configuration and "
                    f"{shown_sizes[field]} in the weights"
                )
        for field, (key, values, default) in self.choices.items():
            value = settings.get(key, default)
            text = value if isinstance(value, str) else ""
            fields[field] = values.get(text, values.get(text.upper()))
            known = f"one of {', '.join(values)}"
            check_setting(fields[field] is not None, path, key, known, value)
        fields |= read_numbers(settings, self.numbers, path)
        return fields | self.fixed_fields(fields)

    def _check_known(self, source: Source) -> None:
        """Raises UserError for a setting of the source that nothing here reads.

        A --source_config may have more: it is often a whole training configuration.
        """
        known = {*self.sizes.values(), *self.required, *self.harmless}
        known |= {key for key, _, _ in self.choices.values()}
        known |= {key for key, _ in self.numbers.values()}
        unknown = [k for k in source.held - known if source.settings[k] is not None]
        unknown.sort(key=str)
        if unknown:
            held = [f"{shown(k)}={shown(source.settings[k])}" for k in unknown]
            raise UserError(
                f"'{source.path}' has unknown settings: {listed(held)}: if they change "
                "no logit, pass --source_config=FILE.json with "
                f'{{"{shown(unknown[0])}": null}}'
            )

    def _sizes_of(self, source: Source) -> dict[str, int]:
        """Returns the sizes that the weights show."""
        state, prefix = source.state, self.layer_prefix
        inside = [
            name.removeprefix(prefix) for name in state if name.startswith(prefix)
        ]
        if not inside:
            raise UserError(f"'{source.path}' has another architecture: no {prefix}*")
        sizes = {"n_layer": len({name.split(".")[0] for name in inside})}
        for field, (name, axis) in self.shapes.items():
            if name in state and state[name].ndim == 2:
                sizes[field] = state[name].shape[axis]
        return sizes

    def notes(self, source: Source) -> tuple[str, ...]:
        """Returns notes for the user on what differs from the source."""
        return ()

    def tokenizer(
        self, folder: Path, vocab_size: int
    ) -> tuple[Tokenizer | None, tuple[str, ...]]:
        """Returns the tokenizer of a source, and notes on it for the user.

        Args:
          folder: where the source is.
          vocab_size: of the model.

        Raises:
          UserError: for one that is damaged.
        """
        gpt2 = vocab_size in self.gpt2_vocabularies
        return (GPT2Tokenizer() if gpt2 else None), ()

    def kept(self, source: Source) -> dict[str, Any]:
        """Returns the settings that an export writes back."""
        return {}

    def training_fields(self, source: Source) -> dict[str, Any]:
        """Returns the fields of training that a checkpoint has, by dotted keys.

        By default those of its optimizer's only group, and no clipping of gradients:
        the originals with one group clip none.
        """
        optimizer = source.checkpoint.get(self.optimizer_key)
        fields = adamw.read_settings(optimizer, source.path)
        return fields and fields | {"optimizer.grad_clip": 0.0}

    def optimizer_state(
        self, source: Source, table: list[Rule]
    ) -> tuple[dict[str, Arrays], int, int] | None:
        """Returns (AdamW's "mu" and "nu" by the original's names, its count, step).

        Raises:
          UserError: for another optimizer's state.
        """
        optimizer = adamw.held_by(source.checkpoint, self.optimizer_key)
        if not optimizer:
            return None
        names = self.optimized(optimizer, source.state, table)
        if not names:
            return None
        moments, count = adamw.read_moments(
            optimizer, {name: source.state[name] for name in names}, source.path
        )
        step = source.checkpoint.get("iter_num", count)
        return moments, count, adamw.read_count("iter_num", step, source.path)

    def optimized(
        self, optimizer: Mapping[str, Any], state: Arrays, table: list[Rule]
    ) -> list[str]:
        """Returns the parameters as an optimizer numbers them; [] if unknown.

        By default they are in one group, in the order of the state dict, which is that
        of PyTorch's modules.
        """
        return [*state]

    def plain_name(self, name: str) -> str:
        """Returns the name of a parameter in `rules`."""
        return WRAPPERS.sub("", name)

    def parameters(self, source: Source) -> Arrays:
        """Returns the parameters by plain names, without buffers."""
        found: Arrays = {}
        for name, array in source.state.items():
            plain = self.plain_name(name)
            if plain in found:
                raise UserError(f"'{source.path}' holds {shown(plain)} under two names")
            if not plain.endswith(self.buffers):
                found[plain] = array
        return found

    def read(self, source_path: str, settings_file: str | None = None) -> Original:
        """Reads an original's weights into our layout; writes nothing.

        Args:
          source_path: .pt, .bin, .npz, .safetensors, a Hugging Face folder or GPT-2
            name.
          settings_file: JSON with the original's configuration.

        Raises:
          UserError: for a source that is missing, damaged or does not fit.
        """
        source = weights.read_source(source_path, settings_file)
        more: dict[str, Any] = {
            "notes": (*source.notes, *self.notes(source)),
            "folder": source.folder,
            "kept": self.kept(source),
        }
        source = dataclasses.replace(source, state=self.parameters(source))
        fields = {"system": self.system} | self.training_fields(source)
        model = self.model_fields(source)
        fields |= {f"model.{field}": value for field, value in model.items()}
        try:
            config = configs.validate(configs.override(configs.base(), fields))
            system = build_system(config)
        except UserError as error:
            raise UserError(f"'{source_path}': {error}") from None
        abstract = jax.eval_shape(system.init, jax.random.key(0))
        table = self.rules(config.model)
        to_jax = lambda arrays: rules.to_jax(arrays, table, abstract, source_path)
        params = to_jax(source.state)
        # Last, because the weights tell more clearly that it is another format.
        self._check_known(source)
        held = self.optimizer_state(source, table)
        if held is None:
            return Original(config, params, **more)
        moments, count, step = held
        more["notes"] += adamw.differences(source.checkpoint[self.optimizer_key])
        both = {name: to_jax(arrays) for name, arrays in moments.items()}
        return Original(config, params, both, count, step, **more)

    def check_run(self, config: ConfigDict) -> None:
        """Raises UserError for a run whose model the original does not have."""
        fits = issubclass(system_class(config.system), system_class(self.system))
        require(fits, "system", repr(self.system), config.system)
        for name in ("begin_token", "separate_tables", "max_gap"):
            value = config.sigma[name]
            fits = self.system != "sigma" or not value
            require(fits, f"sigma.{name}", repr(type(value)()), value)
        known = {k: [value] for k, value in self.fixed_fields(config.model).items()}
        known |= {
            k: [*dict.fromkeys(v.values())] for k, (_, v, _) in self.choices.items()
        }
        for field, values in known.items():
            rule = " or ".join(map(repr, values))
            value = config.model[field]
            require(value in values, f"model.{field}", rule, value)

    def write(self, output: Path, export: Export) -> None:
        """Writes a run in the form that the original program reads.

        Raises:
          OSError: if the disk is full or the folder cannot be written to.
          UserError: for a .pt file where PyTorch is not installed.
        """
        if output.suffix == ".npz":
            weights.write_npz(output, export.state)
        else:
            weights.write_torch(output, self.checkpoint(export))

    def checkpoint(self, export: Export) -> dict[str, Any]:
        """Returns the content of a .pt file: arrays in plain containers."""
        return dict(export.state)

    def optimizer_entry(self, export: Export) -> dict[str, Any]:
        """Returns {`optimizer_key`: its state_dict}; {} without moments."""
        c = export.config.optimizer
        if not export.moments:
            return {}
        groups = self.groups(export)
        count, rate = export.count, export.rate
        entry = adamw.state_dict(export.moments, count, groups, rate, c)
        return {self.optimizer_key: entry}

    def groups(self, export: Export) -> list[tuple[list[str], float]]:
        """Returns (names, weight decay) of the optimizer's groups: see `optimized`."""
        return [([*export.state], export.config.optimizer.weight_decay)]

    def export_notes(self, export: Export) -> tuple[str, ...]:
        """Returns notes for the user on what a .pt file contains or lacks."""
        if not self.optimizer_key:
            return ()
        if export.moments is None:
            return ("it has no optimizer state: training there cannot resume from it",)
        one_group = len(self.groups(export)) == 1 and export.count > 0
        if one_group and export.config.optimizer.decays != "all":
            return ("training there decays all parameters, this run only matrices",)
        return ()
