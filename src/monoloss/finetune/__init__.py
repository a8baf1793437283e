"""Vision models fine-tuned with MonoLoss on a layer of theirs."""
