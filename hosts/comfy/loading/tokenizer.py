"""A folder's tokenizer under ComfyUI's prompt syntax: weights, embeddings and chunks are core's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy.sd1_clip import SDTokenizer

from ....pipelines.errors import PalimpsestError, quoted


class FolderTokenizer(SDTokenizer):
    """ComfyUI's tokenizer (weights, embeddings, chunks) over a folder's own vocabulary."""

    def __init__(self, folder: Path, max_length: int, width: int, name: str) -> None:
        super().__init__(
            str(folder),
            max_length=max_length,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            embedding_size=width,
            embedding_key=name,
            tokenizer_class=_tokenizer_class(folder),
        )
        if self.tokenizer.pad_token_id is not None:
            self.pad_token = self.tokenizer.pad_token_id

    @property
    def special_tokens(self) -> dict[str, int]:
        """The ids that ComfyUI's encoder has to know."""
        return {"start": self.start_token, "end": self.end_token, "pad": self.pad_token}


def read_tokenizer(folder: Path, config: Mapping[str, Any], name: str) -> FolderTokenizer:
    """Read a tokenizer folder.

    Args:
        folder: The tokenizer's own folder.
        config: The config of the encoder that reads its tokens.
        name: ComfyUI's name of that encoder.

    Raises:
        PalimpsestError: If there is none, or it does not belong to the encoder.
    """
    try:
        tokenizer = FolderTokenizer(
            folder, config["max_position_embeddings"], config["hidden_size"], name
        )
        last = max(tokenizer.inv_vocab)
    except PalimpsestError:
        raise
    except IndexError as error:
        raise PalimpsestError(
            f"The tokenizer {folder} does not put a start and an end token around a text: it must "
            "be one of CLIP's kind; choose another model."
        ) from error
    except Exception as error:  # transformers and its parsers raise what comes to them
        reason = quoted(str(error).partition("\n")[0])
        raise PalimpsestError(
            f"The tokenizer {folder} cannot be read ({reason}): its files must be as "
            "save_pretrained writes them; download them again or choose another model."
        ) from error
    if last >= config["vocab_size"]:
        raise PalimpsestError(
            f"The tokenizer {folder} knows token {last}, its text encoder only "
            f"{config['vocab_size']} tokens: both must come from the same model; download the "
            "folder again."
        )
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return CLIPTokenizer
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    raise PalimpsestError(
        f"The folder {folder} holds no tokenizer: it must hold vocab.json and merges.txt, or "
        "tokenizer.json; download the model again."
    )
