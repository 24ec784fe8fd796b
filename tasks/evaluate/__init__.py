"""Zero-shot evaluation of the deployed model.

`zeroshot` scores a test set with classes, `retrieval` one without; `towers` computes features, `memory` keeps freed
memory for reuse, `metrics` computes the summary, `parts` divides the work, and `node` is the node ``evaluate``.
"""
