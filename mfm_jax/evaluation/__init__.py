"""Evaluation of generated sound: pairs, scores with intervals, and a report to read and hear.

`evaluate` is the whole of it. `clips` pairs files by name, `measure` scores one clip and `networks`
what needs networks, `figures` makes numbers for all clips with intervals, `catalogue` says what
each number is, and `report` and `page` write them.
"""
