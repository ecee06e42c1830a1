"""What --report_to sends is what the run's own log holds, under the names that Trainer gives it for every tracker."""

import json

import pytest
from test_coh_train import options
from toys import training_folder
from transformers.integrations.integration_utils import rewrite_logs

from coh import coh_train

pytestmark = pytest.mark.slow
TOTALS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")


def test_tensorboard_gets_every_series_of_the_log(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, output = training_folder(tmp_path), tmp_path / "out"
    changes = {"eval_pairs": 3, "eval_strategy": "steps", "eval_steps": 2, "report_to": "tensorboard", "max_steps": 4}
    coh_train.main(options(folder, output, **changes))
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    expected = {}
    for log in history:
        if not {*TOTALS} & {*log}:
            named = rewrite_logs({name: value for name, value in log.items() if name not in ("step", "epoch")})
            expected |= {(name, log["step"]): value for name, value in named.items()}
    assert {"train/loss_feedback", "train/loss_pretrain", "train/tokens_per_second"} <= {name for name, _ in expected}
    assert ("eval/mine_steering_gap", 4) in expected
    (events,) = {path.parent for path in output.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(events)).Reload()
    sent = {(name, event.step): event.value for name in found.Tags()["scalars"] for event in found.Scalars(name)}
    assert expected.keys() <= sent.keys()
    assert {key: sent[key] for key in expected} == pytest.approx(expected, rel=1e-6)
