"""What is measured on a device once and kept in a file: which form of a kernel is the quickest there.

kept.py       the file, its entries, and the keys that they are found by
taken.py      a launch by what is kept, or by the default where the device refuses that
measured.py   contenders run in turns: the median of each, and the quickest

Operators say which tunings fit a shape (their tuning.py) and what is run to tell them apart.
"""
