"""What the kernels that go row by row share: norms, positions, activations, gathers and the head of a packed forward.

tuning.py   a row's values among threads
rows.py     rows of a program, the type that sums are in, and which tensors are refused
forms.py    their Config: what the machine code of a kernel that only moves bytes is held to
"""
