"""Parameter-efficient tuning of two frozen towers that inform each other at several depths."""
