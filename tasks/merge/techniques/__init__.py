"""The merging techniques, one file a family; `tasks.choice` finds them here.

A new one is a class in a new file: an `Accumulator` (`tasks.merge.sequential`) where experts can be taken one by one
into a running state, else a `Technique`; or composed of `tasks.merge.sparsifiers` and `tasks.merge.combining`. Its
fields are its settings.
"""
