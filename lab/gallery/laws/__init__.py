"""Laws that an experiment is held against: exact times of escape in one dimension, least action, drift by label noise."""
