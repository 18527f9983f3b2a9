"""What a model's card says of a model in a local folder: the model on the Hub that it goes back to."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData


CARD = "README.md"
# What TRL writes for a model in a local folder, and for a folder that is not pushed.
NO_BASE, NO_NAME = "[None](https://huggingface.co/None)", 'model="None"'


def origin_of(model: str) -> str | None:
    """
    Return the id on the Hub that a model goes back to: by the configurations of adapters and the cards of local
    folders; None where a folder does not say it.
    """
    seen: set[str] = set()
    while os.path.isdir(model):
        base = _base_in(Path(model))
        if base is None or model in seen:
            return None
        seen.add(model)
        model = base
    return None if os.path.isabs(model) or model.startswith(".") else model


def write_origin(folder: Path, model: str) -> None:
    """Write the card of a folder with the merged weights of an adapter."""
    origin = origin_of(model)
    words = f"The adapter {_named(model)}, merged into its base{_goes_back(origin)}."
    data = ModelCardData(base_model=origin)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {folder.name}\n\n{words}\n").save(folder / CARD)


def complete_card(folder: str | Path, model: str) -> None:
    """Say in the card that TRL wrote into `folder` which model was trained, if that is one in a local folder."""
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8").replace(NO_NAME, f"model={json.dumps(path.resolve().parent.name)}")
    if NO_BASE not in text:
        path.write_text(text, encoding="utf-8")
        return
    origin = origin_of(model) if model else None
    card = ModelCard(text.replace(NO_BASE, f"{_named(model)}{_goes_back(origin)}"))
    if origin:
        card.data["base_model"] = origin
    card.save(path)


def _goes_back(origin: str | None) -> str:
    return f", which goes back to [{origin}](https://huggingface.co/{origin})" if origin else " (not on the Hub)"


def _named(model: str) -> str:
    """Return the name of a model, of a local folder its last part: the rest of a path is private."""
    return f"`{Path(model).name if os.path.isdir(model) or os.path.isabs(model) else model or 'a model in memory'}`"


def _base_in(folder: Path) -> str | None:
    """Return the model that an adapter's folder or the card in a model's folder names as its base."""
    adapter, card = folder / "adapter_config.json", folder / CARD
    try:
        if adapter.exists():
            base: Any = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        else:
            base = ModelCard.load(card).data.get("base_model") if card.exists() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) and base else None
