"""python -m lab.report"""

from lab.report import main

main()
