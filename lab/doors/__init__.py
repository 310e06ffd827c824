"""What all doors share, and the only room that knows Hydra: words, settings, folders, grids, and errors in one line.

words    what was typed            request  the settings of one run, out of conf/
door     the one way in            grid     several runs by one command
pages    help                      errors   a slip in one line
"""
