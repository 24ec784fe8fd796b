"""Expert training: where a time step starts (`tasks.train.node.initialize`) and how it learns (`….node.train`).

The modules are one idea each: `pools` what can be drawn, `mixture` which samples make batch number i, `augment`
random crops, `features` both towers, `loss` the contrastive loss, `schedule` the learning rate, `optimizer` AdamW
and what it decays, `loop` the training loop over them. None but `node` knows of folders, files or params.
"""
