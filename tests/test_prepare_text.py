import json
import subprocess

import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.data.tokenizers import END_OF_TEXT, GPT2Tokenizer
from jaxgpt.systems.registry import build_system
from scripts import prepare_text


def test_documents_become_a_folder_to_train_on(tmp_path):
    texts = [f"Document {i}: " + "word " * 30 for i in range(40)]
    counts = prepare_text.write_splits(texts, tmp_path, one_in=8)
    train, val = (np.fromfile(tmp_path / f"{s}.bin", np.uint16) for s in counts)
    assert {"train": len(train), "val": len(val)} == counts
    split = {"train": [], "val": []}
    for index, text in enumerate(texts):
        which = "val" if prepare_text.held_out(index, 8) else "train"
        split[which] += [*GPT2Tokenizer().encode(text), END_OF_TEXT]
    assert train.tolist() == split["train"]
    assert val.tolist() == split["val"]
    changes = {"data.path": str(tmp_path), "model.block_size": "16"}
    config = configs.load("configs/sigma_text.py:tiny", changes)
    assert build_system(config).open_data().vocab_size == GPT2Tokenizer.vocab_size


def test_too_few_documents_are_one_line(tmp_path):
    with pytest.raises(configs.UserError, match="too few documents"):
        prepare_text.write_splits(["one"], tmp_path, one_in=2000)
    assert not (tmp_path / "train.bin").exists()


def test_local_files_are_read(tmp_path):
    pytest.importorskip("datasets")
    rows = [json.dumps({"text": f"line {i}", "id": i}) for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    options = ("", "", str(tmp_path / "*.jsonl"), "train")
    found = list(prepare_text.open_documents(*options, "text"))
    assert found == [f"line {i}" for i in range(5)]
    with pytest.raises(
        configs.UserError, match="no column 'body': the columns are text"
    ):
        list(prepare_text.open_documents(*options, "body"))


def test_documents_without_text_are_left_out_and_said(tmp_path, capsys):
    pytest.importorskip("datasets")
    rows = ['{"text": null, "id": 0}', '{"text": "one", "id": 1}', '{"id": 2}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "empty.jsonl").touch()
    options = ("", "", str(tmp_path / "*.jsonl"), "train")
    assert list(prepare_text.open_documents(*options, "text")) == ["one"]
    assert "note: 2 documents without text are left out" in capsys.readouterr().err
    with pytest.raises(configs.UserError, match="column 'id' holds int, not text"):
        list(prepare_text.open_documents(*options, "id"))
    with pytest.raises(configs.UserError, match="found none"):
        only = str(tmp_path / "empty.jsonl")
        list(prepare_text.open_documents("", "", only, "train", "text"))


@pytest.mark.process
@pytest.mark.parametrize("name", ["tpu_vm.sh", "train.sbatch"])
def test_scripts_are_shell(name):
    subprocess.run(["bash", "-n", f"scripts/{name}"], check=True)


@pytest.mark.process
def test_the_slice_script_says_what_it_knows():
    ran = subprocess.run(
        ["bash", "scripts/tpu_vm.sh", "nonsense"],
        env={"TPU": "a", "ZONE": "b", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: 'nonsense' is none of create, copy")
