"""`sample --input --output`: a file of prompts and templates, and one of texts."""

import itertools
import json

import pytest

from jaxgpt import sample
from jaxgpt.systems import batches
from tests.conftest import refusal

LINES = [
    {"prompt": "ROMEO:", "max_new_tokens": 5},
    {"template": "To <missing:4> be", "seed": 3},
    {"prompt": "the", "num_samples": 3, "seed": 7},
    {"prompt": "", "max_new_tokens": 9, "seed": 3},
    {"template": "To be <missing:2> not to be, that is the <missing:4>n, or not"},
]


@pytest.fixture
def files(tmp_path, trained):
    """Writes lines; returns options of `sample` and the path of the output."""

    def files(lines):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / "in.jsonl").write_text(text)
        output = tmp_path / "out.jsonl"
        options = [f"--workdir={trained}", f"--input={tmp_path / 'in.jsonl'}"]
        return [*options, f"--output={output}"], output

    return files


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("rows", [256, 2])
def test_each_line_is_what_it_is_alone(files, trained, capsys, monkeypatch, rows):
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", rows)
    options, output = files(LINES)
    sample.command([*options, "--max_new_tokens=7", "--json=-"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["lines"], figures["samples"]) == (5, 7)
    for line, found in zip(LINES, read(output), strict=True):
        default = {"max_new_tokens": 7} if "prompt" in line else {}
        given = [f"--{key}={value}" for key, value in (default | line).items()]
        sample.command([f"--workdir={trained}", *given, "--json=-"])
        alone = json.loads(capsys.readouterr().out.splitlines()[-1])["samples"]
        objects = found["samples"] if "num_samples" in line else [found]
        for one, other in zip(objects, alone, strict=True):
            assert [*one] == ["text", "tokens", "log_prob", "num_forward_passes"]
            assert one["text"] == other["text"]
            assert one["tokens"] == other["tokens"]
            assert one["log_prob"] == pytest.approx(other["log_probability"], 1e-5)
            assert one["num_forward_passes"] == other["model_calls"]
    assert not list(output.parent.glob("*.partial"))


def test_it_goes_on_where_it_was_stopped(files, monkeypatch, tmp_path):
    options, output = files(LINES)
    sample.command(options)
    whole = output.read_bytes()
    output.unlink()
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 2)
    stack, calls = batches.stack, itertools.count()

    def stopped(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return stack(*arguments)

    monkeypatch.setattr(batches, "stack", stopped)
    with pytest.raises(KeyboardInterrupt):
        sample.command(options)
    partial = tmp_path / "out.jsonl.partial"
    assert not output.exists() and len(partial.read_text().splitlines()) == 3
    assert "another run, input or options" in refusal(
        sample.command, [*options, "--temperature=2"]
    )
    partial.write_bytes(partial.read_bytes() + b'{"text": "cut of')
    sample.command(options)
    found, expected = read(output), list(map(json.loads, whole.splitlines()))
    texts = lambda lines: [one.get("samples", one) for one in lines]
    for one, other in zip(texts(found), texts(expected), strict=True):
        ones, others = (x if isinstance(x, list) else [x] for x in (one, other))
        assert [x["tokens"] for x in ones] == [x["tokens"] for x in others]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: not JSON"),
        ("", "line 2: not JSON"),
        ("[]", "must be an object"),
        ('{"prompt": 3}', "prompt must be a text, got 3"),
        ('{"prompt": "a", "seed": true}', "seed must be an integer"),
        ('{"prompt": "a", "seed": -1}', ">= 0, got -1"),
        ('{"prompt": "a", "top_k": 3}', "unknown 'top_k'"),
        ('{"prompt": "a", "template": "b"}', "one of prompt and template"),
        ('{"seed": 1}', "one of prompt and template"),
        ('{"template": "a<missing:2>", "max_new_tokens": 1}', "gaps set their lengths"),
        ('{"template": "a<missing:65536>"}', "only 65536 fit"),
        ('{"prompt": "\\u2603"}', "'☃'"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_generated(files, line, expected):
    options, output = files([])
    output.with_name("in.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    message = refusal(sample.command, options)
    assert "line 2" in message and expected in message
    assert not list(output.parent.glob("out*"))


def test_wrong_options_are_one_line(files, tmp_path):
    options, output = files(LINES)
    refused = lambda *more: refusal(sample.command, [*options, *more])
    assert "each other" in refusal(sample.command, options[:2])
    assert "--live" in refused("--live")
    assert "not allowed with" in refused("--prompt=a")
    output.write_text("")
    assert "exists" in refused()
    output.unlink()
    (tmp_path / "in.jsonl").write_text("")
    assert "must be a JSON object a line" in refused()


def test_a_prompt_is_read_from_a_file(trained, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("ROMEO:\n")
    command = lambda prompt: [
        f"--workdir={trained}", f"--prompt={prompt}", "--max_new_tokens=0"
    ]  # fmt: skip
    sample.command(command(f"@{tmp_path / 'p.txt'}"))
    assert capsys.readouterr().out == "ROMEO:\n\n"
    message = refusal(sample.command, command("@none"))
    assert "--prompt='@none'" in message and "@@" in message
    (tmp_path / "p.txt").write_bytes(b"\xff")
    assert "not UTF-8" in refusal(sample.command, command(f"@{tmp_path / 'p.txt'}"))
    assert "'@'" in refusal(sample.command, command("@@a"))  # Not in the vocabulary.
