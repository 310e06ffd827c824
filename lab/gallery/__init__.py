"""The theory gallery: laws, walks, landscapes and the experiments of `python -m lab.simulate`. It uses the lab as a reader would."""
