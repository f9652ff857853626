"""Every check of docs/sigma-defects.md."""

import pathlib

import pytest

from parity_tests.sigma_defects import DEFECTS

pytestmark = pytest.mark.unoptimised


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.check.__name__)
def test_defect_is_not_ours(defect, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    assert defect.check()
