"""Streams cut automatically: data sets' classes, ordered and dealt out to time steps (TIME, arXiv 2412.06712).

`material` what is cut, `ordering` and `orderings` in which order it arrives, `cut` the time steps and their file. An
ordering is one file in `tasks.stream.orderings`.
"""
