"""Percolation: which of a million standing queries do a few postings satisfy, each with its own threshold and filters.

    reference.py  what must be found and what may be, in float64: the oracle
    rows.py       a standing query as a device holds it, and the certified bound on what its rounding costs
    standing.py   the standing queries of one space in slabs of device memory
    postings.py   a batch of postings as one piece of staging: condition bits, vectors, sketches
    room.py       where what is found goes
    tuning.py     the tuned forms of the kernels, by width and bucket
    scan.py       the kernels
    triton.py     their launcher
    configs.py    the tuned forms for the ahead-of-time suite
    check.py      a handful of cases against the oracle

Who rescores exactly, and who owns the ids, is retrieval/percolate.
"""
