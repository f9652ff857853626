"""What `benchmarks.gpu` times: jaxgpt and PyTorch training and decoding, and parity."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np

# GPT-2 124M, its vocabulary padded as nanoGPT's.
FULL = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "block_size": 1024,
    "vocab_size": 50304,
}
TOY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 96}


def set_up(tiny: bool) -> None:
    """Prepares a process for JAX: PyTorch is to find memory beside it."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if tiny:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxgpt import backend

    backend.set_up_jax()


def make_config(tiny: bool, system: str, **changes):
    from jaxgpt import config

    model = {f"model.{name}": value for name, value in (TOY if tiny else FULL).items()}
    fixed = {"system": system, "model.dtype": "bfloat16", "model.dropout": 0.0}
    if system == "sigma":
        # With it 1,024 tokens are predicted, not 1,023.
        fixed["sigma.begin_token"] = True
    return config.override(config.base(), model | fixed | changes)


def random_tokens(tiny: bool, *shape: int) -> np.ndarray:
    vocabulary = (TOY if tiny else FULL)["vocab_size"]
    return np.random.default_rng(0).integers(0, vocabulary, shape).astype(np.int32)


class JaxTrainer:
    """jaxgpt's own step, as `jaxgpt.train` runs it."""

    def __init__(self, tiny: bool, system: str, variant: str = ""):
        set_up(tiny)
        import jax

        from jaxgpt.model import gpu, gpu_norm
        from jaxgpt.systems.registry import build_system
        from jaxgpt.training.optimizers import make_optimizer
        from jaxgpt.training.step import init_state

        self.tiny, self.kind = tiny, system
        self.program = f"{system}_{variant}" if variant else system
        if variant == "xla-norms":
            gpu_norm.fuses_norms = lambda *_: False
        elif variant == "one-projection":
            gpu.projects_apart = lambda *_: False
        system = build_system(make_config(tiny, system))
        optimizer = make_optimizer(system.config)
        params = jax.jit(system.init)(jax.random.key(0))
        self.state = init_state(params, optimizer, ema=False)

    def describe(self) -> dict:
        import jax
        import jax.extend
        import jaxlib

        device = jax.devices()[0]
        return {
            "device": device.device_kind,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "platform": jax.extend.backend.get_backend().platform_version[:80],
        }

    def prepare(self, batch: int) -> dict:
        import jax

        from jaxgpt.model import config, gpu, layers
        from jaxgpt.parallel import hardware
        from jaxgpt.systems.registry import build_system
        from jaxgpt.training.optimizers import make_optimizer
        from jaxgpt.training.step import make_step

        system = build_system(make_config(self.tiny, self.kind, batch_size=batch))
        self.tokens = jax.device_put(random_tokens(self.tiny, batch, system.window))
        self.index = np.int32(1000)
        began = time.perf_counter()
        optimizer, trouble = make_optimizer(system.config), ""

        def compiled():
            advance = make_step(system, optimizer)
            return advance.lower(self.state, self.index, self.tokens).compile()

        try:
            self.step = compiled()
        except Exception as error:
            # Whatever cuDNN cannot do here, the rest is worth its time.
            if not gpu.has_cudnn():
                raise
            trouble = " ".join(str(error).split())[:600]
            gpu.has_cudnn = lambda: False
            self.step = compiled()
        took = time.perf_counter() - began
        self.advance(1)
        memory = self.step.memory_analysis()
        parameters = layers.count_parameters(self.state["params"])
        flops = config.flops_per_token(system.model_config, parameters)
        device = jax.devices()[0]
        peak = hardware.peak_flops(device.device_kind)
        used = device.memory_stats() or {}
        return {
            "kernels": system.model_config.kernels,
            "trouble": trouble,
            "compile_seconds": took,
            "tokens": batch * system.num_predicted,
            "mfu_of_a_token_a_second": flops / peak if peak else None,
            "program_gb": 1e-9
            * (
                memory.temp_size_in_bytes
                + memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes
            ),
            "peak_gb_so_far": 1e-9 * used.get("peak_bytes_in_use", 0),
            "fused_attention": self.step.as_text().count("__cudnn$fmha"),
        }

    def run(self, steps: int) -> dict:
        return timed(self.advance, steps)

    def advance(self, steps: int) -> float:
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.index, self.tokens)
        return float(metrics["loss"])

    def profile(self, folder: str) -> dict:
        """Writes the optimised program, and returns its kernels by their time."""
        import jax

        (pathlib.Path(folder) / f"{self.program}.hlo.txt").write_text(
            self.step.as_text()
        )
        with tempfile.TemporaryDirectory() as trace:
            with jax.profiler.trace(trace):
                self.advance(3)
            (file,) = pathlib.Path(trace).rglob("*.xplane.pb")
            data = jax.profiler.ProfileData.from_file(str(file))
            spent: dict[str, list[float]] = {}
            for plane in data.planes:
                # The CPU's, in a rehearsal; a device's is "/device:GPU:0".
                if not plane.name.startswith("/device:GPU" if not self.tiny else "/"):
                    continue
                for line in plane.lines:
                    if not (self.tiny or line.name.startswith("Stream")):
                        continue
                    for event in line.events:
                        spent.setdefault(event.name, []).append(event.duration_ns)
            places = {
                plane.name: [x.name for x in plane.lines] for plane in data.planes
            }
        return {"table": table(spent, 3) if spent else f"no kernels in {places}"}


