"""The prefix by which a user names something on the Hugging Face Hub, as in ``hf-hub:owner/name``."""

HUB = "hf-hub:"
