"""What needs too much memory is one error that names the settings; a batch larger than the data is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import UserError
from tasks.params import Params
from tasks.train import check_batches, memory
from tasks.train.node import train
from tests.project import PARAMS
from tests.train.project import params, project


def test_too_little_memory_names_the_settings_and_other_errors_pass() -> None:
    by_this_machine = r"than this machine has; set a smaller base\.train\.batch_size.*accumulate"
    with pytest.raises(UserError, match=by_this_machine), memory.named("base.train"):
        torch.empty(1 << 60)
    with pytest.raises(UserError, match=r"than the GPU has.*train\.precision"), memory.named("train"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape"), memory.named("train"):
        raise RuntimeError("shape mismatch")


def test_a_batch_larger_than_the_data_is_refused_before_training(tmp_path: Path) -> None:
    folder = project(tmp_path)
    settings = params(2, train={"steps": 1, "batch_size": 100_000})
    with pytest.raises(UserError, match=r"^train\.batch_size: a batch of 100000 is more than the \d+ samples"):
        train(folder, settings)


def mixture(**zero: float) -> dict[str, float]:
    return {"pretraining": 0.5, "update": 0.5, "buffer": 0.5} | zero


@pytest.mark.parametrize(
    ("pretraining", "arrivals", "train", "message"),
    [
        (10, [100, 100], {"batch_size": 110}, None),
        (10, [100, 5], {"batch_size": 111}, "111 is more than the 110 samples that step 1 trains on"),
        (10, [100, 5], {"batch_size": 105, "mixture": mixture(pretraining=0.0)}, "100 .* step 1"),
        (10, [20, 5], {"batch_size": 18, "mixture": mixture(buffer=0.0)}, "15 .* step 2"),
        (10, [20, 5], {"batch_size": 18, "buffer": {"size": 2}}, "17 .* step 2"),
        (None, [20, 5], {"batch_size": 1000}, None),
        (10, [None, 5], {"batch_size": 1000}, None),
    ],
)
def test_a_batch_larger_than_the_data_is_refused_before_any_work(
    pretraining: int | None, arrivals: list[int | None], train: dict[str, Any], message: str | None
) -> None:
    settings = Params.model_validate({**PARAMS, "train": {"steps": 1, **train}})
    if message is None:
        check_batches(settings, pretraining, arrivals, base=False)
        return
    with pytest.raises(UserError, match=rf"^train\.batch_size: a batch of .*{message}"):
        check_batches(settings, pretraining, arrivals, base=False)


def test_a_base_that_is_still_to_be_trained_needs_its_batch_too() -> None:
    settings = Params.model_validate(PARAMS)
    check_batches(settings, 15, [100, 100], base=False)
    with pytest.raises(UserError, match=r"^base\.train\.batch_size: a batch of 16 is more than the 15 samples"):
        check_batches(settings, 15, [100, 100], base=True)
