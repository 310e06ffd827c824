"""python -m lab.simulate"""

from lab.simulate import main

main()
