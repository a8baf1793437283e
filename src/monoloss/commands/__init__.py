"""The commands: one module each, with one plainly typed function whose arguments become options."""