def timed(advance: Callable[[int], float], steps: int) -> dict:
    """Returns the seconds of a step, and the loss after so many."""
    advance(2)  # The first of a turn finds cold caches.
    began = time.perf_counter()
    loss = advance(steps)
    return {"seconds": (time.perf_counter() - began) / steps, "loss": loss}


def table(spent: dict[str, list[float]], steps: int) -> str:
    """Returns the kernels that take most of a step: milliseconds, calls and name."""
    whole = sum(map(sum, spent.values())) or 1
    lines = [f"{1e-6 * whole / steps:9.3f} ms of kernels in a step"]
    for name in sorted(spent, key=lambda name: -sum(spent[name]))[:60]:
        own = sum(spent[name])
        lines.append(
            f"{1e-6 * own / steps:9.3f} {own / whole:6.1%} "
            f"{len(spent[name]) / steps:6.1f} {name[:110]}"
        )
    return "\n".join(lines)


class TorchTrainer:
    """nanoGPT's recipe: torch.compile, autocast, TF32, fused AdamW."""

    def __init__(self, tiny: bool):
        import torch

        from parity_tests.torch_gpt import GPT, GPTConfig

        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        self.tiny, self.device = tiny, "cpu" if tiny else "cuda"
        self.model = GPT(GPTConfig(**(TOY if tiny else FULL))).to(self.device)
        self.optimizer = self.model.adamw(0.1, 1e-3, (0.9, 0.99), fused=True)

    def describe(self) -> dict:
        import torch

        return {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}

    def prepare(self, batch: int) -> dict:
        import torch

        T = self.model.c.block_size
        tokens = random_tokens(self.tiny, batch, T + 1)
        self.tokens = torch.from_numpy(tokens).long().to(self.device)
        self.where = (torch.arange(T, device=self.device),)
        self.optimizer.zero_grad(set_to_none=True)
        if not self.tiny:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        loss, compiled = self.model.loss, not self.tiny
        self.loss = torch.compile(loss, dynamic=False) if compiled else loss
        began = time.perf_counter()
        self.advance(1)
        took = time.perf_counter() - began
        peak = 0 if self.tiny else torch.cuda.max_memory_allocated()
        return {"compiled": compiled, "compile_seconds": took, "peak_gb": 1e-9 * peak}

    def run(self, steps: int) -> dict:
        return timed(self.advance, steps)

    def advance(self, steps: int) -> float:
        import torch

        for _ in range(steps):
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.loss(self.tokens[:, :-1], self.tokens[:, 1:], self.where)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def profile(self, folder: str) -> dict:
        import torch

        del folder
        with torch.profiler.profile() as profiler:
            self.advance(3)
        spent: dict[str, list[float]] = {}
        for event in profiler.events():
            if self.tiny or event.device_type == torch.autograd.DeviceType.CUDA:
                spent.setdefault(event.name, []).append(1e3 * event.device_time_total)
        return {"table": table(spent, 3)}


