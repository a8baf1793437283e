"""The prefix of names on the Hub, ``hf-hub:owner/name``. Tested in ``tests/behaviour/test_shared_sae_folders.py``."""

HUB = "hf-hub:"
