"""Hugging Face datasets: opened, and their Arrow columns read."""
