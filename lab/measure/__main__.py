"""python -m lab.measure"""

from lab.measure import main

main()
