"""Revision, digest, device and loading of a model."""

import hashlib
import logging
import multiprocessing
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from trl_real.errors import PickledWeightsError, TrlRealError, without_remote_code
from trl_real.runtime.devices import default_device
from trl_real.runtime.digests import sha256


logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
SAFE_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PICKLES = re.compile(r"(pytorch|adapter)_model.*\.bin(\.index\.json)?")
ALLOW_PICKLE = "TRL_REAL_ALLOW_PICKLE"  # environment variable, so that worker processes have it, too
OTHER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")  # config, tokenizer, chat template
DTYPES = ("float32", "bfloat16", "float16")

_IMPORTED_BY = os.getpid()
_loaded: dict[tuple, tuple[Any, Any]] = {}  # the key begins with the kind of model


def checked_dtype(dtype: str | torch.dtype | None) -> str | None:
    """
    Return the name of a floating-point type, or None.

    Raises:
        TrlRealError: If it is not one of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.") if dtype is not None else None
    if name is not None and name not in DTYPES:
        raise TrlRealError(f"dtype={name!r} is not one of {', '.join(DTYPES)}.")
    return name


def resolve_revision(model: str, revision: str | None) -> str:
    """
    Return the current commit of a branch or tag on the Hub (None: the default branch), or `sha256:` and a digest of a
    local folder's config and weights.

    Raises:
        TrlRealError: If there is no such folder, and the Hub does not have the name or cannot be reached; or if the
            weights are pickle files only.
    """
    if os.path.isdir(model):
        refuse_pickle(model, os.listdir(model))
        return _folder_digest(Path(model))
    import httpx2
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = HfApi().model_info(model, revision=revision, timeout=10)
        refuse_pickle(model, (file.rfilename for file in found.siblings or ()))
        return cast(str, found.sha)  # None in lists of models only
    except HFValidationError as error:
        raise TrlRealError(f"No folder {model!r}, and it is not a Hub id either. Check the path.") from error
    except (httpx2.HTTPError, OSError) as error:
        for file in ("config.json", "adapter_config.json"):
            if isinstance(cached := try_to_load_from_cache(model, file, revision=revision), str):
                refuse_pickle(model, os.listdir(Path(cached).parent))
                return Path(cached).parent.name
        reason = str(error).strip().splitlines()[0]
        raise TrlRealError(
            f"Model {model!r} is not a local folder, and the Hub does not return it ({reason}). "
            "Give a local path, or check the name and `hf auth login`."
        ) from error


def refuse_pickle(model: str, files: Iterable[str]) -> None:
    """
    Check that the weights among the files of a model are safetensors, or that `$TRL_REAL_ALLOW_PICKLE` is set.

    Raises:
        PickledWeightsError: If they are pickle files only.
    """
    files = set(files)
    pickles = sorted(filter(PICKLES.fullmatch, files))
    if pickles and files.isdisjoint(SAFE_FILES) and not os.environ.get(ALLOW_PICKLE):
        raise PickledWeightsError(
            f"The weights of {model!r} are pickle files ({pickles[0]}), which may hold code. Save them as "
            "safetensors: model.save_pretrained(…); or, if you trust them, type --allow_pickle "
            f"({ALLOW_PICKLE}=1 in Python)."
        )


def weights_digest(model: nn.Module) -> str:
    """Return `sha256:` and a digest of the names and values of a loaded model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")
    return f"sha256:{digest.hexdigest()[:40]}"


def object_digest(model: Any, tokenizer: Any = None) -> str:
    """Return a digest of a loaded model or encoder and its tokenizer: of the weights, or of the pickle."""
    if isinstance(model, nn.Module):
        digest = weights_digest(model)
    else:
        from datasets.fingerprint import Hasher

        digest = f"sha256:{Hasher.hash(model)}"
    extras = []
    if hasattr(model, "get_base_model"):  # PEFT: the weights do not show which adapter is active
        extras += ["none"] if is_adapter_off(model) else sorted(model.active_adapters)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        extras += [backend.to_str(), repr(tokenizer.chat_template)]
    return f"{digest}-{sha256(extras).hex()[:8]}" if extras else digest


def is_adapter_off(model: nn.Module) -> bool:
    """Return whether the adapter of a PEFT model is disabled."""
    return any(getattr(module, "disable_adapters", False) is True for module in model.modules())


def load_model(
    model: str,
    revision: str,
    dtype: str | None,
    device: str,
    auto_class: str = "AutoModelForCausalLM",
    adapters: bool = False,
) -> tuple[Any, Any]:
    """
    Load a model with its tokenizer, in evaluation mode. The process keeps the last one of each kind; of models that
    may be adapters the last two, a policy and its reference.

    Args:
        model: Hub id or path.
        revision: Value of `resolve_revision`, so that what is loaded is what was fingerprinted.
        dtype: Precision of the weights, float32 where None.
        device: Device of the model.
        auto_class: Name of the transformers class that loads it.
        adapters: Whether to load a PEFT model where the folder or repository holds an adapter.
    """
    key = (auto_class, adapters, model, revision, dtype, device)
    found = _loaded.pop(key, None)
    if found is None:
        alike = [other for other in _loaded if other[:2] == key[:2]]
        for other in alike[: max(0, len(alike) - adapters)]:
            del _loaded[other]
        loaded, tokenizer = _from_pretrained(model, pinned(revision), dtype or "float32", auto_class, adapters)
        found = loaded.to(device).eval(), tokenizer
    _loaded[key] = found
    return found


def pinned(revision: str | None) -> dict[str, str]:
    """Return the revision as an argument of `from_pretrained`; none for a local folder, which has no revisions."""
    return {} if revision is None or revision.startswith("sha256:") else {"revision": revision}


