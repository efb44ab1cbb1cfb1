"""Files of weights: where they are, and the tensors in them.

A place is a path, or `hf:owner/name[@revision][/file]`: a repository at Hugging
Face, through the cache of `huggingface_hub` (its variables `HF_HOME`,
`HF_TOKEN` and `HF_HUB_OFFLINE` count).
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

Place = str | pathlib.Path

NAMES = ("model.safetensors", "pytorch_model.bin")
_HF = re.compile(r"hf:([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
_TORCH = (".pth", ".pt", ".bin")
# Where training programs keep the state dict beside other things.
_PARTS = ("state_dict", "model", "teacher")


def find(place: Place, key: str, *beside: str) -> pathlib.Path:
  """Finds a file of weights, and fetches it if it lies at Hugging Face.

  Args:
    place: A file, a folder with one of `NAMES`, or
      `hf:owner/name[@revision][/file]`.
    key: The config key, for errors.
    *beside: Names of files that are needed from the same folder.

  Returns:
    The local file.

  Raises:
    ValueError: It is not there, or cannot be fetched; why, is said.
  """
  said = f"{key} = {str(place)!r}"
  if str(place).startswith("hf:"):
    return _fetch(str(place), said, beside)
  path = pathlib.Path(place)
  if path.is_dir():
    path = next(
      (path / n for n in NAMES if (path / n).is_file()), path / NAMES[0]
    )
  for file in (path, *(path.parent / name for name in beside)):
    if not file.is_file():
      raise ValueError(f"{said}: no such file: {file}")
  return path


def _fetch(place: str, said: str, beside: tuple[str, ...]) -> pathlib.Path:
  # Imported here: few runs need it.
  import huggingface_hub as hub
  from huggingface_hub import errors

  match = _HF.fullmatch(place)
  if match is None:
    raise ValueError(f"{said}: must be hf:owner/name[@revision][/file]")
  repo, revision, file = match.groups()

  def get(name: str) -> pathlib.Path:
    return pathlib.Path(hub.hf_hub_download(repo, name, revision=revision))

  def first() -> pathlib.Path:
    for name in NAMES[:-1]:
      try:
        return get(name)
      except errors.EntryNotFoundError:
        pass
    return get(NAMES[-1])

  try:
    path = get(file) if file else first()
    folder = str(pathlib.PurePosixPath(file or "x").parent)
    for name in beside:
      get(name if folder == "." else f"{folder}/{name}")
    return path
  except errors.HFValidationError as error:
    problem = str(error)
  # Subclasses come first.
  except errors.GatedRepoError:
    problem = (
      f"{repo} is gated: accept its terms on its page at Hugging Face, then "
      "run `hf auth login` or set HF_TOKEN to a token of that account"
    )
  except errors.RepositoryNotFoundError:
    problem = (
      f"there is no repository {repo}, or it is private and this token "
      "(HF_TOKEN, `hf auth login`) may not see it"
    )
  except errors.RevisionNotFoundError:
    problem = f"{repo} has no revision {revision!r}"
  except errors.LocalEntryNotFoundError:
    problem = (
      f"not in the cache {hub.constants.HF_HUB_CACHE}, and nothing can be "
      "fetched: HF_HUB_OFFLINE is set, or there is no connection. Where there "
      f"is one, run `hf download {repo}`"
      + (f" --revision {revision}" if revision else "")
    )
  except errors.EntryNotFoundError:
    wanted = file or " nor ".join(NAMES)
    problem = f"{repo} has no {wanted}; name its file: hf:{repo}/FILE"
  except (errors.HfHubHTTPError, OSError) as error:
    problem = f"cannot be fetched ({type(error).__name__}: {error})"
  raise ValueError(f"{said}: {problem}")


def read(place: Place, key: str) -> dict[str, np.ndarray]:
  """Reads the tensors of a file.

  Args:
    place: See `find`; `.safetensors`, or what `torch.save` wrote of a state
      dict (`.pth`, `.pt`, `.bin`), for which PyTorch must be installed.
    key: The config key, for errors.

  Returns:
    Arrays by name.

  Raises:
    ValueError: There is no such file, or it cannot be read.
  """
  path = find(place, key)
  if path.suffix == ".safetensors":
    try:
      with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
      raise ValueError(f"{key}: {path} is damaged ({error})") from error
  if path.suffix in _TORCH:
    return _read_torch(path, key)
  raise ValueError(
    f"{key} = {str(place)!r}: must end in .safetensors, {', '.join(_TORCH)}"
  )


def _read_torch(path: pathlib.Path, key: str) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{key}: {path} needs PyTorch, which is not installed. Where it is, make "
      "it a .safetensors file:\n"
      f'  state = torch.load("{path.name}", "cpu", weights_only=True)\n'
      "  safetensors.torch.save_file({k: v.clone().contiguous() for k, v in "
      f'state.items()}}, "{path.stem}.safetensors")'
    ) from error
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  # Whatever bytes may make of an unpickler.
  except Exception as error:
    raise ValueError(
      f"{key}: {path} is damaged, or holds more than tensors ({error})"
    ) from error

  def is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
      hasattr(tensor, "numpy") for tensor in value.values()
    )

  keys = list(content) if isinstance(content, Mapping) else []
  states = [content] if is_state(content) else []
  states += [content[k] for k in _PARTS if k in keys and is_state(content[k])]
  if len(states) != 1:
    raise ValueError(
      f"{key}: {path} holds no state dict: a {type(content).__name__} of "
      f"{keys[:10]}; wanted are names of tensors, or one of {_PARTS} with these"
    )
  # Parameters want gradients, and not every number type is one of NumPy.
  return {
    name: tensor.detach().float().numpy() for name, tensor in states[0].items()
  }
