"""The mathematics: pure functions of tensors, each formula in one place."""
