import pytest

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.interop.formats import FORMATS, get_format


def config_of(name):
    """The config of a small run that a format can hold."""
    form = get_format(name)
    config = configs.override(configs.base(), {"system": form.system})
    fields = {field: config.model[field] for field in form.sizes}
    fields |= {k: next(iter(v.values())) for k, (_, v, _) in form.choices.items()}
    fields |= form.fixed_fields(fields)
    return configs.override(config, {f"model.{k}": v for k, v in fields.items()})


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_fixes_are_fields_of_the_model(name):
    config = config_of(name)
    assert get_format(name).fixed_fields(config.model).keys() <= set(config.model)
    get_format(name).check_run(config)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field, value", [("key_width", 8), ("qk_norm", True)])
def test_a_field_that_no_original_knows_is_not_exported(name, field, value):
    config = configs.override(config_of(name), {f"model.{field}": value})
    with pytest.raises(UserError, match=rf"model\.{field} must be"):
        get_format(name).check_run(config)


@pytest.mark.parametrize("name", FORMATS)
def test_a_field_that_is_not_used_may_differ(name):
    config = config_of(name)
    unused = "sinusoid_scale" if config.model.positions == "rope" else "rope_theta"
    configs.override(config, {f"model.{unused}": 7.0})
    get_format(name).check_run(config)
