"""The peak memory of importing and exporting a GPT-2 of random weights.

python -m benchmarks.convert_memory [--size=medium|large|...] [--formats=gpt2,nanogpt]

Each conversion is a process of its own. What is printed is the most memory that it had
resident at once (VmHWM of Linux: all of it, Python and JAX included), over the bytes of
the parameters in float32. nanogpt's .pt files need PyTorch.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.alternate import machine

SIZES = {
    "tiny": (2, 2, 64),
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
}
VOCABULARY, BLOCK = 50257, 1024
# Runs jaxgpt.convert, then says its peak: the parent would see its own in ru_maxrss.
CHILD = """
import pathlib, sys
from jaxgpt import cli, convert
try:
    cli.main(convert.command)
finally:
    status = dict(
        line.split(":", 1) for line in
        pathlib.Path("/proc/self/status").read_text().splitlines()
    )
    print("peak kB:", status["VmHWM"].split()[0], flush=True)
"""


def shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a GPT-2's parameters, by Hugging Face's names."""
    found: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY, width),
        "wpe.weight": (BLOCK, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for i in range(layers):
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            found[f"h.{i}.{name}.weight"] = (rows, columns)
            found[f"h.{i}.{name}.bias"] = (columns,)
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            found[f"h.{i}.{name}"] = (width,)
    return found


def write_folder(folder: pathlib.Path, layers: int, heads: int, width: int) -> int:
    """Writes a GPT-2 as Hugging Face has it; returns the bytes of its parameters."""
    header, end = {}, 0
    for name, shape in shapes(layers, width).items():
        begin, end = end, end + 4 * int(np.prod(shape))
        offsets = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        header[name] = offsets
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes(layers, width).values():
            drawn = generator.standard_normal(shape, np.float32)
            stream.write((0.02 * drawn).data)
    config = {"model_type": "gpt2", "activation_function": "gelu"}
    config |= {"n_layer": layers, "n_head": heads, "n_embd": width}
    config |= {"n_positions": BLOCK, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))
    return end


def peak_bytes(*options: str) -> tuple[int, float]:
    """Returns (the peak, the seconds) of a conversion."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *options], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(options)}: {done.stderr[-500:]}")
    peak = int(done.stdout.rpartition("peak kB:")[2]) * 1024
    return peak, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--formats", default="gpt2,nanogpt")
    args = parser.parse_args()
    layers, heads, width = SIZES[args.size]
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        weights = write_folder(folder / "gpt2", layers, heads, width)
        print(f"{machine()}; {args.size}: {weights / 1e9:.2f} GB of parameters")
        source, workdir = folder / "gpt2", f"--workdir={folder / 'run'}"
        conversions = [("gpt2", f"--source={source}")]
        for form in args.formats.split(","):
            suffix = "" if form == "gpt2" else ".pt"
            output = folder / f"{form}-out{suffix}"
            conversions.append((form, f"--output={output}"))
            if form != "gpt2":
                conversions.append((form, f"--source={output}"))
        for number, (form, option) in enumerate(conversions):
            if option.startswith("--source"):
                workdir = f"--workdir={folder / f'run-{number}'}"
            peak, seconds = peak_bytes(f"--format={form}", option, workdir)
            done = "import" if option.startswith("--source") else "export"
            figures[f"{form} {done}"] = round(peak / weights, 2)
            print(
                f"{form + ' ' + done:16} {peak / 1e9:6.2f} GB, {peak / weights:5.2f} "
                f"times the parameters, {seconds:5.1f} s",
                flush=True,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
