"""python -m lab.selfcheck"""

from lab.selfcheck import main

main()
