"""python -m lab.train"""

from lab.train import main

main()