def _from_pretrained(
    model: str, revision: dict[str, str], dtype: str, auto_class: str, adapters: bool
) -> tuple[Any, Any]:
    import transformers

    auto, base = getattr(transformers, auto_class), adapter_base(model, revision)
    if base is not None and adapters:
        return load_adapter(model, revision, auto, dtype=dtype)
    if base is not None:
        tell_base(model, base[0])
    with without_remote_code(model):
        auto = auto if base else auto_of(auto, model, revision)
        loaded = auto.from_pretrained(model, dtype=dtype, trust_remote_code=False, **revision)
        return loaded, _tokenizer(model, revision, base)


def adapter_base(model: str, revision: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """
    Return the name of an adapter's base and the base's revision; None for a model that is no adapter.

    Args:
        model: Folder, such as the output of `train --use_peft`, or Hub id.
        revision: Revision on the Hub, as `pinned` returns it.
    """
    from peft import PeftConfig
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(model, **revision) is None:
            return None
        config = PeftConfig.from_pretrained(model, **revision)
    except (OSError, ValueError):  # what loads the model next says why it cannot
        return None
    return str(config.base_model_name_or_path), pinned(config.revision)


def load_adapter(model: str, revision: dict[str, str], auto: Any, **init: Any) -> tuple[Any, Any]:
    """
    Load an adapter on its base, as a PEFT model, and the tokenizer: the adapter's if it has one, else the base's.

    Args:
        model, revision: As in `adapter_base`.
        auto: Class of transformers that loads the base.
        **init: Arguments of its `from_pretrained`.

    Raises:
        TrlRealError: If this is no adapter, or the base cannot be loaded.
    """
    from peft import PeftModel

    if (found := adapter_base(model, revision)) is None:
        raise TrlRealError(f"{model!r} is no adapter: it has no adapter_config.json.")
    base, base_revision = found
    tell_base(model, base)
    if os.path.isdir(model):
        refuse_pickle(model, os.listdir(model))
    try:
        if os.path.isdir(base):  # whose digest, over all weights, nobody asks for here
            refuse_pickle(base, os.listdir(base))
        else:
            resolve_revision(base, base_revision.get("revision"))
        with without_remote_code(base):
            plain = auto_of(auto, base, base_revision).from_pretrained(
                base, **{"trust_remote_code": False, **base_revision, **init}
            )
    except PickledWeightsError:
        raise
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrlRealError(
            f"{model!r} is an adapter, and its base {base!r} cannot be loaded ({reason}). Correct "
            "'base_model_name_or_path' in its adapter_config.json."
        ) from error
    return PeftModel.from_pretrained(plain, model, **revision), _tokenizer(model, revision, found)


def tell_base(model: str, base: str) -> None:
    """Say which base is loaded for an adapter."""
    logger.warning("%r is an adapter: its base %r is loaded with it.", model, base)


def _tokenizer(model: str, revision: dict[str, str], base: tuple[str, dict[str, str]] | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False, **revision)
    except (OSError, ValueError):
        if base is None:
            raise
        return AutoTokenizer.from_pretrained(base[0], trust_remote_code=False, **base[1])  # adapters may lack one


def auto_of(auto: Any, model: str, revision: dict[str, str]) -> Any:
    """Return the class that loads a model: for a causal LM, that of models with images if it is one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if auto is not AutoModelForCausalLM:
        return auto
    kind, sees = (
        type(AutoConfig.from_pretrained(model, trust_remote_code=False, **revision)),
        AutoModelForImageTextToText,
    )
    return sees if kind in sees._model_mapping and kind not in auto._model_mapping else auto


def pick_device(device: str | None, rank: int | None) -> str:
    """
    Return the given device, else the accelerator of this rank, else the CPU.

    Raises:
        TrlRealError: If torch does not know the device, or in a forked child of a process that has used it: the
            child cannot use it.
    """
    try:
        kind = torch.device(device := device or default_device(rank)).type
    except RuntimeError as error:
        raise TrlRealError(f"device={device!r} is no device of torch. Type cpu, cuda:0, mps or xpu.") from error
    backend: Any = getattr(torch, kind, None)  # torch.cuda, torch.xpu, torch.mps
    if is_forked() and hasattr(backend, "_is_in_bad_fork") and backend._is_in_bad_fork():
        raise TrlRealError(
            f"{device} is already in use in the parent process, so num_proc cannot fork. Call map without num_proc, "
            "or put `multiprocess.set_start_method('spawn')` under `if __name__ == '__main__':`."
        )
    return device


def prepare_process() -> None:
    """
    Prepare a worker process for a forward pass.

    After a fork, the parent's OpenMP threads are missing, and a multi-threaded product would wait for them forever.
    Workers share the cores anyway.
    """
    if is_forked() or multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)


def is_forked() -> bool:
    """Return whether this process was forked after this module was imported."""
    return os.getpid() != _IMPORTED_BY


def _folder_digest(folder: Path) -> str:
    files = sorted({path for pattern in (*WEIGHT_FILES, *OTHER_FILES) for path in folder.glob(pattern)})
    if not any(path.match(pattern) for path in files for pattern in WEIGHT_FILES):
        raise TrlRealError(f"No weights ({', '.join(WEIGHT_FILES)}) in {str(folder)!r}. Give a saved model's folder.")
    digests = [f"{path.name}:{_file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)}" for path in files]
    return f"sha256:{sha256(chr(10).join(digests)).hex()[:40]}"


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Return a digest of a file's content; size and time are part of the cache key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
