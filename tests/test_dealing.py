"""Rows are dealt: of any number of ranks and workers, one reads each row, and none opens what another will read.

No process is started: accelerate is told which rank of how many it is, and deals as it does in earnest.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from test_trainer import SOURCES, VOCABULARY, collate, make_rows
from torch.utils.data import BatchSampler, SequentialSampler
from toys import byte_tokenizer, pairs, write_rows

from coh.coh_train import fit_length
from coh.data.coh_data import CoHDataArgs, CoHDataset, load_datasets
from coh.trainer import CoHTrainArgs, CoHTrainer, FilledRows

WORLDS = [1, 2, 3, 4, 7, 8, 16, 31, 64]
WORKERS = range(9)


class Counted:
    """Rows that remember which of them were opened."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.opened = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.opened.append(index)
        return self.rows[index]


class Epochs:
    """What `fit_length` needs of a dataset: rows of an epoch, without the rows."""

    num_rows = 0

    def __init__(self, rows_per_epoch: int) -> None:
        self.rows_per_epoch = rows_per_epoch

    def rows_in_epochs(self, epochs: float) -> int:
        return round(epochs * self.rows_per_epoch)


@pytest.fixture
def trainer(tiny_llama, tmp_path):
    """Makes a trainer as rank r of w has it, until the loader is asked for."""
    model = tiny_llama(VOCABULARY)

    def make(world: int, rank: int, train: Any = None, held_out: Any = None, **options: Any) -> CoHTrainer:
        args = CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", **options)
        trainer = CoHTrainer(
            model, args, train_dataset=train, eval_dataset=held_out, source_names=SOURCES, data_collator=collate
        )
        # Made anew for every CoHTrainArgs, so nothing has to be put back.
        kind = DistributedType.MULTI_CPU if world > 1 else DistributedType.NO
        for state in (PartialState, AcceleratorState):
            state._shared_state.update(
                num_processes=world, process_index=rank, local_process_index=rank, distributed_type=kind
            )
        assert (trainer.args.world_size, trainer.accelerator.num_processes) == (world, world)
        return trainer

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def batches(loader: Any) -> list[list[int]]:
    """Which rows a rank will ask for, without reading them."""
    return list(loader.batch_sampler)


