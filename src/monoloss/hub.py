"""Names on the Hugging Face Hub, as a user writes them."""

HUB = "hf-hub:"  # what they start with
