"""Access to Hugging Face datasets: opening them, and reading their Arrow columns."""
