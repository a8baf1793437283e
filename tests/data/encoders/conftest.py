"""Folders of tiny models, saved once for all tests of encoders."""

from __future__ import annotations

import pytest

from support.encoders import FAMILIES, save_folder, tiny_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder for each family as timm saves it, with the model that is in it."""
    parent = tmp_path_factory.mktemp("encoders")
    models = {family: tiny_model(family) for family in FAMILIES}
    return {family: (model, save_folder(model, parent / family)) for family, model in models.items()}
