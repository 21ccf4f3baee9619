"""Measurements, and the reference ways of doing things that they are made against. Not part of the package.

Run from the project's folder. `nbs/benchmark.ipynb` explains what is measured and shows what was recorded.

    python -m benchmarks.run               this package's way against the released code's, section by section
    python -m benchmarks.pretraining       the same for pre-training on augmented views
    python -m benchmarks.studies           larger data, faster modes, starting up, the cells of a table
    python -m benchmarks.rehearsal         a data set of FSDnoisy18k's size with made-up features
    python -m benchmarks.whole_trainings   whole trainings by `fit` and by a plain loop
    python -m benchmarks.pytorch_channels_last_batch_norm   PyTorch's inexact batch norm in a small script
"""
