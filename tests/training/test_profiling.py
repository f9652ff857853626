import pytest

from jaxgpt import config as configs
from jaxgpt.commands.train import train
from jaxgpt.training.profiling import PARTS, Clock
from tests.conftest import TINY


@pytest.mark.trains
def test_chosen_steps_are_traced_and_the_time_of_a_step_is_told(tmp_path, capsys):
    config = configs.load(TINY, {"profile": "5:6", "steps": "10"})
    assert train(config, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "trace written" in said
    assert "time of 10 steps" in said
    for part in PARTS:
        assert f"  {part}" in said
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["5", "6:5", "0:1", "a:b", "1:2:3"])
def test_steps_that_are_none_are_refused(text):
    config = configs.override(configs.base(), {"profile": text})
    with pytest.raises(configs.UserError, match="FIRST:LAST"):
        configs.validate(config)


def test_a_clock_adds_up():
    clock = Clock()
    clock.seconds.update(data=0.5, device=1.5)
    clock.steps = 4
    assert "data            125.00   25.0%" in clock.report()
