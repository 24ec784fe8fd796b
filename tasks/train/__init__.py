"""Expert training: where a time step starts (`tasks.train.node.initialize`) and how it learns (`….node.train`).

The modules are one idea each: `pools` what can be drawn, `mixture` which samples make batch number i, `augment`
random crops, `features` both towers, `vocabulary` the token embedding cut down to what occurs, `loss` the losses,
`schedule` the learning rate, `optimizer` AdamW and what it decays, `recipe` every setting of the loop, `loop` the
training loop, `saved` its checkpoints, `nonfinite` how it fails, `world` and `launch` several processes. None but
`node`, `saved`, `nonfinite` and `launch` knows of folders, files or params.
"""