class TestTraining:
    @pytest.mark.parametrize("batch_size", [1, 3])
    @pytest.mark.parametrize("world", WORLDS)
    def test_every_row_of_a_run_goes_to_one_rank_once(self, trainer, world, batch_size):
        steps, accumulation = 2, 2
        rows = [None] * (steps * accumulation * batch_size * world)
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        dealt = [
            batches(trainer(world, rank, rows, max_steps=steps, **options).get_train_dataloader())
            for rank in range(world)
        ]
        assert {len(of_rank) for of_rank in dealt} == {steps * accumulation}
        assert sorted(chain(*chain(*dealt))) == list(range(len(rows)))
        # A step is a run of neighbouring rows, whatever the world, which is what makes equal runs equal.
        for step in range(steps):
            part = slice(step * accumulation, (step + 1) * accumulation)
            first = step * accumulation * batch_size * world
            seen = sorted(chain(*chain(*(of_rank[part] for of_rank in dealt))))
            assert seen == list(range(first, first + accumulation * batch_size * world))

    def test_all_worlds_up_to_1024_in_whole_steps(self, monkeypatch, tmp_path):
        """Epochs of awkward lengths: each row once, then the first rows of the next epoch up to a whole step."""
        from accelerate.data_loader import BatchSamplerShard

        args = CoHTrainArgs(
            output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=2
        )
        for world in range(1, 1025):
            monkeypatch.setattr(CoHTrainArgs, "world_size", world)
            per_step = 4 * world
            for rows_per_epoch in (1, per_step - 1, per_step, per_step + 1):
                args.max_steps, args.num_train_epochs = -1, 1.0
                rows = Epochs(rows_per_epoch)
                fit_length(rows, args)
                assert rows.num_rows == args.max_steps * per_step
                assert rows_per_epoch <= rows.num_rows < rows_per_epoch + per_step
            # Some ranks of this world by accelerate's own dealer, all of them by what that does.
            whole = BatchSampler(SequentialSampler(range(rows.num_rows)), 2, drop_last=False)
            owner = (np.arange(rows.num_rows) // 2) % world
            assert (np.bincount(owner, minlength=world) == rows.num_rows // world).all()
            for rank in {world // 3, world - 1}:
                theirs = list(BatchSamplerShard(whole, world, rank))
                assert list(chain(*theirs)) == np.flatnonzero(owner == rank).tolist()
                assert len(theirs) == 2 * args.max_steps

    def test_a_run_that_is_not_whole_would_be_padded_by_accelerate_with_rows_seen_already(self):
        """Why the length is fitted: the law above is not one of accelerate's."""
        from accelerate.data_loader import BatchSamplerShard

        whole = BatchSampler(SequentialSampler(range(10)), 2, drop_last=False)
        seen = list(chain(*chain(*(BatchSamplerShard(whole, 4, rank) for rank in range(4)))))
        assert sorted(seen) != list(range(10)) and set(seen) == set(range(10))

    @pytest.mark.parametrize("world", [1, 2, 5])
    def test_a_rank_opens_its_own_rows_only(self, trainer, world):
        opened = []
        for rank in range(world):
            rows = Counted(make_rows(4 * world))
            loader = trainer(world, rank, rows, max_steps=2, per_device_train_batch_size=2).get_train_dataloader()
            read = [batch["row"].tolist() for batch in loader]
            assert read == batches(loader) and sorted(rows.opened) == sorted(chain(*read))
            opened += rows.opened
        assert sorted(opened) == list(range(4 * world))


class TestEvaluation:
    @pytest.mark.parametrize("world", WORLDS)
    @pytest.mark.parametrize("count", [1, 5, 13])
    def test_each_row_once_and_as_many_batches_on_every_rank(self, trainer, world, count):
        rows = make_rows(count)
        given, num_batches = [], set()
        for rank in range(world):
            counted = Counted(rows)
            made = trainer(world, rank, held_out=counted, per_device_eval_batch_size=2)
            read = [batch["row"] for batch in made.get_eval_dataloader()]
            num_batches.add(len(read))
            assert all(len(batch) == 2 for batch in read)
            mine = [int(row) for row in torch.cat(read) if row >= 0]
            given += mine
            # Padding has the shape of a row: of an own one, but where the rows do not fill one round of all ranks.
            assert set(mine) <= set(counted.opened) <= {*mine, *([0] if count < 2 * world else [])}
        assert len(num_batches) == 1 and sorted(given) == list(range(count))

    def test_all_worlds_up_to_1024(self):
        for world in range(1, 1025):
            for count in (1, 2 * world - 1, 2 * world, 2 * world + 1):
                filled = FilledRows(range(count), 2 * world)
                assert len(filled) % (2 * world) == 0 and 0 <= len(filled) - count < 2 * world

    def test_persistent_workers_are_not_kept_for_another_dataset(self, trainer):
        validation, test = make_rows(3), make_rows(5)
        made = trainer(
            1, 0, held_out=validation, dataloader_num_workers=1, dataloader_persistent_workers=True, disable_tqdm=True
        )
        assert made.get_eval_dataloader().dataset.rows is validation
        assert made.get_eval_dataloader(test).dataset.rows is test


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> CoHDataset:
    folder = tmp_path_factory.mktemp("dealt")
    args = CoHDataArgs(
        feedback_data=[f"mine={write_rows(folder / 'pairs.jsonl', pairs(40, length=3))}"],
        pretrain_data="none",
        templates=["marker"],
        seq_length=128,
    )
    return load_datasets(args, byte_tokenizer(), cache_dir=str(folder / "cache"))["train"]


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


class TestWorkers:
    """A loader gives batch k to worker k mod n, each of which has the dataset as it was when workers started."""

    @pytest.mark.parametrize("world", [1, 3])
    @pytest.mark.parametrize("workers", WORKERS)
    def test_rows_are_the_same_whichever_worker_reads_them(self, trainer, dataset, world, workers):
        from copy import copy

        expected = {row: dataset[row] for row in range(24)}
        fresh = dataset.feedback_rows
        for rank in range(world):
            loader = trainer(world, rank, range(24), max_steps=1, per_device_train_batch_size=2).get_train_dataloader()
            hands = []
            for _ in range(max(workers, 1)):
                hand = copy(dataset)
                hand.feedback_rows = type(fresh)(
                    fresh._window, fresh.num_windows, fresh._capacity, fresh._packing, fresh._seed, fresh._name
                )
                hands.append(hand)
            dealt = batches(loader)
            for worker, hand in enumerate(hands):  # one after the other, so in another order than alone
                for batch in dealt[worker :: len(hands)]:
                    assert all(same(hand[row], expected[row]) for row in batch)

    def test_real_workers_give_what_is_read_without(self, dataset, trainer):
        rows = [dataset[row] for row in range(16)]
        for workers in (0, 2):
            made = trainer(1, 0, dataset, max_steps=1, dataloader_num_workers=workers, per_device_train_batch_size=2)
            read = [batch["row"] for batch in made.get_train_dataloader()][:8]
            assert torch.cat(read).tolist() == [int(row["row"]) for row in rows]
