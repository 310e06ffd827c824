"""What all doors share, and the only room that knows Hydra: words, settings, folders, grids, and errors in one line.

words    what was typed                request  one run that is asked for: its settings, out of conf/
door     the one way in                grid     several runs by one command
pages    what help is made of          errors   a slip in one line; memory: too little of it in one line
slips    what names of settings are called elsewhere: cures, synonyms, synonyms_of_cards
parts    a run's settings as data, model, loss and optimiser
"""
