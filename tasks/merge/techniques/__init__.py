"""The merging techniques, one file a family; each is picked up by its being here.

A new one is a class in a new file: an `Accumulator` (`tasks.merge.technique`) where experts can be taken one by one
into a running state, else a `Technique`; or composed of the parts in `tasks.merge.parts`. Its fields are its settings.
"""
