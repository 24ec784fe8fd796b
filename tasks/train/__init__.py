"""Expert training: initial weights of a time step (`tasks.train.node.initialize`) and its training (`….node.train`).

One module has one subject: `pools` the samples, `mixture` which of them are in batch number i, `augment`
random crops, `features` both towers, `vocabulary` the token embedding cut down to what occurs, `loss` the losses,
`schedule` the learning rate, `optimizer` AdamW, `method` and `methods` the trained parameters, `regularizer` and
`regularizers` the penalties across steps, `importance` the values that these pass on, `budget` and
`measure` how many steps there are, `recipe` every setting of the loop, `loop` the training loop, `saved` its
checkpoints, `nonfinite` its errors, `world` and `launch` several processes. Only `node`, `importance`, `budget`,
`saved`, `nonfinite` and `launch` know folders, files or params.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import UserError
from tasks.params import Params, Train


def check(train: Train) -> None:
    """Check method and regularizer before any work.

    Raises:
        UserError: an unknown method, regularizer or setting, or two that cannot be combined.
    """
    from tasks.train import method, regularizer  # they import torch

    chosen = method.chosen(train.method)
    if train.regularizer and (pulled := regularizer.chosen(train.regularizer)) and chosen.adapts:
        raise UserError(
            f"train.regularizer: {pulled.name} pulls the model's own parameters, and {chosen.name} trains none of them;"
            " leave one out"
        )


def check_codec(params: Params) -> None:
    """Check that the training method has what the codec of experts stores.

    Raises:
        UserError: it has not.
    """
    from tasks.model import codec
    from tasks.train import method

    if codec.chosen(params.store.experts).factors and not method.chosen(params.train.method).adapts:
        raise UserError(
            "store.experts: adapter stores the factors of lora, dora and vera, and train.method "
            f"{params.train.method.name} has none; lossless serves every method"
        )


def check_batches(params: Params, pretraining: int | None, arrivals: Sequence[int | None], *, base: bool) -> None:
    """Refuse a batch that is larger than a step's data, as far as their sizes are known before any work.

    ``pretraining`` and ``arrivals`` are the largest numbers of samples that there can be, None where nothing is known.
    ``base``: whether the base is still to be trained.

    Raises:
        UserError: as `require_enough`.
    """
    if base and params.base.train and pretraining is not None:
        require_enough("base.train", params.base.train.batch_size, pretraining, 0)
    shares, kept = params.train.mixture, params.train.buffer.size
    for step, arrival in enumerate(params.stream, start=1):
        pools = [arrivals[step - 1]]
        if shares.pretraining:
            pools.append(pretraining)
        if shares.buffer:
            earlier = [count for count in arrivals[: step - 1] if count is not None]
            everything = sum(earlier) if len(earlier) == step - 1 else None
            pools.append(everything if kept is None or everything is None else min(everything, kept))
        known = [count for count in pools if count is not None]
        if arrival.expert is None and arrival.from_state is None and len(known) == len(pools):
            require_enough("train", params.train.batch_size, sum(known), step)


def require_enough(key: str, batch_size: int, count: int, step: int) -> None:
    """A batch larger than all there is to draw from would hold samples twice, as negatives of themselves.

    Raises:
        UserError: it is larger; ``key`` is the section of params.yaml that has the batch size.
    """
    if batch_size > count:
        raise UserError(
            f"{key}.batch_size: a batch of {batch_size} is more than the {count} samples that step {step} trains on; "
            f"set it to {count} or less"
        )
