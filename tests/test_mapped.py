"""Arrays in files: what is written is read, in blocks of any size, and nothing is left behind."""

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from coh.data import mapped as module
from coh.data.mapped import blocks, folder_of, list_sizes, mapped, starts

PARTS = st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=9)


@given(PARTS)
def test_blocks_are_one_array(parts):
    found = mapped((np.array(part, np.int64) for part in parts), np.int32)
    assert found.tolist() == [number for part in parts for number in part] and found.dtype == np.int32


@given(PARTS)
def test_things_stand_one_behind_the_other(parts):
    sizes = [number for part in parts for number in part]
    found = [start for block in starts(np.array(part, np.int64) for part in parts) for start in block.tolist()]
    assert found == [sum(sizes[:number]) for number in range(len(sizes))]


def test_the_array_is_read_only_and_its_file_has_no_name(tmp_path):
    found = mapped([np.arange(5)], np.int64, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_columns_in_blocks_whatever_the_table_is_made_of(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    parts = [
        Dataset.from_dict({"a": list(range(n)), "b": [[0] * k for k in range(n)], "c": ["x"] * n}) for n in (7, 1, 9)
    ]
    dataset = concatenate_datasets(parts)
    found = list(blocks(dataset, "b", "a"))
    assert max(len(own) for own, _ in found) <= 4 and len(found) > 4
    assert [number for _, own in found for number in own.to_pylist()] == dataset["a"][:]
    assert np.concatenate([list_sizes(own) for own, _ in found]).tolist() == dataset["a"][:]


def test_where_a_dataset_lies(tmp_path):
    in_memory = Dataset.from_dict({"a": [1]})
    assert folder_of(in_memory) is None
    in_memory.save_to_disk(tmp_path / "saved")
    assert folder_of(Dataset.load_from_disk(tmp_path / "saved")) == tmp_path / "saved"
