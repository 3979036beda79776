"""The `bridger` command: one file per verb, what they share in base.py."""
