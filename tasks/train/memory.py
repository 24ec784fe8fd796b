"""Too little memory for training: one error that names the settings which need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.errors import UserError, is_out_of_memory


@contextmanager
def named(section: str) -> Iterator[None]:
    """Turn torch's and Python's out-of-memory errors into one that says what to change; ``section`` has the batch size.

    Raises:
        UserError: there is too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise UserError(
            f"training needs more memory than {where} has; set a smaller {section}.batch_size, or let train.accumulate "
            "compute a batch in more parts, train.checkpointing: true compute activations twice instead of storing "
            "them, or train.precision: bfloat16 halve them"
        ) from error
