"""What any resumable run needs: settings, folder, checkpoints, trainer, signals. Knows no model."""
