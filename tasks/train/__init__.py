"""Expert training: where a time step starts (`tasks.train.node.initialize`) and how it learns (`….node.train`).

The modules are one idea each: `pools` what can be drawn, `mixture` which samples make batch number i, `augment`
random crops, `features` both towers, `vocabulary` the token embedding cut down to what occurs, `loss` the losses,
`schedule` the learning rate, `optimizer` AdamW and what it decays, `method` and `methods` what trains of the model,
`regularizer` and `regularizers` what pulls it towards earlier steps, `importance` what these hand on, `budget` and
`measure` how many steps there are, `recipe` every setting of the loop, `loop` the training loop, `saved` its
checkpoints, `nonfinite` how it fails, `world` and `launch` several processes. None but `node`, `importance`, `budget`,
`saved`, `nonfinite` and `launch` knows of folders, files or params.
"""

from __future__ import annotations

from tasks.errors import UserError
from tasks.params import Train


def check(train: Train) -> None:
    """Refuse what cannot be trained, before any work.

    Raises:
        UserError: an unknown method or regularizer, a setting that it does not accept, or two that do not go together.
    """
    from tasks.train import method, regularizer  # they import torch

    chosen = method.chosen(train.method)
    if train.regularizer and (pulled := regularizer.chosen(train.regularizer)) and chosen.adapts:
        raise UserError(
            f"train.regularizer: {pulled.name} pulls the model's own parameters, and {chosen.name} trains none of them;"
            " leave one out"
        )
