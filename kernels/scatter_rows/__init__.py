"""Writes to a device's store: many rows of many arrays in one launch, then births, deaths and the epoch in another.

segments.py   where a row's values lie in a staged record, and where each goes in a page
reference.py  the same copies byte for byte on a host: the oracle
staging.py    pinned memory that a host fills while the device reads another
tuning.py     how they are compiled
triton.py     the kernels and their launchers
configs.py    the tuned forms for the ahead-of-time suite
check.py      a handful of cases against the oracle
"""
