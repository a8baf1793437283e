"""Save and load sparse autoencoders as model folders, on the disk and on the Hugging Face Hub.

- `model.safetensors`: the tensors, as in every model folder (`monoloss.files.model_folder`).
- `config.json`: as in every model folder, with `d_in` and `sae` (the configuration, every field).
- `README.md`: the model card, for people; loading does not read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, snapshot_download
from torch import nn

from monoloss.checks import check_type
from monoloss.errors import InputError, first_line
from monoloss.files.atomic import atomic_folder
from monoloss.files.dataclasses import read_field, to_plain
from monoloss.files.hub import HUB
from monoloss.files.json import read_json
from monoloss.files.model_folder import (
    CONFIG,
    LIBRARY,
    TENSORS,
    Provenance,
    check_replaceable,
    check_savable,
    check_shape,
    opened_tensors,
    peek_config,
    read_provenance,
    read_tensors,
    write_model_config,
    write_tensors,
)
from monoloss.sae.config import SaeConfig
from monoloss.sae.model_card import model_card_text
from monoloss.version import __version__

FORMAT_VERSION = 1
CARD = "README.md"
_NOT_NEGATIVE = ("activation.threshold", "samples_since_active")  # tensors that are refused with a value below 0
_Model = TypeVar("_Model", bound="SaeFolderMixin")  # not Self: beartype cannot check it


class SaeFolderMixin(PyTorchModelHubMixin, library_name=LIBRARY, tags=["sparse-autoencoder", "interpretability"]):
    """Methods that save, load and share a SAE; a base of modules with ``d_in`` and ``config``.

    Attributes:
        provenance: encoder, store and training, saved in ``config.json``; ``from_pretrained`` sets it, trainers may.
    """

    d_in: int
    config: SaeConfig
    provenance: Provenance = Provenance()

    def __new__(cls: type[_Model], *args: object, **kwargs: object) -> _Model:  # noqa: ARG004 - they are for the constructor
        """Return an empty instance, without the second copy of the configuration that the mixin of the Hub adds."""
        return object.__new__(cls)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        evaluation: Mapping[str, float] | None = None,
        license: str | None = None,  # noqa: A002 - the word of model cards
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config: object = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the model as a folder of `model.safetensors`, `config.json` and `README.md`, whole or not at all.

        It holds all that inference needs, and ``provenance``. Tensors are stored in float32, which is exact for a model
        in half precision; it is loaded in float32 and encodes to the same bits.

        Args:
            save_directory: a new or empty folder, or one that holds a saved SAE and nothing else, which is replaced.
            evaluation: number of each measure for the table of the model card: ``Evaluation.summary``.
            license: for the model card, as the Hub spells it: "apache-2.0".
            repo_id: name on the Hub, "USER/NAME"; by default the name of the folder.
            push_to_hub: upload the folder as well.
            config: must be None; in the signature because the Hub's mixin has it.
            model_card_kwargs: ``evaluation`` and ``license`` as a mapping, as ``push_to_hub`` passes them.
            push_to_hub_kwargs: options of ``push_to_hub``.

        Returns:
            The address of the commit on the Hub; None without ``push_to_hub``.

        Raises:
            InputError: the folder holds other files; a tensor is float64 (``.float()`` rounds it), or has NaN or
                infinity; the threshold of a BatchTopK was not calibrated. Nothing is written.

        Example:
            >>> import tempfile, torch
            >>> from monoloss import SparseAutoencoder, TopKConfig
            >>> sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     sae.save_pretrained(folder + "/sae", license="apache-2.0")
            ...     SparseAutoencoder.from_pretrained(folder + "/sae").config == sae.config
            True
        """
        check_type("save_directory", save_directory, str | os.PathLike, "a path")
        _check_no_config(config)
        if not push_to_hub and (repo_id is not None or push_to_hub_kwargs):
            name = "repo_id" if repo_id is not None else next(iter(push_to_hub_kwargs))
            raise InputError(name, "a value", "it together with push_to_hub=True, or no such option")
        card_options: dict[str, Any] = {"evaluation": evaluation, "license": license, **(model_card_kwargs or {})}
        card, folder = self.generate_model_card(**card_options), Path(save_directory)
        check_savable(cast(nn.Module, self))
        old_config = peek_config(folder)
        is_sae = old_config.get("library") == LIBRARY and "kind" not in old_config  # fine-tuned models have a kind
        check_replaceable(folder, (TENSORS, CONFIG, CARD), is_ours=is_sae, kind="saved SAE")
        with atomic_folder(folder, replace=True) as temporary:
            self._save_pretrained(temporary)
            card.save(temporary / CARD)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **card_options, **push_to_hub_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: Mapping[str, float] | None = None,
        license: str | None = None,  # noqa: A002 - the word of model cards
        **hub_options: Any,
    ) -> str:
        """Save the model in a temporary folder and upload it to the Hugging Face Hub.

        Args:
            repo_id: "USER/NAME"; the repository is created if it does not exist.
            evaluation: measures for the model card, as in ``save_pretrained``.
            license: for the model card.
            hub_options: options of ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``: ``private``, ``token``,
                ``branch``, ``create_pr``, ``commit_message``, ...

        Returns:
            The address of the commit.

        Raises:
            InputError: as in ``save_pretrained``, before the upload.
        """
        _check_no_config(hub_options.get("config"))
        card: dict[str, Any] = {"evaluation": evaluation, "license": license}
        self.generate_model_card(**card)
        check_savable(cast(nn.Module, self))
        address: str = super().push_to_hub(repo_id, model_card_kwargs=card, **hub_options)
        return address

    @classmethod
    def from_pretrained(  # type: ignore[override]  # without options for the constructor
        cls: type[_Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> _Model:
        """Load a SAE that ``save_pretrained`` saved; it is in ``eval()`` mode.

        A folder is read without network; a path that does not exist is an error, not a name on the Hub.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face Hub written ``hf-hub:USER/NAME``.
            device: device of the loaded model.
            revision: branch, tag or commit. This and the following options are for names on the Hub only.
            token: for private repositories; True: the token stored on this machine.
            cache_dir: folder for downloads.
            force_download: download again even if the files are in ``cache_dir``.
            local_files_only: read from ``cache_dir`` alone, without network.

        Raises:
            InputError: no such folder; a failed download; a file that is missing, truncated, of another version or of
                another library; a key or tensor that is missing, unknown or does not fit ``config.json``; NaN or
                infinity. The error names the file. Pickle files (`.bin`, `.pt`) are never read.
        """
        source = pretrained_model_name_or_path
        check_type("pretrained_model_name_or_path", source, str | os.PathLike, "a path, or a name on the Hub")
        hub_options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        return cls._from_pretrained(model_id=os.fspath(source), device=device, **hub_options)

    def generate_model_card(
        self,
        *,
        evaluation: Mapping[str, float] | None = None,
        license: str | None = None,  # noqa: A002 - the word of model cards
    ) -> ModelCard:
        """Return the model card that ``save_pretrained`` writes; ``evaluation`` and ``license`` as there."""
        check_type("license", license, str | None, "a text or None")
        check_type("provenance", self.provenance, Provenance, "a Provenance")
        metadata = {**to_plain(self.config), **asdict(self.provenance), "monoloss_version": __version__}
        text = model_card_text(self.d_in, metadata, evaluation)
        tags = [*(self._hub_mixin_info.model_card_data.tags or ()), self.config.variant]
        data = ModelCardData(library_name=LIBRARY, license=license, tags=tags)
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write `model.safetensors` and `config.json` into an existing folder."""
        write_tensors(save_directory / TENSORS, cast(nn.Module, self))
        content = {"d_in": self.d_in, "sae": to_plain(self.config)}
        write_model_config(save_directory / CONFIG, content, self.provenance, format_version=FORMAT_VERSION)

    @classmethod
    def _from_pretrained(
        cls: type[_Model], *, model_id: str, device: str | torch.device = "cpu", **hub_options: Any
    ) -> _Model:
        """Load `model.safetensors` and `config.json` from a folder or from the Hub."""
        _check_device(device)
        folder = _folder_of(model_id, hub_options)
        d_in, config, provenance = _read_config(folder / CONFIG)
        construct = cast(Callable[..., _Model], cls)  # this mixin does not declare the constructor of the model
        with opened_tensors(folder / TENSORS) as file:
            _check_size(file, folder / TENSORS, d_in, config.n_latents)
            try:
                sae = construct(d_in, config, input_mean=torch.zeros(d_in) if config.inputs.center else None)
            except InputError as error:
                raise InputError(f"{folder / CONFIG}: {error.argument}", error.got, error.expected) from None
            module = cast(nn.Module, sae)
            module.load_state_dict(read_tensors(file, folder / TENSORS, module.state_dict(), _NOT_NEGATIVE))
        sae.provenance = provenance
        module.to(device).eval()
        return sae


def _read_config(path: Path) -> tuple[int, SaeConfig, Provenance]:
    """Read `config.json`: width of the inputs, configuration, provenance; `InputError` if any of it cannot be used."""
    content = read_json(path, format_version=FORMAT_VERSION)
    if content.get("library") != LIBRARY:
        raise InputError(str(path), "a file of another library", "the config.json of a SAE saved by monoloss")
    provenance = read_provenance(str(path), content, ("d_in", "sae"))
    d_in = read_field(int, content["d_in"], f"{path}: d_in")
    return d_in, read_field(SaeConfig, content["sae"], f"{path}: sae", complete=True), provenance


def _check_size(file: Any, path: Path, d_in: int, n_latents: int) -> None:
    """Refuse a weights file whose encoder is not ``(d_in, n_latents)``, before memory of that size is allocated."""
    if "encoder_weight" not in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
        raise InputError(str(path), "no tensor 'encoder_weight'", "the tensors that config.json describes")
    check_shape(path, "encoder_weight", file.get_slice("encoder_weight").get_shape(), (d_in, n_latents))


def _check_no_config(config: object) -> None:
    if config is not None:
        raise InputError("config", f"a {type(config).__name__}", "none: the configuration is the model's own")


def _check_device(device: str | torch.device) -> None:
    """Refuse a device that this machine does not have, before any file is read."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError("device", f"{str(device)!r} ({first_line(error)})", "a device of this machine") from error


def _folder_of(name: str, hub_options: Mapping[str, Any]) -> Path:
    """Return the folder ``name``, or the folder that ``hf-hub:USER/NAME`` is downloaded to."""
    if name.startswith(HUB):
        try:
            return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=[TENSORS, CONFIG], **hub_options))
        except Exception as error:  # bad name, no network, no access, ...: no common class
            got = f"no download ({first_line(error)})"
            raise InputError(name, got, "a SAE on the Hub, and a network to reach it") from error
    given = [option for option, value in hub_options.items() if value]
    if given:
        raise InputError(given[0], "a value", f"none with a folder: it is for names on the Hub, {HUB}USER/NAME")
    if not Path(name).is_dir():
        got = "a file" if Path(name).exists() else "no such folder"
        raise InputError(name, got, f"the folder of a saved SAE, or a name on the Hub written {HUB}USER/NAME")
    return Path(name)