class JaxDecoder:
    """jaxgpt's samplers: one compiled loop over a cache."""

    def __init__(
        self,
        tiny: bool,
        system: str,
        sampler: str = "",
        flags: str = "",
        cudnn: bool = True,
    ):
        if flags and not tiny:
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        set_up(tiny)
        import jax

        from jaxgpt.model import gpu
        from jaxgpt.sampling.state import SamplingParams
        from jaxgpt.systems.registry import build_system

        if not cudnn:
            gpu.has_cudnn = lambda: False
        changes = {}
        if system == "sigma":
            # Bursts are compiled for a dozen widths, up to the block.
            changes["model.block_size"] = 32 if tiny else 256
        self.system = build_system(make_config(tiny, system, **changes))
        self.params = jax.jit(self.system.init)(jax.random.key(0))
        self.how = SamplingParams(sampler)
        self.seeds = iter(range(1 << 30))

    def prepare(self, batch: int, prompt: int, length: int) -> dict:
        self.tokens = np.zeros((batch, length), np.int32)
        self.known = np.arange(length) < np.full((batch, 1), prompt)
        began = time.perf_counter()
        self.run(1)
        return {"compile_seconds": time.perf_counter() - began}

    def run(self, times: int) -> dict:
        import jax

        began = time.perf_counter()
        for _ in range(times):
            key = jax.random.key(next(self.seeds))
            filled = self.system.sample(
                self.params, self.tokens, self.known, key, self.how
            )
        seconds = (time.perf_counter() - began) / times
        return {"seconds": seconds, "calls": float(filled.num_forward_passes_B.mean())}


class TorchDecoder:
    """Eager PyTorch in bfloat16, keys and values kept."""

    def __init__(self, tiny: bool):
        import torch

        from parity_tests.torch_gpt import GPT, GPTConfig

        torch.manual_seed(0)
        self.device = "cpu" if tiny else "cuda"
        model = GPT(GPTConfig(**(TOY if tiny else FULL)))
        self.model = model.to(self.device).bfloat16().eval()

    def prepare(self, batch: int, prompt: int, length: int) -> dict:
        import torch

        shape = (batch, prompt)
        self.start = torch.zeros(shape, dtype=torch.long, device=self.device)
        own = torch.arange(length, device=self.device).expand(batch, length)
        self.where, self.length = (own,), length
        self.run(1)
        return {}

    def run(self, times: int) -> dict:
        began = time.perf_counter()
        for _ in range(times):
            self.model.generate(self.start, self.where, self.length).cpu()
        return {"seconds": (time.perf_counter() - began) / times}


class Parity:
    """The accelerator's numbers against the CPU's in float32, parameters equal."""

    def __init__(self, tiny: bool):
        os.environ["JAX_PLATFORMS"] = "cpu" if tiny else "cuda,cpu"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        from jaxgpt import backend

        backend.set_up_jax()
        self.tiny = tiny
        self.reference = self.results("float32", on="cpu")

    def results(self, dtype: str, on: str = "") -> dict:
        import jax
        import optax

        from jaxgpt.systems.registry import build_system

        config = make_config(self.tiny, "causal", **{"model.dtype": dtype})
        system = build_system(config, on)
        device = jax.devices(on or None)[0]
        with jax.default_device(jax.devices("cpu")[0]):
            params = jax.jit(system.init)(jax.random.key(0))
        params = jax.device_put(params, device)
        batch = {"tokens": random_tokens(self.tiny, 1, system.window)}
        batch = jax.device_put(batch, device)

        def find(params, batch):
            loss = lambda params: system.nll(params, batch).mean()
            value, grads = jax.value_and_grad(loss)(params)
            return system.model(params)(batch["tokens"][:, :-1])[0], value, grads

        precision = "highest" if dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            logits, loss, grads = jax.device_get(jax.jit(find)(params, batch))
        return {
            "logits": np.asarray(logits, np.float64),
            "loss": float(loss),
            "grad_norm": float(optax.tree.norm(grads)),
            "grads": [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)],
        }

    def run(self, dtype: str) -> dict:
        found, true = self.results(dtype), self.reference
        apart = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
        joined = lambda leaves: np.concatenate([leaf.ravel() for leaf in leaves])
        return {
            "logits_max_abs": float(np.abs(found["logits"] - true["logits"]).max()),
            "logits_relative": apart(found["logits"], true["logits"]),
            "grads_relative": apart(joined(found["grads"]), joined(true["grads"])),
            "loss": found["loss"],
            "loss_cpu": true["loss"],
            "grad_norm": found["grad_norm"],
            "grad_norm_cpu": true["grad_norm"],
        }
