"""Reads what `torch.save` writes of a state dict, without PyTorch.

There are two formats. Since 1.6 a file is a zip archive: `data.pkl` says which
tensors there are, `data/<key>` holds the numbers of each storage. Before, and
in torchvision's own weights to this day, it is pickles one after the other, and
then the numbers of all storages.

A pickle may name any function of any module and have it called, so that opening
a stranger's file is running a stranger's program. The unpickler here knows
three names (ordered dictionary, tensor, parameter) and the storages of numbers;
at any other it stops.
"""

import collections
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

# Number types by PyTorch's names of their storages.
_STORAGES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
# How files of the older format begin.
_MAGIC = 0x1950A86A20F9469CFC6C
# Where training programs keep the state dict beside other things.
_PARTS = ("state_dict", "model")


class _Refused(Exception):
  """The file holds something that is no tensor."""


def _rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, *_):
  """A tensor is a view of a storage; here it becomes an array of its own."""
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or not all(
    isinstance(n, int) and n >= 0 for n in numbers
  ):
    raise _Refused(f"a tensor of size {size} and stride {stride}")
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  count = math.prod(size)
  if count and (last >= storage.size or count > storage.size):
    raise _Refused(
      f"a tensor of size {size} that is larger than its storage of "
      f"{storage.size} numbers"
    )
  view = np.lib.stride_tricks.as_strided(
    storage[min(offset, storage.size) :],
    size,
    [s * storage.itemsize for s in stride],
    writeable=False,
  )
  return np.array(view)


def _rebuild_parameter(tensor, requires_grad, hooks):
  return tensor


_KNOWN = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  **{("torch", name): name for name in _STORAGES},
}


class _Unpickler(pickle.Unpickler):
  """Unpickles tensors, dictionaries, text and numbers; nothing else.

  Args:
    file: Open for bytes, where the pickle starts.
    read_storage: (key, type, count) → the numbers of a storage.
  """

  def __init__(
    self,
    file: Any,
    read_storage: Callable[[str, Any, int], np.ndarray],
  ):
    super().__init__(file, encoding="utf-8")
    self._read_storage = read_storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _KNOWN:
      raise _Refused(f"{module}.{name}")
    return _KNOWN[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, storage, key, _, count, *view = pid
    if kind != "storage" or storage not in _STORAGES or any(view):
      raise _Refused(f"{kind} {storage}")
    found = self._read_storage(key, _STORAGES[storage], count)
    if found.size != count or found.dtype != _STORAGES[storage]:
      raise _Refused(f"a storage of {count} numbers that is none")
    return found


def _no_storage(key: str, dtype: Any, count: int) -> np.ndarray:
  raise _Refused("a storage where none belongs")


def _load_zip(path: pathlib.Path) -> Any:
  """Reads the format since 1.6."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    roots = [n[: -len("data.pkl")] for n in names if n.endswith("data.pkl")]
    if len(roots) != 1:
      raise ValueError(f"an archive of {names[:5]}")
    order = f"{roots[0]}byteorder"
    if order in names and archive.read(order) != b"little":
      raise ValueError("written on a big-endian machine")
    storages: dict[str, np.ndarray] = {}

    def read_storage(key, dtype, count):
      if key not in storages:
        data = archive.read(f"{roots[0]}data/{key}")
        storages[key] = np.frombuffer(data, dtype)
      return storages[key]

    return _Unpickler(archive.open(f"{roots[0]}data.pkl"), read_storage).load()


def _load_stream(path: pathlib.Path) -> Any:
  """Reads the format before 1.6.

  Numbers come after the tensors that are made of them: the pickle is read once
  to learn of the storages, and again when they are there.
  """
  size = path.stat().st_size
  storages: dict[str, np.ndarray] = {}

  def reserve(key, dtype, count):
    if count * np.dtype(dtype).itemsize > size:
      raise _Refused(f"a storage of {count} numbers, more than the file has")
    return storages.setdefault(key, np.zeros(count, dtype))

  with path.open("rb") as file:
    head = [_Unpickler(file, _no_storage).load() for _ in range(3)]
    if head[0] != _MAGIC or not head[2].get("little_endian"):
      raise ValueError("neither a zip archive nor the older format")
    start = file.tell()
    _Unpickler(file, reserve).load()
    for key in _Unpickler(file, _no_storage).load():
      count = int.from_bytes(file.read(8), "little")
      dtype = storages[key].dtype
      data = file.read(count * dtype.itemsize)
      storages[key] = np.frombuffer(data, dtype, count)
    file.seek(start)
    return _Unpickler(file, lambda key, dtype, count: storages[key]).load()


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a `.pth`, `.pt` or `.bin` file.

  Args:
    path: What `torch.save(model.state_dict(), path)` wrote; or a dictionary
      that has the state dict as `state_dict` or `model`, beside numbers and
      texts.

  Returns:
    Arrays by name; shared storages are copied.

  Raises:
    ValueError: The file is damaged, is no state dict, or holds anything else
      than tensors: which, is said.
  """
  load = _load_zip if zipfile.is_zipfile(path) else _load_stream
  try:
    content = load(path)
  except _Refused as refused:
    raise ValueError(
      f"{path} holds more than tensors: {refused}. Nothing of it was run. If "
      "you trust the file, load it with PyTorch and save its state dict as "
      "safetensors"
    ) from None
  except Exception as error:
    # Whatever bytes may make of an unpickler.
    raise ValueError(
      f"{path} is damaged, or no file of torch.save ({type(error).__name__}: "
      f"{error})"
    ) from error
  return _tensors(path, content)


def _tensors(path: pathlib.Path, content: Any) -> dict[str, np.ndarray]:
  """The state dict: all there is, or one part of it."""

  def is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
      isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items()
    )

  if is_state(content):
    return dict(content)
  keys = list(content) if isinstance(content, Mapping) else []
  parts = [key for key in _PARTS if key in keys and is_state(content[key])]
  if len(parts) != 1:
    raise ValueError(
      f"{path} holds no state dict: a {type(content).__name__} of {keys[:10]}; "
      f"wanted are names of tensors, or one of {_PARTS} with these"
    )
  return dict(content[parts[0]])
