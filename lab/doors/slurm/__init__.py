"""The cells of a grid as jobs of Slurm: sent off as an array, watched through squeue and the run folders.

card    the settings of `launcher=slurm`
job     what a job does with its cell
batch   jobs handed to sbatch
queue   how the jobs stand, as squeue says
record  which job has which cell, on disk for the commands that come after
watch   from what squeue and the run folder say of a cell to what becomes of it
lines   what is said of them
driver  all of it together
"""

from lab.doors.slurm.driver import submitted

__all__ = ["submitted"]
