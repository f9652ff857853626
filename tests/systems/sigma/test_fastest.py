"""--sampler=auto: what it chooses, what it keeps, and that it changes no text."""

import json

import pytest

import jaxgpt
from jaxgpt import sample
from jaxgpt.systems.sigma.samplers import fastest
from tests.conftest import refusal

AR, BURST = {"ar": 1.0, "exact-burst": 2.0}, {"ar": 2.0, "exact-burst": 1.0}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of an empty cache of what was measured."""
    monkeypatch.setenv("JAXGPT_CACHE", str(tmp_path))
    return tmp_path / "samplers"


@pytest.fixture
def measured(kept, monkeypatch):
    """Sets what is measured; returns the rows of each time that it was."""

    def measured(*seconds):
        results, asked = iter(seconds), []
        monkeypatch.setattr(
            fastest, "measure", lambda *a: asked.append(len(a[2])) or next(results)
        )
        return asked

    return measured


@pytest.fixture(scope="module")
def run(trained):
    return jaxgpt.load(str(trained))


def texts(run, sampler, **options):
    found = run.generate("ROMEO:", sampler=sampler, num_samples=3, seed=5, **options)
    return [sample.text for sample in found]


@pytest.mark.parametrize("seconds", [AR, BURST])
def test_the_faster_one_is_taken_and_kept(run, kept, measured, capsys, seconds):
    asked = measured(seconds)
    name = min(seconds, key=seconds.get)
    assert texts(run, "auto") == texts(run, name)
    assert f"auto is {name}: ar {1e3 * seconds['ar']:.3g} ms" in capsys.readouterr().err
    assert texts(run, "auto") == texts(run, name)  # Measuring again would fail.
    assert "measured before" in capsys.readouterr().err
    assert asked == [3]
    assert [json.loads(file.read_text()) for file in kept.iterdir()] == [seconds]


def test_other_batches_lengths_and_options_are_measured_anew(run, kept, measured):
    asked = measured(*[AR] * 9)
    fill = lambda **options: run.generate("ROMEO:", sampler="auto", **options)
    fill(num_samples=3)
    fill(num_samples=4)
    assert asked == [3]
    fill(num_samples=5)
    fill(num_samples=3, max_new_tokens=2)
    fill(num_samples=3, order="left-to-right")
    assert asked == [3, 5, 3, 3]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "\udcff",
        '{"ar": 1}',
        '{"ar": NaN, "exact-burst": 1}',
        '{"ar": "x", "exact-burst": 1}',
        '{"ar": null, "exact-burst": 1}',
    ],
)
def test_what_is_kept_and_damaged_is_measured_anew(run, kept, measured, content):
    asked = measured(BURST, AR)
    first = texts(run, "auto")
    (file,) = kept.iterdir()
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert texts(run, "auto") == texts(run, "ar") != first
    assert asked == [3, 3]
    assert json.loads(file.read_text()) == AR


def test_without_a_cache_it_is_measured_every_time(run, kept, measured):
    kept.write_text("no folder")
    asked = measured(AR, AR)
    assert texts(run, "auto") == texts(run, "auto")
    assert asked == [3, 3]


def test_lowest_entropy_first_is_not_measured(run, measured, capsys):
    options = {"order": "low-entropy-first"}
    assert texts(run, "auto", **options) == texts(run, "ar", **options)
    assert "auto is ar" in capsys.readouterr().err


def test_it_measures_both(run, kept):
    run.generate("ROMEO:", sampler="auto", max_new_tokens=3)
    (file,) = kept.iterdir()
    seconds = json.loads(file.read_text())
    assert seconds.keys() == {"ar", "exact-burst"}
    assert all(0 < value < 60 for value in seconds.values())


def test_all_lines_of_a_file_have_one_sampler(trained, measured, tmp_path, capsys):
    lines = [{"prompt": "ROMEO:", "seed": seed} for seed in range(3)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    asked = measured(AR)
    made = {}
    for name in ("auto", "ar", "exact-burst"):
        output = tmp_path / f"{name}.jsonl"
        options = [f"--input={source}", f"--output={output}", f"--sampler={name}"]
        sample.command([f"--workdir={trained}", *options])
        made[name] = output.read_text()
    assert made["auto"] == made["ar"] != made["exact-burst"]
    assert asked == [3]


def test_a_file_that_was_begun_with_the_other_sampler_is_not_gone_on_with(
    trained, kept, measured, tmp_path, monkeypatch
):
    from jaxgpt.systems import batches

    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "ROMEO:", "num_samples": 3}\n')
    options = [f"--workdir={trained}", f"--input={source}", f"--output={output}"]
    measured(AR, BURST)
    stack = batches.stack
    monkeypatch.setattr(batches, "stack", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample.command([*options, "--sampler=auto"])
    monkeypatch.setattr(batches, "stack", stack)
    for file in kept.iterdir():
        file.unlink()
    message = refusal(sample.command, [*options, "--sampler=auto"])
    assert "another run, input or options" in message


def test_what_cannot_be_chosen_for_is_refused(run):
    with pytest.raises(jaxgpt.UserError, match="--sampler must be a sampler by name"):
        run.system.sampler(fastest.SamplingParams("auto"))
    message = refusal(run.generate, "ROMEO:", sampler="auto", num_orders=2)
    assert message == "--num_orders needs --sampler=burst, got auto"
