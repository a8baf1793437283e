"""The prefix of names on the Hugging Face Hub, ``hf-hub:owner/name``. Tested in ``tests/sae/test_folder.py``."""

HUB = "hf-hub:"
