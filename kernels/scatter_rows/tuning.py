"""The tuned forms of the two writes. Values only."""

ROWS = 8  # records of a program
LANES = 128  # values of a record that a program copies at once
WARPS = 4
SLOTS = 1_024  # of a step of `publish`
PUBLISH_WARPS = 8
