"""What needs too much memory is one error that names the settings; a batch larger than the data is refused."""

from pathlib import Path

import pytest
import torch

from tasks.errors import UserError
from tasks.train import memory
from tasks.train.node import train
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
