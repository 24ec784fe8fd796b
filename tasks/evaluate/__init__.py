"""Zero-shot evaluation of the deployed model.

`zeroshot` classifies a test set with classes, `retrieval` finds the pairs of one without, `towers` gives both their
features and `memory` the room for it, `metrics` sums up, `node` runs it all on a project folder.
"""
