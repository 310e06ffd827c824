"""Experiments of `python -m lab.simulate`: one file each with one subclass of `base.Experiment`, and one card each."""
