"""The theory gallery: laws, walks, landscapes, and the experiments of `python -m lab.simulate` that test them.

It uses the lab as a reader would; nothing in the lab but the door `lab.simulate` uses it.
"""
