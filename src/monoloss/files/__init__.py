"""Writing files and folders whole or not at all, and reading them strictly."""
