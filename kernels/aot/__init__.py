"""Every tuned form of every kernel, compiled for a GPU that is not here, and what its machine code is held to.

    config.py    Config: one kernel, its types and constants, and what its SASS must hold (Expectation)
    registry.py  the configs of all operators: each folder of kernels/ may have a configs.py with `configs()`
    compile.py   a Config to a cubin for sm_90, on any Triton from 3.6 on, with no device
    sass.py      a cubin to figures: registers, spills, shared memory, tensor-core and copy instructions, the main loop
    check.py     figures against expectations
    __main__.py  `python -m penstock.kernels.aot`: all of it as a table, or as JSON; 1 where an expectation fails

Nothing here runs a kernel, and nothing that serves imports it.
"""
